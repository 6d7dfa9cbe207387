"""Linear classifiers of an attribute of pictures, on normalised semantic codes z: log-odds weight . z + bias."""

from typing import NamedTuple

import torch
from torch import Tensor


class Fit(NamedTuple):
    """A linear classifier with weight [D]: the log-odds that a code z has the attribute are weight . z + bias."""

    weight: Tensor
    bias: float

    def logit(self, z: Tensor) -> Tensor:
        """Return the log-odds, float64 [N], that normalised codes z [N, D] have the attribute."""
        return z.double() @ self.weight + self.bias

    @property
    def unit(self) -> Tensor:
        """The weight [D] scaled to length 1."""
        return self.weight / self.weight.norm()


def linear_discriminant(mean: Tensor, other: Tensor, covariance: Tensor | None = None) -> Fit:
    """Return Fisher's linear discriminant of two classes, whose log-odds are 0 half-way between the two means.

    Args:
        mean: mean code of the class with the attribute, float64 [D].
        other: mean code of the class without the attribute, float64 [D].
        covariance: covariance [D, D] that both classes share; None: the identity, so that the weight is mean - other.
    """
    gap = mean - other
    weight = gap if covariance is None else torch.linalg.solve(covariance, gap)
    return Fit(weight, -float(weight @ (mean + other)) / 2)


def mean_difference(before: Tensor, after: Tensor) -> Fit:
    """Return the linear classifier of `after` against `before`; its weight is mean(after) - mean(before).

    The log-odds are 0 half-way between the two means. If row i of both tensors belongs to one pair of pictures, the
    weight is the mean difference within the pairs.

    Args:
        before: normalised codes [N, D] without the attribute.
        after: normalised codes [M, D] with the attribute.
    """
    return linear_discriminant(after.double().mean(0), before.double().mean(0))
