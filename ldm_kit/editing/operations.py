"""Editing a picture by its codes: along attributes, towards another picture, with another's details; and its like."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.diffusion.pdae import shift_codes, slerp
from ldm_kit.models.decoders import TrajectoryTarget
from ldm_kit.models.directions import Direction
from ldm_kit.models.protocol import Code, Semantic, statistics, step_bar

MOST = 1.0  # strength that is still an edit: as far from the picture as a typical picture is from the mean
SENSIBLE = "-0.5 to 0.5 is sensible, 0.3 is typical"


class Change(NamedTuple):
    """How far to go along a direction."""

    direction: Direction
    strength: float


def encode(model: Semantic, pictures: Tensor, steps: int = 250) -> Code:
    """Codes of pictures uint8 [N, C, R, R], the stochastic one by `steps` of inversion, on the CPU."""
    z = model.encode(pictures)
    with step_bar("inverting") as tell:
        x_T = model.invert(pictures, z, steps=steps, progress=tell)
    return Code(z.float().cpu(), x_T.float().cpu())


def decode(
    model: Semantic,
    code: Code,
    steps: int = 100,
    batch: int = 32,
    *,
    stop: float = 0.0,
    towards: TrajectoryTarget | None = None,
) -> Tensor:
    """Pictures uint8 [N, C, R, R] of codes, with a progress bar; `stop` and `towards` are for a PDAE."""
    with step_bar("drawing") as tell:
        return model.decode(code.z, code.x_T, steps, batch, stop, towards=towards, progress=tell)


def check_strength(strength: float, flag: str = "--strength") -> None:
    """Refuse what is no number, or too far; raises UserError."""
    if not (math.isfinite(strength) and abs(strength) <= MOST):
        raise UserError(f"{flag} is {strength:g}; expected -{MOST:g} to {MOST:g}, where {SENSIBLE}")


def check_not_idle(changes: Sequence[Change]) -> None:
    """Refuse an edit that would give the same picture again; raises UserError."""
    if all(change.strength == 0 for change in changes):
        raise UserError(f"--strength 0 changes nothing; expected another number, {SENSIBLE}")


def move_codes(model: Semantic, z: Tensor, changes: Sequence[Change]) -> Tensor:
    """Codes [N, D] after all changes, whose order does not matter (Preechakul et al. 2022)."""
    mean, std = statistics(model)
    for direction, strength in changes:
        z = shift_codes(z, direction.vector, strength, mean, std)
    return z


def apply_edits(model: Semantic, code: Code, rows: Sequence[Sequence[Change]]) -> Code:
    """One picture's code [1, D], moved by each row of changes: z [K, D] beside the same x_T K times."""
    z = torch.cat([move_codes(model, code.z, row) for row in rows])
    return Code(z, code.x_T.expand(len(z), *code.x_T.shape[1:]))


def interpolate(first: Code, last: Code, count: int) -> Code:
    """`count` codes from one picture to another, both ends among them: z on a line, x_T on a great circle."""
    weights = torch.linspace(0, 1, count)
    z = torch.lerp(first.z.expand(count, -1), last.z.expand(count, -1), weights[:, None])
    shape = (count, *first.x_T.shape[1:])
    return Code(z, slerp(first.x_T.expand(shape), last.x_T.expand(shape), weights))


def mix_codes(content: Code, details: Code) -> Code:
    """What the one shows (z) with the other's details (x_T)."""
    return Code(content.z, details.x_T)


def nearest(model: Semantic, query: Tensor, z: Tensor, count: int) -> tuple[list[int], list[float]]:
    """Places of the `count` codes z [N, D] that are most like a query [D], and their cosines, best first.

    Compared in the normalised space, where no dimension outweighs the others.
    """
    mean, std = statistics(model)
    cosines = torch.cosine_similarity(((query - mean) / std)[None], (z - mean) / std, dim=1)
    found = cosines.topk(min(count, len(z)))
    return found.indices.tolist(), found.values.tolist()
