"""Estimators of attribute directions in the space of normalised codes: logistic regression and linear discriminants.

Codes z are [N, D], with mean 0 and standard deviation 1 in each dimension over the training set. Everything is computed
in float64 and without random numbers.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from ldm_kit.models.linear_fit import Fit, linear_discriminant

DECAY = 1e-2  # weight decay of the classifier: enough for separable classes, negligible against the data elsewhere
FOLDS = 20  # most folds of each class in cross-validation


class Score(NamedTuple):
    """How well a direction classifies held-out pictures: area under the ROC curve (AUROC) and average precision.

    Both are from 0 to 1. Guessing gives an AUROC of 0.5, and the fraction of positives as average precision. Both are
    None if there are too few pictures with the attribute, or without it, to measure them.
    """

    auroc: float | None = None
    average_precision: float | None = None


def classifier(z: Tensor, positive: Tensor, decay: float = DECAY) -> Fit:
    """Fit a logistic regression of labels on codes by L-BFGS; the loss is mean cross-entropy plus decay / 2 |weight|^2.

    The weight is DiffAE's direction (Preechakul et al. 2022, section 5.2). Attributes that are correlated with the
    label change this direction less than they change a difference of means, because they help little to classify.

    Args:
        z: normalised codes [N, D].
        positive: labels, bool [N].
        decay: strength of the penalty on the weight.

    Returns:
        Weight [D] and bias of the classifier.

    Raises:
        ValueError: all labels are equal.
    """
    if bool(positive.all()) or not bool(positive.any()):
        raise ValueError("a direction needs examples both with and without the attribute; got one kind only")
    z, target = z.double(), positive.double()
    with torch.enable_grad():
        weight, bias = (torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (z.shape[1], 1))
        tolerances = {"max_iter": 1000, "tolerance_grad": 1e-9, "tolerance_change": 1e-14}
        optimizer = torch.optim.LBFGS([weight, bias], **tolerances, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(z @ weight + bias, target)
            total = cross_entropy + decay / 2 * weight.square().sum()
            total.backward()
            return total

        optimizer.step(loss)  # pyright: ignore[reportArgumentType]  (a Tensor will do)
    return Fit(weight.detach(), float(bias.detach()))


def few_shot(positives: Tensor, others: Tensor | None = None) -> Fit:
    """Fit a linear discriminant with a shrunk covariance to about a dozen pictures with an attribute, against others.

    The others may be pictures without the attribute, or unlabelled ones: an unlabelled picture that has the attribute
    shortens the difference of the two means, but does not turn it. Both classes share one covariance,
    shrunk towards a multiple of the identity (Chen et al. 2010, eq. 23). With few examples it is shrunk completely, to
    a multiple of the identity: the direction is then the difference of the means.

    Args:
        positives: normalised codes [N, D] of pictures with the attribute.
        others: normalised codes [M, D] of other pictures; None: the training set, with mean 0 and the identity as
            covariance.

    Returns:
        Weight [D] and bias of the classifier; the weight is the attribute's direction.
    """
    positives = positives.double()
    if others is None:
        return linear_discriminant(positives.mean(0), torch.zeros_like(positives[0]))
    others = others.double()
    centred = torch.cat([positives - positives.mean(0), others - others.mean(0)])
    return linear_discriminant(positives.mean(0), others.mean(0), shrunk_covariance(centred))


def shrunk_covariance(centred: Tensor) -> Tensor:
    """Estimate the covariance [D, D] of codes, shrunk towards a multiple of the identity.

    This is the estimator OAS (Chen et al. 2010, eq. 23).

    Args:
        centred: codes [N, D] minus the mean of their class.
    """
    n, d = centred.shape
    sample = centred.T @ centred / n
    trace, squares = float(sample.trace()), float(sample.square().sum())
    numerator, denominator = (1 - 2 / d) * squares + trace**2, (n + 1 - 2 / d) * (squares - trace**2 / d)
    shrinkage = 1.0 if denominator <= 0 else min(1.0, numerator / denominator)
    diagonal = max(shrinkage * trace / d, 1e-9)
    return (1 - shrinkage) * sample + diagonal * torch.eye(d, dtype=sample.dtype)


def score(fit: Fit, z: Tensor, positive: Tensor) -> Score:
    """Return the area under the ROC curve (AUROC) and the average precision of a classifier on held-out pictures.

    Args:
        fit: the linear classifier of an attribute.
        z: normalised codes [N, D] of the held-out pictures.
        positive: bool [N], whether a picture has the attribute.

    Returns:
        Both from 0 to 1; both None if all pictures have the attribute or none has.
    """
    return _score_logits(fit.logit(z), positive)


def cross_validate(positives: Tensor, negatives: Tensor) -> Score:
    """Return the AUROC and the average precision of `few_shot`, measured by cross-validation.

    This is for sets that are too small to hold some codes out. Each class is split into as many folds as it has codes,
    at most twenty. For each fold, `few_shot` is fitted to all other codes of both classes and gives the log-odds of the
    fold's codes. AUROC and average precision are then computed once, from the log-odds of all folds.

    Args:
        positives: normalised codes [N, D] of pictures with the attribute.
        negatives: normalised codes [M, D] of other pictures.

    Returns:
        Both from 0 to 1; both None if N or M is below 2.
    """
    if min(len(positives), len(negatives)) < 2:
        return Score()
    logits = [few_shot(rest, negatives).logit(fold) for fold, rest in _folds(positives)]
    logits += [few_shot(positives, rest).logit(fold) for fold, rest in _folds(negatives)]
    labels = torch.arange(len(positives) + len(negatives)) < len(positives)
    return _score_logits(torch.cat(logits), labels)


def _folds(z: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Split codes z [N, D] into folds; return for each fold its codes, and all codes that are not in it."""
    fold = torch.arange(len(z)) % min(len(z), FOLDS)
    return [(z[fold == i], z[fold != i]) for i in range(min(len(z), FOLDS))]


def _score_logits(logits: Tensor, positive: Tensor) -> Score:
    if len(set(positive.tolist())) < 2:
        return Score()
    # by rank, as torchmetrics applies a sigmoid to values outside 0..1, which turns large logits into ties
    ranks = logits.unique(return_inverse=True)[1].double() / max(len(logits), 1)
    labels = positive.long()
    return Score(float(binary_auroc(ranks, labels)), float(binary_average_precision(ranks, labels)))
