"""Whole tasks of `edit.py` on a semantic model: files and words in, pictures, sheets, codes and directions out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.folder import load_all as load_folder
from ldm_kit.drawing import PRECISIONS
from ldm_kit.editing import codes, edits
from ldm_kit.editing.codes import Codes
from ldm_kit.editing.directions import FILE, Direction, Directions
from ldm_kit.editing.edits import Change
from ldm_kit.editing.pictures import read_picture, save_sheet
from ldm_kit.editing.seam import Code, Semantic, codes_of, key_of, normalised
from ldm_kit.evaluation.files import MAX_SEED
from ldm_kit.parts import device_named, model_folder
from ldm_kit.semantic_model import SemanticModel


@dataclass(frozen=True)
class Steps:
    """Of DDIM: how many to read a picture's x_T, how many to draw, and which share of these a frozen model has."""

    invert: int = 250
    draw: int = 100
    stop: float = 0.0  # of PDAE: the last steps' share that is the frozen model's alone
    flags: tuple[str, str] = ("--invert_steps", "--steps")  # what the user calls them

    @property
    def drawing(self) -> dict[str, float]:
        """What a picture says of how it was drawn."""
        name = self.flags[1].removeprefix("--")
        return {name: self.draw} | ({"stop": self.stop} if self.stop else {})

    def refuse(self) -> None:
        """Refuse numbers out of range; raises UserError."""
        for flag, steps in zip(self.flags, (self.invert, self.draw), strict=True):
            if steps < 1:
                raise UserError(f"{flag} is {steps}; expected 1 or more")
        if not 0 <= self.stop <= 1:
            raise UserError(f"--stop is {self.stop:g}; expected a share of the steps, 0 to 1")

    def fit(self, model: SemanticModel) -> None:
        """Refuse more steps than the model's noise has times, and a stop without a frozen model; raises UserError."""
        self._walkable(model, self.flags[0], self.invert)
        self.fit_drawing(model)

    def fit_drawing(self, model: SemanticModel) -> None:
        """The same, where nothing is read; raises UserError, naming the flag."""
        self._walkable(model, self.flags[1], self.draw)
        if self.stop and not model.decoder.stops:
            raise UserError(
                f"--stop {self.stop:g} leaves the last steps to the frozen model of a PDAE, which this model has not; "
                "leave it out"
            )

    @staticmethod
    def _walkable(model: SemanticModel, flag: str, steps: int) -> None:
        try:
            model.decoder.grid(steps)
        except UserError as error:
            raise UserError(f"{flag} {steps}: {str(error).removeprefix('steps: ')}") from None


@dataclass(frozen=True)
class Place:
    """Which model, where, and where its results go."""

    model: Path
    out: Path
    device: str | None = None
    precision: str = "no"
    metadata: bool = True  # whether PNGs say how they were made

    def autocast(self) -> torch.dtype | None:
        """The precision's dtype; raises UserError for an unknown one."""
        if self.precision not in PRECISIONS:
            raise UserError(f"unknown precision {self.precision!r}; known are {', '.join(PRECISIONS)}")
        return PRECISIONS[self.precision]

    def about(self, **settings: Any) -> Mapping[str, str] | None:
        """Text for PNGs; no path nor name of a file among it."""
        return {"edit": json.dumps(settings, ensure_ascii=False)} if self.metadata else None

    def open(self, steps: Steps | None = None) -> SemanticModel:
        """The semantic model; raises UserError where there is none, or one that cannot walk so many steps."""
        model = SemanticModel.load(model_folder(self.model), device_named(self.device), self.autocast())
        if steps is not None:
            steps.fit(model)
        return model

    def ready(self) -> None:
        """Make the folder for pictures, before anything long is begun."""
        self.out.mkdir(parents=True, exist_ok=True)

    @property
    def directions(self) -> Path:
        """Where the model's directions lie."""
        return model_folder(self.model) / FILE


class Done(NamedTuple):
    """How many pictures were written, and where they are shown together."""

    pictures: int
    sheet: Path

    def __str__(self) -> str:
        return f"{self.pictures} pictures in {self.sheet.parent}, all of them in {self.sheet}"


def change(
    place: Place, image: Path, attributes: Sequence[str], strengths: Sequence[float], line: str | None, steps: Steps
) -> Done:
    """Edit one picture: all attributes at once, or a strip of strengths.

    Without strengths each attribute is moved by the one that is typical for it; one strength counts for all.

    Raises:
        UserError: an unknown attribute, strengths out of range or not one each, no picture, no semantic model.
    """
    steps.refuse()
    if not attributes:
        raise UserError("nothing to change; give at least one --attribute NAME")
    wanted = _refused(attributes, strengths, line)
    model = place.open(steps)
    known = Directions.load(place.directions, key_of(model))
    chosen = [known[name] for name in attributes]
    picture = read_for(model, image)
    z = normalised(model, model.encode(picture))[0]
    rows, captions = _rows([direction.at(z) for direction in chosen], strengths, wanted)
    place.ready()
    code = edits.along(model, edits.read(model, picture, steps.invert), rows)
    shown = torch.cat([picture, edits.drawn(model, code, steps.draw, stop=steps.stop)])
    return saved(place, shown, ["picture", *captions], steps, edits=captions)


def _rows(
    chosen: Sequence[Direction], strengths: Sequence[float], line: Sequence[float] | None
) -> tuple[list[list[Change]], list[str]]:
    """The changes of each picture to draw, and what they are called."""
    if line is not None:
        rows = [[Change(direction, strength) for direction in chosen] for strength in line]
        return rows, [f"{', '.join(d.name for d in chosen)} {strength:+g}" for strength in line]
    given = _spread(strengths, [d.typical for d in chosen])
    changes = [Change(direction, strength) for direction, strength in zip(chosen, given, strict=True)]
    edits.refuse_idle(changes)
    return [[], changes], ["as read", ", ".join(f"{d.name} {strength:+.2g}" for d, strength in changes)]


