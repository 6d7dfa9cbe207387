"""What every task of editing needs: the model and where its results go, how many steps, how to read and save."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.folder import FolderConfig
from ldm_kit.editing.image_io import read_picture, save_sheet
from ldm_kit.inference.generate import PRECISIONS
from ldm_kit.models.directions import FILE
from ldm_kit.models.folder import device_named, model_folder
from ldm_kit.models.protocol import Semantic
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.viz.png import MAX_SEED


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
class EditContext:
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


class EditResult(NamedTuple):
    """How many pictures were written, and where they are shown together."""

    pictures: int
    sheet: Path

    def __str__(self) -> str:
        return f"{self.pictures} pictures in {self.sheet.parent}, all of them in {self.sheet}"


def check_counts(batch: int, seed: int = 0) -> None:
    """Refuse a batch of nothing and seeds out of range; raises UserError."""
    if batch < 1:
        raise UserError(f"--batch_size is {batch}; expected 1 or more")
    if not 0 <= seed <= MAX_SEED // 2:
        raise UserError(f"--seed is {seed}; expected 0 to 2^63")


def read_image_for(model: SemanticModel, path: Path) -> Tensor:
    """The user's picture as the model sees pictures, uint8 [1, C, R, R]; raises UserError where it is none."""
    return read_picture(path, model.resolution, model.channels)[None]


def folder_config(model: Semantic, path: Path) -> FolderConfig:
    """A folder of pictures as the model sees pictures."""
    return FolderConfig.model_validate({"path": path, "resolution": model.resolution, "channels": model.channels})


def save_result(
    place: EditContext,
    pictures: Tensor,
    captions: Sequence[str],
    steps: Steps,
    *,
    columns: int | None = None,
    **settings: Any,
) -> EditResult:
    """Write pictures and their sheet, with what the PNGs shall say of settings and steps."""
    about = place.about(**settings, invert_steps=steps.invert, **steps.drawing)
    return EditResult(len(pictures), save_sheet(pictures, captions, place.out, columns=columns, about=about))
