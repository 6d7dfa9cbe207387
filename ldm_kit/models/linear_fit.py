"""Linear classifiers of normalised codes: the log-odds weight . z + bias of an attribute."""

from typing import NamedTuple

import torch
from torch import Tensor


class Fit(NamedTuple):
    """A weight [D] and a bias: the log-odds of a code z are weight . z + bias."""

    weight: Tensor
    bias: float

    def logit(self, z: Tensor) -> Tensor:
        """Return the log-odds [N], float64, of codes z [N, D]."""
        return z.double() @ self.weight + self.bias

    @property
    def unit(self) -> Tensor:
        """The weight [D] scaled to length 1."""
        return self.weight / self.weight.norm()


def linear_discriminant(mean: Tensor, other: Tensor, covariance: Tensor | None = None) -> Fit:
    """Return Fisher's discriminant of two classes with a shared covariance, zero half-way between the means.

    Args:
        mean: of the class with the attribute, [D] float64.
        other: of the class without it, [D] float64.
        covariance: of both classes, [D, D]; None: the identity, so that the weight is the difference of the means.
    """
    gap = mean - other
    weight = gap if covariance is None else torch.linalg.solve(covariance, gap)
    return Fit(weight, -float(weight @ (mean + other)) / 2)


def mean_difference(before: Tensor, after: Tensor) -> Fit:
    """Return the fit from the mean of codes [N, D] to the mean of others [M, D].

    For pairs in the same order it is their mean step.
    """
    return linear_discriminant(after.double().mean(0), before.double().mean(0))
