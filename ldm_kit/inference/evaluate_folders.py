"""Pictures in a folder that an evaluation judges, all of one size."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.image_files import BadPicture, load_image
from ldm_kit.data.image_kinds import is_picture
from ldm_kit.data.images import digest
from ldm_kit.inference.evaluate_latents import NO_LATENTS
from ldm_kit.inference.evaluate_reference import Reference, cycled
from ldm_kit.inference.value_output import LEVELS
from ldm_kit.memory import BatchSize
from ldm_kit.models.measures import BITS, CLIP, CODES, EDITS, PICTURES, PROMPTS, RANDOM
from ldm_kit.training.checkpoint import sha256_all

_GRID = re.compile(r"grid(-\d+)?\.png")  # the sheet that sample.py writes beside its pictures
_CHANNELS = {"1": 1, "L": 1, "LA": 4, "RGBA": 4, "PA": 4}  # by Pillow's mode; 3 for all others
NO_CODES: dict[str, str] = dict.fromkeys((*RANDOM, *CODES, *EDITS), "it is for semantic models (DiffAE and PDAE)")
NO_ORIGINALS: dict[str, str] = {
    **dict.fromkeys(PICTURES, "it is for reconstructions, which only an autoencoder makes"),
    **NO_LATENTS,
    **NO_CODES,
}
NO_BITS: dict[str, str] = dict.fromkeys(BITS, "it is for diffusion models of pixels")


class JudgedBatch(NamedTuple):
    """A batch of pictures that are judged; of reconstructions, also values picture by picture."""

    pictures: Tensor  # uint8 [B, C, R, R]
    values: dict[str, Tensor]  # by name of a measure of reconstructions, [B]; and latents, see `latents_of`


@dataclass(eq=False)
class Folder:
    """Pictures in a folder, all of one size; grid.png and png16/, which sample.py writes beside them, are left out."""

    path: Path
    files: list[Path]
    shape: tuple[int, int]
    kind: str = "folder"
    impossible: dict[str, str] = field(
        default_factory=lambda: {
            **NO_ORIGINALS,
            **NO_BITS,
            **dict.fromkeys((*PROMPTS, CLIP), "a folder's pictures have no prompts"),
        }
    )

    @classmethod
    def open(cls, path: Path) -> "Folder":
        """List a folder's pictures, those of sub-folders too, and read their sizes.

        Raises:
            UserError: there is no picture, one cannot be read or is not square, or sizes or channels differ.
        """
        if not path.is_dir():
            raise UserError(f"{path} is no folder; expected a model, a run, an autoencoder or a folder of pictures")
        below = (p for p in path.rglob("*") if LEVELS not in p.relative_to(path).parts)
        files = sorted(p for p in below if is_picture(p.name) and p.is_file() and not _GRID.fullmatch(p.name))
        if not files:
            raise UserError(f"{path} holds neither a model nor a picture")
        shapes: dict[tuple[int, int, int], Path] = {}  # the first file of each shape
        for file in files:
            shapes.setdefault(_shape(file), file)
        if len(shapes) > 1:
            (a, first), (b, second), *_ = shapes.items()
            raise UserError(f"{_words(first, a)}, but {_words(second, b)}; expected pictures of one size")
        (channels, width, height) = next(iter(shapes))
        if width != height:
            raise UserError(f"{_words(files[0], (channels, width, height))}; expected square pictures")
        return cls(path, files, (channels, width))

    @property
    def description(self) -> dict[str, Any]:
        """Hash of the files' names and contents."""
        names = [file.relative_to(self.path).as_posix() for file in self.files]
        return {"kind": self.kind, "sha256": digest([*names, *sha256_all(self.files)])}

    def rows(self, reference: Reference, count: int | None) -> list[int]:
        """Return the indices of the files to judge; UserError: the folder holds fewer than `count`."""
        if count is not None and count > len(self.files):
            raise UserError(f"--count is {count}, but {self.path} holds {len(self.files)} pictures")
        return cycled(len(self.files), count or len(self.files))

    def batches(
        self, reference: Reference, rows: Sequence[int], seeds: Sequence[int], size: BatchSize
    ) -> Iterator[JudgedBatch]:
        """Read the files."""
        channels, side = self.shape

        def batch(indices: range) -> JudgedBatch:
            try:
                return JudgedBatch(torch.stack([load_image(self.files[rows[i]], side, channels) for i in indices]), {})
            except BadPicture as error:
                raise UserError(str(error)) from None

        yield from size.batches(len(rows), batch)


def _shape(file: Path) -> tuple[int, int, int]:
    """Return channels, width and height of a picture, from the file's header."""
    try:
        with Image.open(file) as image:
            return _CHANNELS.get(image.mode, 3), *image.size
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{file} cannot be read as a picture: {error}") from None


def _words(file: Path, shape: tuple[int, int, int]) -> str:
    return f"{file} has {shape[1]} x {shape[2]} px and {shape[0]} channels"
