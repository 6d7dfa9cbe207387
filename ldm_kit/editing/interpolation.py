"""`edit.py interpolate`: pictures between two, by their codes or along PDAE's trajectories."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.editing import operations
from ldm_kit.editing.context import EditContext, EditResult, Steps, read_image_for, save_result
from ldm_kit.editing.image_io import save_animation
from ldm_kit.models.decoders import TrajectoryTarget
from ldm_kit.models.protocol import Code, Semantic
from ldm_kit.models.semantic import SemanticModel


@dataclass(frozen=True)
class InterpolationOptions:
    """How to go from one picture to another.

    `latent`: z on a line and x_T on a great circle. `trajectory`, PDAE's: the same x_T, and at every step the gradients
    under both pictures' codes in between (Zhang et al. 2022).
    """

    count: int = 8  # pictures, both ends among them
    along: Literal["latent", "trajectory"] = "latent"
    morph: Path | None = None
    duration: int = 80  # of a frame, in milliseconds

    def refuse(self) -> None:
        """Refuse a journey without a way; raises UserError."""
        if self.count < 2:
            raise UserError(f"--count is {self.count}; expected 2 or more, the two ends being the pictures as read")

    def fit(self, model: SemanticModel) -> None:
        """Refuse trajectories of a model that has no gradients; raises UserError."""
        if self.along == "trajectory" and not model.decoder.stops:
            raise UserError(
                "--along trajectory mixes the gradients that a PDAE adds to its frozen model, and this model has none; "
                "expected --along latent"
            )


def interpolate(place: EditContext, images: Sequence[Path], how: InterpolationOptions, steps: Steps) -> EditResult:
    """Pictures between two, both among them, and an animation of them if wished.

    Raises:
        UserError: not two pictures, numbers out of range, or a way that the model does not know.
    """
    steps.refuse()
    if len(images) != 2:
        raise UserError(f"got {len(images)} pictures; expected two, each by its own --image")
    how.refuse()
    model = place.open(steps)
    how.fit(model)
    both = torch.cat([read_image_for(model, image) for image in images])
    place.ready()
    frames = interpolated_codes(model, operations.encode(model, both, steps.invert), how, steps)
    if how.morph is not None:
        save_animation(frames, how.morph, how.duration)
    captions = [f"{i / (how.count - 1):.0%}" for i in range(how.count)]
    shown = torch.cat([both[:1], frames, both[1:]])
    return save_result(place, shown, ["first", *captions, "last"], steps, interpolated=how.count, along=how.along)


def interpolated_codes(model: Semantic, ends: Code, how: InterpolationOptions, steps: Steps) -> Tensor:
    """Pictures uint8 [count, C, R, R] from the first of two codes to the second."""
    first, last = ends.take([0]), ends.take([1])
    code = operations.interpolate(first, last, how.count)
    if how.along == "latent":
        return operations.decode(model, code, steps.draw, stop=steps.stop)
    towards = TrajectoryTarget(last.z.expand(how.count, -1), torch.linspace(0, 1, how.count))
    start = Code(first.z.expand(how.count, -1), code.x_T)
    return operations.decode(model, start, steps.draw, stop=steps.stop, towards=towards)
