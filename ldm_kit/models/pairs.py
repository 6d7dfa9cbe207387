"""Attribute edits that depend on the picture, learned from pairs of pictures that differ in one attribute alone.

A pair's step is the difference of its two normalised codes. One step for all pictures is too simple where an attribute
changes different things: what turns a man's face into a woman's does nothing for a figure seen from afar. Here the step
for a picture is a weighted mean of all pairs' steps, and pairs that are more similar to the picture weigh more. This is
a kernel regression (Nadaraya 1964, Watson 1964) on the cosine similarity of normalised codes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ldm_kit.data.batches import spread

TEMPERATURES = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.3, 1.0)  # tried for the softmax; at 1 all pairs weigh about alike
MAX_PAIRS = 1000  # most pairs that are kept and saved


class PairDirections(NamedTuple):
    """P pairs of normalised codes, and the temperature of the softmax that weights the pairs by similarity."""

    before: Tensor  # [P, D], codes of the pairs' first pictures
    after: Tensor  # [P, D], codes of the pairs' second pictures, row by row
    temperature: float  # temperature of the softmax; lower: the most similar pairs weigh more

    def step(self, z: Tensor) -> Tensor:
        """Return for each normalised code of z [N, D] the weighted mean of the steps `after - before`, [N, D].

        The weights are the softmax over pairs of cosine(z, before) / temperature.
        """
        return _weights(_cosines(z, self.before), self.temperature) @ (self.after - self.before)

    def reverse(self) -> "PairDirections":
        """Return the pairs with `before` and `after` exchanged, for the opposite edit."""
        return PairDirections(self.after, self.before, self.temperature)


def pair_directions(before: Tensor, after: Tensor) -> PairDirections:
    """Choose the temperature with which each pair's step is best predicted from the other pairs (leave-one-out).

    Of more than `MAX_PAIRS` pairs evenly spaced rows are kept, as neighbouring rows of a table are often alike.

    Args:
        before: normalised codes [P, D] of the pairs' first pictures, P at least 2.
        after: normalised codes [P, D] of the pairs' second pictures.

    Returns:
        The pairs that were kept, and that one of `TEMPERATURES` with the least squared error.
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
