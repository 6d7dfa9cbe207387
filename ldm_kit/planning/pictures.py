"""Summary of a folder of pictures: how many, how large, with captions or classes, grey or transparent."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ldm_kit.config import UserError
from ldm_kit.data.batches import spread
from ldm_kit.data.folder_index import folder_entries, resolve_inside, training_entries
from ldm_kit.data.image_files import PIXEL_LIMIT, BadPicture, decode
from ldm_kit.data.metadata import Entry

EXAMINED = 200  # pictures that are opened
COLOURED = 12  # grey levels by which channels differ in a picture with colours; JPEG alone makes a few
MOST_CLASSES = 1000


@dataclass(frozen=True)
class FolderSummary:
    """What a folder of pictures holds; shares are of pictures, from 0 to 1.

    Sizes and colours are those of at most 200 pictures, spread over the folder.
    """

    path: Path
    count: int
    side: int  # median of the shorter sides, in pixels
    smallest: int  # shortest side
    largest: int  # longest of the shorter sides
    captioned: float  # share with a caption that is no class name
    classes: tuple[str, ...]  # class names; empty unless every picture has a class
    words: int  # words of the longest caption
    grey: bool  # whether no picture has colours
    transparent: float  # share with transparent pixels

    @property
    def condition(self) -> str:
        """What a model can be conditioned on: "text", "class" or "none"."""
        if self.captioned >= 0.5:
            return "text"
        return "class" if 1 < len(self.classes) <= MOST_CLASSES else "none"

    def __str__(self) -> str:
        sizes = f"{self.smallest} to {self.largest} px" if self.smallest != self.largest else f"{self.side} px"
        what = [f"{self.count} pictures of {sizes} (shorter side, median {self.side})"]
        what += ["grey"] if self.grey else []
        what += [f"{self.transparent:.0%} with transparent pixels (laid on white)"] if self.transparent else []
        what += [f"{self.captioned:.0%} with captions of up to {self.words} words"] if self.captioned else []
        what += [f"{len(self.classes)} classes"] if self.classes else []
        what += ["no captions and no classes"] if not self.captioned and not self.classes else []
        return ", ".join(what)


def summarise_folder(path: Path) -> FolderSummary:
    """Look at a folder of pictures.

    Raises:
        UserError: there is no such folder, its metadata is invalid, or none of the examined pictures can be read.
    """
    if not path.is_dir():
        raise UserError(f"{path} is no folder; expected a folder of pictures")
    entries = [entry for entry in training_entries(folder_entries(path), path) if not entry.problem]
    if not entries:
        raise UserError(f"no pictures in {path}; expected images, in the folder itself or in one sub-folder per class")
    images = [image for entry in _some(entries) if (image := _opened(path, entry)) is not None]
    if not images:
        raise UserError(f"none of the pictures in {path} that were tried can be read, {entries[0].name} for one")
    sides = [min(image.size) for image in images]
    captions = [entry.text for entry in entries if entry.text and not _is_name(entry.text, entry.label)]
    labels = {entry.label for entry in entries}
    return FolderSummary(
        path=path,
        count=len(entries),
        side=round(statistics.median(sides)),
        smallest=min(sides),
        largest=max(sides),
        captioned=len(captions) / len(entries),
        classes=() if None in labels else tuple(sorted(label for label in labels if label is not None)),
        words=max((len(text.split()) for text in captions), default=0),
        grey=not any(_has_colours(image) for image in images),
        transparent=sum(_has_transparency(image) for image in images) / len(images),
    )


def _some(entries: Sequence[Entry]) -> list[Entry]:
    return [entries[i] for i in spread(len(entries), min(EXAMINED, len(entries)))]


def _opened(root: Path, entry: Entry) -> Image.Image | None:
    try:
        return decode(resolve_inside(root, entry.name), PIXEL_LIMIT).image
    except (BadPicture, OSError):
        return None  # the training says which pictures it leaves out, and stops if they are too many


def _is_name(text: str, label: str | None) -> bool:
    """Return whether a caption is the name of the class, with spaces for underscores as in folders' names."""
    return label is not None and text.split() == label.replace("_", " ").replace("-", " ").split()


def _has_colours(image: Image.Image) -> bool:
    if image.mode in ("L", "LA"):
        return False
    pixels = np.asarray(image.convert("RGB").resize((32, 32))).astype(int)
    return bool((pixels.max(axis=2) - pixels.min(axis=2) > COLOURED).any())


def _has_transparency(image: Image.Image) -> bool:
    return image.has_transparency_data and min(image.convert("RGBA").getchannel("A").tobytes()) < 255
