"""Steps that depend on the picture: what changes with an attribute in the pictures that are most like it.

One step for all pictures is too simple where an attribute changes different things: what makes a man's face a woman's
does nothing for a figure seen from afar. Here each pair of counterparts votes for its own step, the more the liker it
is to the picture (a kernel regression, Nadaraya 1964 and Watson 1964, on the cosine of normalised codes).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ldm_kit.data.batches import spread

TEMPERATURES = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.3, 1.0)  # of a softmax of cosines; the last is nearly the mean
MOST = 1000  # pairs that are kept


class PairDirections(NamedTuple):
    """Normalised codes of pictures that differ in an attribute alone, row by row, and how local their votes are."""

    before: Tensor  # [P, D]
    after: Tensor  # [P, D]
    temperature: float

    def step(self, z: Tensor) -> Tensor:
        """From normalised codes [N, D] to where their counterparts should be, [N, D]."""
        return _votes(_cosines(z, self.before), self.temperature) @ (self.after - self.before)

    def back(self) -> "PairDirections":
        """The other way."""
        return PairDirections(self.after, self.before, self.temperature)


def pair_directions(before: Tensor, after: Tensor) -> PairDirections:
    """Of codes [P, D], P at least 2; the temperature is the one that best foretells pairs left out one at a time."""
    kept = spread(len(before), MOST)  # of all of them, for neighbours in a table are often alike
    before, after = before[kept].float(), after[kept].float()
    likeness = _cosines(before, before).fill_diagonal_(-torch.inf)
    steps = after - before

    def error(temperature: float) -> float:
        return float((_votes(likeness, temperature) @ steps - steps).square().sum())

    return PairDirections(before, after, min(TEMPERATURES, key=error))


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.normalize(a.float(), dim=1) @ torch.nn.functional.normalize(b.float(), dim=1).T


def _votes(likeness: Tensor, temperature: float) -> Tensor:
    return (likeness / temperature).softmax(1)
