"""Attribute steps that depend on the picture, learned from pairs of pictures that differ in the attribute alone.

A single step for all pictures is too simple where an attribute changes different things: what turns a man's face into
a woman's does nothing for a figure seen from afar. Here the step at a picture is a weighted mean of the pairs' steps,
and pairs that are more similar to the picture have more weight (a kernel regression, Nadaraya 1964 and Watson 1964, on
the cosine of normalised codes).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ldm_kit.data.batches import spread

TEMPERATURES = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.3, 1.0)  # of a softmax of cosines; the last is nearly the mean
MAX_PAIRS = 1000  # that are saved


class PairDirections(NamedTuple):
    """Normalised codes of P pairs, row by row, and the temperature of the softmax that weights them."""

    before: Tensor  # [P, D]
    after: Tensor  # [P, D]
    temperature: float

    def step(self, z: Tensor) -> Tensor:
        """Return the weighted mean step [N, D] at normalised codes [N, D]."""
        return _weights(_cosines(z, self.before), self.temperature) @ (self.after - self.before)

    def reverse(self) -> "PairDirections":
        """Return the pairs with both sides exchanged."""
        return PairDirections(self.after, self.before, self.temperature)


def pair_directions(before: Tensor, after: Tensor) -> PairDirections:
    """Fit the temperature to pairs of normalised codes [P, D], P at least 2, by leave-one-out prediction.

    Of more than `MAX_PAIRS` pairs an evenly spread selection is taken, as neighbouring rows of a table are often alike.
    """
    rows = spread(len(before), MAX_PAIRS)
    before, after = before[rows].float(), after[rows].float()
    similarity = _cosines(before, before).fill_diagonal_(-torch.inf)
    steps = after - before

    def error(temperature: float) -> float:
        return float((_weights(similarity, temperature) @ steps - steps).square().sum())

    return PairDirections(before, after, min(TEMPERATURES, key=error))


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.normalize(a.float(), dim=1) @ torch.nn.functional.normalize(b.float(), dim=1).T


def _weights(similarity: Tensor, temperature: float) -> Tensor:
    return (similarity / temperature).softmax(1)
