"""Memorisation: how near generated pictures are to training pictures, compared with pictures that were held out.

A model that copies its training pictures samples closer to them than new pictures of the same kind lie (Carlini et al.
2023, "Extracting Training Data from Diffusion Models", compare a distance with those to further training pictures; here
held-out pictures calibrate it).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

ALPHA = 0.5  # a copy is nearer than this share of nearly all held-out pictures' distances (the paper's factor alpha)
QUANTILE = 0.01  # share of the held-out pictures that "nearly all" leaves out, the nearest ones


class Nearest(NamedTuple):
    """The k nearest training pictures of N pictures, the nearest first."""

    distances: Tensor  # float64 [N, k], Euclidean
    indices: Tensor  # int64 [N, k]

    @property
    def ratios(self) -> Tensor:
        """Distance to the nearest, divided by that to the second nearest, [N] in [0, 1]; 0 if the nearest is equal."""
        first, second = self.distances[:, 0], self.distances[:, 1]
        return torch.where(first == 0, 0.0, first / second)


def nearest(queries: Tensor, training: Iterable[Tensor], k: int = 3) -> Nearest:
    """Find the nearest training pictures.

    Args:
        queries: features or pixels of N pictures, [N, D].
        training: those of the training pictures, in parts [m, D], whose number together is at least k. Only one part is
            in memory at a time.
        k: number of training pictures to find.

    Raises:
        ValueError: there are fewer than k training pictures.
    """
    first, best, closest = 0, torch.zeros(len(queries), 0).double(), torch.zeros(len(queries), 0).long()
    for batch in training:
        mode = "donot_use_mm_for_euclid_dist"  # by differences, so that distances are exact near 0
        distances = torch.cdist(queries.float(), batch.float(), compute_mode=mode).double()
        indices = torch.arange(first, first + len(batch)).expand(len(queries), -1)
        best, closest = torch.cat([best, distances], 1), torch.cat([closest, indices], 1)
        best, order = best.sort(dim=1, stable=True)
        best, closest, first = best[:, :k], closest.gather(1, order[:, :k]), first + len(batch)
    if first < k:
        raise ValueError(f"expected at least {k} training pictures, got {first}")
    return Nearest(best, closest)


@dataclass(frozen=True, eq=False)
class Memorisation:
    """Distances of samples to their nearest training pictures, and the same of held-out pictures, in one space.

    Args:
        samples: the nearest training pictures of N samples.
        heldout: those of H held-out pictures.
    """

    samples: Nearest
    heldout: Nearest

    @property
    def threshold(self) -> float:
        """Distance below which a sample counts as a copy: half of that which 99 % of the held-out pictures exceed."""
        return ALPHA * self.heldout.distances[:, 0].quantile(QUANTILE).item()

    @property
    def copies(self) -> Tensor:
        """Which samples count as copies, bool [N]: those nearer than `threshold`, and those equal to a picture."""
        nearest_one = self.samples.distances[:, 0]
        return (nearest_one < self.threshold) | (nearest_one == 0)

    @property
    def nearer_than_median(self) -> float:
        """Share of samples that are nearer than the median held-out picture; 0.5 for a model that memorises nothing."""
        median = self.heldout.distances[:, 0].quantile(0.5)
        return (self.samples.distances[:, 0] < median).double().mean().item()

    @property
    def auroc(self) -> float:
        """Probability that a sample is nearer than a held-out picture, ties counted as half; 0.5: none is memorised."""
        a, b = self.samples.distances[:, 0].contiguous(), self.heldout.distances[:, 0].sort().values
        above = len(b) - torch.searchsorted(b, a, right=True)
        equal = torch.searchsorted(b, a, right=True) - torch.searchsorted(b, a)
        return ((above + 0.5 * equal).double().mean() / len(b)).item()
