"""Overlap of two sets of features, by neighbourhoods: precision and recall, density and coverage.

Features are [N, D] and [M, D], computed beforehand by any network. All values are computed in float64 on the CPU. They
are comparable only for the same features of the same references and the same numbers of pictures. Published figures are
those of VGG-16 features.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_kit.metrics.moments import finite_pair

_TIE = 1e-12  # squared distances this close are equal; features are scaled to a mean squared length of 1
_ELEMENTS = 2**24  # numbers of a block of distances, 128 MiB


class PrecisionRecall(NamedTuple):
    """Improved precision and recall."""

    precision: float  # share of generated pictures that are like a reference, in [0, 1]
    recall: float  # share of references that are like a generated picture, in [0, 1]


class DensityCoverage(NamedTuple):
    """Density and coverage."""

    density: float  # mean number of neighbourhoods of references that hold a generated picture, / k; may exceed 1
    coverage: float  # share of references that have a generated picture in their neighbourhood, in [0, 1]


class Similar(NamedTuple):
    """Which pictures of each of two sets are like those of the other set."""

    generated: Tensor  # bool [N]; precision is their share
    references: Tensor  # bool [M]; recall is their share


def precision_recall(generated: Tensor, references: Tensor, k: int = 3) -> PrecisionRecall:
    """Return improved precision and recall (Kynkäänniemi et al. 2019, eq. 1 and 2).

    Precision is the share of generated pictures that are like the references, recall the share of references that are
    like the generated pictures; see `similar` for arguments and errors.
    """
    return PrecisionRecall(*(mask.double().mean().item() for mask in similar(generated, references, k)))


def similar(generated: Tensor, references: Tensor, k: int = 3) -> Similar:
    """Return which pictures of each set are like those of the other (Kynkäänniemi et al. 2019, eq. 1).

    A picture is like those of a set if it is within the distance of one of them to that one's k-th nearest neighbour in
    the set. Distances that are equal count as within.

    Args:
        generated: features of generated pictures, [N, D].
        references: features of reference pictures, [M, D]. Published figures use N = M = 50,000.
        k: number of the neighbour.

    Raises:
        ValueError: features are not finite numbers [N, D] and [M, D], or a set has k features or fewer.
    """
    a, b = _scaled_pair(generated, references, k)
    return Similar(_within(a, b, _radii(b, k)), _within(b, a, _radii(a, k)))


def density_coverage(generated: Tensor, references: Tensor, k: int = 5) -> DensityCoverage:
    """Return density and coverage (Naeem et al. 2020, eq. 3 and 4).

    Density is the number of neighbourhoods that hold a generated picture, divided by k, averaged over generated
    pictures; coverage is the share of references with a generated picture in their neighbourhood. For generated
    pictures with the references' distribution density is 1 on average, and coverage 1 - 2^-k for as many pictures as
    references. See `density_coverage_of_draws` for neighbourhoods, arguments and errors.
    """
    counts = torch.ones(1, len(generated), dtype=torch.long)
    densities, coverage = density_coverage_of_draws(generated, references, counts, k)
    return DensityCoverage(densities.mean().item(), coverage.item())


class DrawnDensityCoverage(NamedTuple):
    """Density of each generated picture, and coverage of each draw."""

    densities: Tensor  # float64 [N], number of neighbourhoods that hold the picture, / k; density is their mean
    coverage: Tensor  # float64 [B], share of references that have a picture of the draw in their neighbourhood


def density_coverage_of_draws(
    generated: Tensor, references: Tensor, counts: Tensor, k: int = 5
) -> DrawnDensityCoverage:
    """Return density and coverage (see `density_coverage`) for B draws of generated pictures.

    The neighbourhood of a reference is the open ball to its k-th nearest neighbour among the references. Which pictures
    are in which neighbourhoods is not kept: memory grows with N + B M, not with N M.

    Args:
        generated: features of generated pictures, [N, D].
        references: features of reference pictures, [M, D].
        counts: int64 [B, N], how often each generated picture is in each draw.
        k: number of the neighbour.

    Raises:
        ValueError: features are not finite numbers [N, D] and [M, D], or a set has k features or fewer.
    """
    a, b = _scaled_pair(generated, references, k)
    radii, drawn = _radii(b, k), (counts > 0).float()
    covered = torch.zeros(len(counts), len(b), dtype=torch.bool)
    densities: list[Tensor] = []
    first = 0
    for block in _squared_distances(a, b):
        inside = block < radii - _TIE
        densities.append(inside.sum(1).double() / k)
        covered |= drawn[:, first : first + len(block)] @ inside.float() > 0
        first += len(block)
    return DrawnDensityCoverage(torch.cat(densities), covered.double().mean(1))


def _within(points: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """Return bool [N]: whether points [N, D] are within a squared radius [M] of one of the centres [M, D]."""
    return torch.cat([(block <= radii + _TIE).any(1) for block in _squared_distances(points, centres)])


def _radii(rows: Tensor, k: int) -> Tensor:
    """Return the squared distance of each of rows [N, D] to its k-th nearest among the others, [N]."""
    radii: list[Tensor] = []
    first = 0
    for block in _squared_distances(rows, rows):
        block.diagonal(first).fill_(torch.inf)  # the distance of a row to itself
        radii.append(block.kthvalue(k, dim=1).values)
        first += len(block)
    return torch.cat(radii)


def _squared_distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Yield the squared distances of some rows of a [N, D] at a time to all rows of b [M, D]."""
    lengths = b.square().sum(1)
    for block in a.split(max(1, _ELEMENTS // len(b))):
        yield (block.square().sum(1)[:, None] + lengths - 2 * block @ b.T).clamp_min(0)


def _scaled_pair(generated: Tensor, references: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return both sets shifted and scaled alike, so that references have mean 0 and mean squared length 1."""
    if k < 1:
        raise ValueError(f"expected a number of neighbours of at least 1, got {k}")
    a, b = finite_pair(generated, references, k + 1)
    centre = b.mean(0)
    length = (b - centre).square().sum(1).mean().sqrt().clamp_min(1e-300)
    return (a - centre) / length, (b - centre) / length
