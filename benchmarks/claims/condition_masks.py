"""Masks of the benchmark of inpainting, and what is measured of an inpainted picture whose truth is known."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from benchmarks.claims.condition_data import COLOURS, FACES, NAMED, Group
from conditioning.inpainting import random_masks
from ldm_kit.data.faces.dataset import load
from ldm_kit.data.factors import FactorSet, known_factors
from ldm_kit.data.images import subset, to_unit
from ldm_kit.diffusion.rng import SeedDraws

UPPER, LOWER = 0.8, 0.45  # the upper mask ends, and the lower begins, at such a share of the height
KINDS = ("upper", "lower", "boxes")  # of masks, which the pictures have in turn


def inpainting_masks(count: int, side: int) -> Tensor:
    """Return masks of pictures, bool [count, side, side], True where a picture is made anew; KINDS in turn.

    upper and lower are all of the rows above or below a share of the height, boxes 1 to 3 random boxes as in training.
    """
    masks = random_masks(SeedDraws(range(count)), side, boxes=1, strokes=0)[:, 0]
    rows = (torch.arange(side) + 0.5) / side
    for first, chosen in enumerate((rows < UPPER, rows > LOWER)):
        masks[first :: len(KINDS)] = chosen[:, None]
    return masks


@cache
def factor_extents(group: Group, count: int) -> Tensor:
    """Return where each factor of NAMED is to be seen in held-out faces, bool [count, F, R, R].

    These are the pixels that differ between a face and the exact picture of it with another value of the factor.
    """
    pictures = load(FACES).heldout
    rows = [i for i, record in enumerate(pictures.records) if record.fields["hair colour"] in COLOURS[group]]
    known = known_factors(subset(pictures, rows[:count]))
    return torch.stack([extents_of(known, i, NAMED) for i in range(len(known))])


def extents_of(pictures: FactorSet, index: int, factors: Sequence[str]) -> Tensor:
    """Return the pixels of a picture that depend on each of F factors, bool [F, R, R]."""
    picture, values = pictures.picture(index), pictures.values(index)
    extents: list[Tensor] = []
    for factor in factors:
        others = [value for value in pictures.factors[factor] if value != values[factor]]
        edited = torch.stack([pictures.counterpart(index, factor, value) for value in others])
        extents.append((edited != picture).flatten(0, 1).any(0))
    return torch.stack(extents)


def covered(extents: Tensor, masks: Tensor) -> Tensor:
    """Return which factors lie wholly in the masks, bool [N, F]: no pixel outside of a mask says their value.

    Args:
        extents: bool [N, F, R, R], the pixels that depend on each factor.
        masks: bool [N, R, R].
    """
    return ~(extents & ~masks[:, None]).flatten(2).any(2) & extents.flatten(2).any(2)


def masked_mse(truth: Tensor, made: Tensor, masks: Tensor) -> Tensor:
    """Return the mean squared error of each picture within its mask, float64 [N], of pixels in 0..1.

    Args:
        truth: uint8 [N, C, R, R].
        made: the same.
        masks: bool [N, R, R], at least one pixel True in each.
    """
    error = ((to_unit(truth).double() - to_unit(made).double()) / 2).square().mean(1)
    return (error * masks).flatten(1).sum(1) / masks.flatten(1).sum(1)


def border_contrast(pictures: Tensor, masks: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbours of which one is in the mask and one is not, float64 [N].

    Neighbours touch at a side. A mask without such pixels, all of a picture, has 0.

    Args:
        pictures: uint8 [N, C, R, R], compared as numbers in 0..1.
        masks: bool [N, R, R].
    """
    x = pictures.double() / 255
    total, count = torch.zeros(len(x), dtype=torch.float64), torch.zeros(len(x), dtype=torch.float64)
    for axis in (-1, -2):
        border = masks.diff(dim=axis)  # of bool: whether two neighbours differ
        total += (x.diff(dim=axis).abs().mean(1) * border).flatten(1).sum(1)
        count += border.flatten(1).sum(1)
    return total / count.clamp_min(1)


def border_ratio(truth: Tensor, made: Tensor, masks: Tensor) -> float:
    """Return the contrast at the masks' borders in pictures as a multiple of the true pictures'; 1 is as true.

    Above 1 the border stands out; below 1 it is smoother than the truth. Arguments are those of `masked_mse`.
    """
    return float(border_contrast(made, masks).mean() / border_contrast(truth, masks).mean())
