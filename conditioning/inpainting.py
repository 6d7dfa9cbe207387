"""Inpainting: a mask and the masked picture, concatenated to the denoiser's input (Rombach et al. 2022, section 4.5).

The order of the channels (latents, mask, masked latents) and the mask's scaling are those of diffusers'
StableDiffusionInpaintPipeline, which opens such models.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from conditioning.condition import Condition
from conditioning.pictures import IMAGE, MASK, SPACE, Draws, Frame, PictureCondition, Space

_BOXES, _STROKES, _BENDS = 3, 4, 4  # most boxes and strokes of a mask, and straight pieces of a stroke
_SIDE = (0.15, 0.6)  # sides of a box, as shares of the picture's
_RADIUS = (0.04, 0.12)  # half the width of a stroke, as a share of the picture's side
_LENGTH = (0.1, 0.4)  # length of a stroke's piece


class Inpainting(PictureCondition, frozen=True, extra="forbid"):
    """A mask and the masked picture; the masks of training are random boxes, strokes, or the whole picture."""

    kind: Literal["inpainting"] = Field("inpainting", description="a mask and the masked picture")
    boxes: float = Field(0.4, ge=0, le=1, description="share of masks that are 1 to 3 boxes, 15 to 60 % wide and high")
    strokes: float = Field(
        0.4, ge=0, le=1, description="share of masks that are 1 to 4 bent strokes, 8 to 24 % thick; the rest is all"
    )
    space: Space = SPACE

    given: ClassVar[tuple[str, ...]] = (IMAGE, MASK)

    @model_validator(mode="after")
    def _shares(self) -> "Inpainting":
        if self.boxes + self.strokes > 1 + 1e-9:
            raise ValueError(
                f"boxes {self.boxes:g} and strokes {self.strokes:g} are shares of masks; expected at most 1"
            )
        return self

    def channels(self, picture: int, latent: int | None) -> int:
        """Return the channels of the mask, 1, and those of the masked picture."""
        return 1 + (picture if latent is None or self.space == "pixels" else latent)

    def example(self, picture: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Return training pictures [B, C, R, R], and a random mask [B, 1, R, R] of each."""
        return {IMAGE: picture, MASK: random_masks(draws, picture.shape[-1], self.boxes, self.strokes).to(picture)}

    def condition(self, given: Mapping[str, Tensor], frame: Frame, draws: Draws) -> Condition:
        """Return the mask, scaled to its nearest pixels, then the picture with 0 (grey) in the mask."""
        mask = (given[MASK] >= 0.5).to(given[IMAGE])
        masked = frame.maps(given[IMAGE] * (1 - mask), self.space)
        return Condition(concat=torch.cat([F.interpolate(mask, size=frame.size), masked.to(mask)], dim=1))

    def shown(self, given: Mapping[str, Tensor], resolution: int) -> Tensor:
        """Return the pictures with grey in the mask."""
        return given[IMAGE] * (given[MASK] < 0.5)

    def finish(self, pictures: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Return the sampled pictures in the mask, and the given picture, unchanged, outside of it."""
        return torch.where(given[MASK] >= 0.5, pictures, given[IMAGE])


def random_masks(draws: Draws, side: int, boxes: float, strokes: float) -> Tensor:
    """Return random masks, bool [B, 1, side, side]: boxes, strokes, or all of the picture.

    Args:
        draws: random numbers; a sample's mask depends on its own alone.
        side: pixels along each side.
        boxes: share of masks that are boxes.
        strokes: share of masks that are strokes; the rest covers the picture.
    """
    kind = draws.uniform("mask", 1)[:, 0, None, None]
    masks = torch.where(kind < boxes, _boxes(draws, side), kind >= boxes + strokes)
    return torch.where((kind >= boxes) & (kind < boxes + strokes), _strokes(draws, side), masks)[:, None]


def _centres(side: int, like: Tensor) -> Tensor:
    """Return the positions of the pixels' centres along a side, as shares of the side, [side]."""
    return (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5) / side


def _between(limits: tuple[float, float], share: Tensor) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * share


def _boxes(draws: Draws, side: int) -> Tensor:
    """Return masks of 1 to 3 boxes within the picture, bool [B, side, side]."""
    u = draws.uniform("mask boxes", 1 + 4 * _BOXES)
    numbers, u = u[:, :1], u[:, 1:].reshape(len(u), _BOXES, 4)
    size = _between(_SIDE, u[..., :2])
    low = u[..., 2:] * (1 - size)
    centre = _centres(side, u)
    inside = (centre >= low[..., None]) & (centre < (low + size)[..., None])  # [B, boxes, 2, side]
    present = torch.arange(_BOXES, device=u.device) < 1 + (numbers * _BOXES).floor()
    return (inside[:, :, 0, :, None] & inside[:, :, 1, None, :] & present[..., None, None]).any(1)


def _strokes(draws: Draws, side: int) -> Tensor:
    """Return masks of 1 to 4 strokes, each a chain of straight pieces with round ends, bool [B, side, side]."""
    u = draws.uniform("mask strokes", 1 + _STROKES * (3 + 2 * _BENDS))
    numbers, u = u[:, 0], u[:, 1:].reshape(len(u), _STROKES, 3 + 2 * _BENDS)
    centre = _centres(side, u)
    covered = torch.zeros(len(u), side, side, dtype=torch.bool, device=u.device)
    for stroke in range(_STROKES):
        present = stroke < 1 + (numbers * _STROKES).floor()
        y, x, angle = u[:, stroke, 0], u[:, stroke, 1], torch.zeros_like(numbers)
        radius = _between(_RADIUS, u[:, stroke, 2])
        for bend in range(_BENDS):
            turn, share = u[:, stroke, 3 + 2 * bend], u[:, stroke, 4 + 2 * bend]
            angle = angle + (2 * torch.pi if bend == 0 else torch.pi) * (turn - 0.5)
            length = _between(_LENGTH, share)
            y_end, x_end = (y + length * angle.sin()).clamp(0, 1), (x + length * angle.cos()).clamp(0, 1)
            near = _distance(centre, (y, x), (y_end, x_end)) <= radius[:, None, None]
            covered |= near & present[:, None, None]
            y, x = y_end, x_end
    return covered


def _distance(centre: Tensor, start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]) -> Tensor:
    """Return the distance [B, side, side] of each pixel from the straight line between two points.

    Args:
        centre: positions of the pixels along a side, [side].
        start: y and x of one end, [B] each.
        end: y and x of the other end.
    """
    (y, x), (to_y, to_x) = ([value[:, None, None] for value in point] for point in (start, end))
    dy, dx = to_y - y, to_x - x
    from_y, from_x = centre[None, :, None] - y, centre[None, None, :] - x
    share = ((from_y * dy + from_x * dx) / (dy.square() + dx.square()).clamp_min(1e-12)).clamp(0, 1)
    return ((from_y - share * dy).square() + (from_x - share * dx).square()).sqrt()