def _refused(attributes: Sequence[str], strengths: Sequence[float], line: str | None) -> list[float] | None:
    """The strip's strengths, once all that was said of strength is in range."""
    for strength in strengths:
        edits.refuse_strength(strength)
    if len(strengths) not in (0, 1, len(attributes)):
        raise UserError(
            f"{len(attributes)} attributes with {len(strengths)} strengths; expected one each, one for all, or none"
        )
    if line is None:
        return None
    if strengths:
        raise UserError("--strip takes the place of --strength; give one of them")
    found = _numbers(line)
    for strength in found:
        edits.refuse_strength(strength, "--strip")
    return found


def _numbers(line: str) -> list[float]:
    try:
        return [float(part) for part in line.split(",")]
    except ValueError:
        raise UserError(f'--strip is {line!r:.60}; expected numbers such as "-0.3,0,0.3"') from None


def _spread(strengths: Sequence[float], typical: Sequence[float]) -> list[float]:
    if not strengths:
        return [max(-edits.MOST, min(edits.MOST, strength)) for strength in typical]
    return list(strengths) * len(typical) if len(strengths) == 1 else list(strengths)


def mix(place: Place, content: Path, details: Path, steps: Steps) -> Done:
    """What one picture shows with the stochastic details of another."""
    steps.refuse()
    model = place.open(steps)
    both = torch.cat([read_for(model, path) for path in (content, details)])
    place.ready()
    code = edits.read(model, both, steps.invert)
    new = edits.drawn(model, edits.mixed(code.take([0]), code.take([1])), steps.draw, stop=steps.stop)
    return saved(place, torch.cat([both, new]), ["content", "details", "mixed"], steps, mixed=True)


def neighbours(place: Place, image: Path, among: Path, count: int) -> list[tuple[str, float]]:
    """Names and cosines of the pictures most like one, among a folder's or those of an `encode`d file; best first."""
    if count < 1:
        raise UserError(f"--count is {count}; expected 1 or more")
    model = place.open()
    query = model.encode(read_for(model, image))[0].float().cpu()
    if among.is_dir():
        pictures = load_folder(folder_config(model, among))
        names, z = [record.name for record in pictures.records], codes_of(model, pictures)
    else:
        pictures, found = None, Codes.load(among, key_of(model))
        names, z = list(found.names), found.z
    places, cosines = edits.nearest(model, query, z, count)
    if pictures is not None:
        captions = [f"{cosine:.3f}" for cosine in cosines]
        shown = torch.cat([read_for(model, image), pictures.pictures(places)])
        save_sheet(shown, ["picture", *captions], place.out, about=place.about(neighbours=count))
    return [(names[i], cosine) for i, cosine in zip(places, cosines, strict=True)]


def encode(place: Place, images: Path, steps: Steps, *, details: bool = True, batch: int = 32) -> int:
    """Codes of a folder into the file `place.out`; gives how many. Without details x_T is left out."""
    steps.refuse()
    refuse_counts(batch)
    if place.out.suffix != ".safetensors":
        raise UserError(f"--out is {place.out}; expected a file that ends in .safetensors")
    model = place.open()
    found = codes.encode(model, load_folder(folder_config(model, images)), steps.invert if details else None, batch)
    found.save(place.out)
    return len(found.names)


def decode(place: Place, file: Path, steps: Steps, seed: int = 0, batch: int = 32) -> Done:
    """Pictures of an encoded file; where it holds no x_T that is random, from seeds that count up from `seed`."""
    steps.refuse()
    refuse_counts(batch, seed)
    model = place.open()
    steps.fit_drawing(model)
    found = Codes.load(file, key_of(model))
    x_T = model.noise(range(seed, seed + len(found.z))) if found.x_T is None else found.x_T
    place.ready()
    pictures = edits.drawn(model, Code(found.z, x_T), steps.draw, batch, stop=steps.stop)
    captions = [Path(name).stem for name in found.names]
    return saved(place, pictures, captions, steps, columns=8, decoded=len(pictures))


def refuse_counts(batch: int, seed: int = 0) -> None:
    """Refuse a batch of nothing and seeds out of range; raises UserError."""
    if batch < 1:
        raise UserError(f"--batch_size is {batch}; expected 1 or more")
    if not 0 <= seed <= MAX_SEED // 2:
        raise UserError(f"--seed is {seed}; expected 0 to 2^63")


def read_for(model: SemanticModel, path: Path) -> Tensor:
    """The user's picture as the model sees pictures, uint8 [1, C, R, R]; raises UserError where it is none."""
    return read_picture(path, model.resolution, model.channels)[None]


def folder_config(model: Semantic, path: Path) -> FolderConfig:
    """A folder of pictures as the model sees pictures."""
    return FolderConfig.model_validate({"path": path, "resolution": model.resolution, "channels": model.channels})


def saved(
    place: Place,
    pictures: Tensor,
    captions: Sequence[str],
    steps: Steps,
    *,
    columns: int | None = None,
    **settings: Any,
) -> Done:
    """Write pictures and their sheet, with what the PNGs shall say of settings and steps."""
    about = place.about(**settings, invert_steps=steps.invert, **steps.drawing)
    return Done(len(pictures), save_sheet(pictures, captions, place.out, columns=columns, about=about))
