"""Linear directions fitted to normalised codes: by a classifier, by few examples, or as a difference of means.

Codes z are [N, D] with mean 0 and deviation 1 in each dimension over the training set; a `Fit` reads z as the log-odds
weight . z + bias. All is computed in float64 and draws no random number.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

DECAY = 1e-2  # of the classifier: enough to hold separable classes, little against the data elsewhere
FOLDS = 20  # parts in which a side of few examples is left out


class Fit(NamedTuple):
    """A weight [D] and a bias: the log-odds of a code z are weight . z + bias."""

    weight: Tensor
    bias: float

    def logit(self, z: Tensor) -> Tensor:
        """Log-odds [N] of codes [N, D], float64."""
        return z.double() @ self.weight + self.bias


class Score(NamedTuple):
    """How well a direction reads codes that it was not fitted to: both 0 to 1, chance is 0.5 and the positives' share.

    None: too few examples of one side to tell.
    """

    auroc: float | None = None
    average_precision: float | None = None


def classifier(z: Tensor, positive: Tensor, decay: float = DECAY) -> Fit:
    """Logistic regression of codes [N, D] on labels [N] bool, with decay / 2 |weight|^2, solved by L-BFGS.

    Its weight is DiffAE's direction (Preechakul et al. 2022, section 5.2). What merely goes along with the attribute
    turns it less than a difference of means, for it helps little to tell.

    Raises:
        ValueError: labels of one kind only.
    """
    _refuse_one_sided(positive)
    z, wanted = z.double(), positive.double()
    with torch.enable_grad():
        weight, bias = (torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (z.shape[1], 1))
        tight = {"max_iter": 1000, "tolerance_grad": 1e-9, "tolerance_change": 1e-14}
        solver = torch.optim.LBFGS([weight, bias], **tight, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            solver.zero_grad()
            error = torch.nn.functional.binary_cross_entropy_with_logits(z @ weight + bias, wanted)
            found = error + decay / 2 * weight.square().sum()
            found.backward()
            return found

        solver.step(loss)  # pyright: ignore[reportArgumentType]  (a Tensor will do)
    return Fit(weight.detach(), float(bias.detach()))


def few(positives: Tensor, others: Tensor | None = None) -> Fit:
    """Shrunk linear discriminant of a dozen examples [N, D] against others: negatives, or pictures not looked at.

    Unlabelled others serve as well as negatives: those positives that hide among them shorten the difference of the
    means and do not turn it. None: the training set, of which normalised codes have mean 0 and deviation 1.

    The covariance is shared by both sides and shrunk to a multiple of the identity (Chen et al. 2010, eq. 23), wholly
    where there are few examples: the direction is then the difference of the means.
    """
    positives = positives.double()
    if others is None:
        return _discriminant(positives.mean(0), torch.zeros_like(positives[0]), None)
    others = others.double()
    inner = torch.cat([positives - positives.mean(0), others - others.mean(0)])
    return _discriminant(positives.mean(0), others.mean(0), shrunk_covariance(inner))


def difference(before: Tensor, after: Tensor) -> Fit:
    """From the mean of codes [N, D] to that of others [M, D]; of counterparts, row by row, it is their mean step."""
    return _discriminant(after.double().mean(0), before.double().mean(0), None)


def _discriminant(mean: Tensor, other: Tensor, covariance: Tensor | None) -> Fit:
    gap = mean - other
    weight = gap if covariance is None else torch.linalg.solve(covariance, gap)
    return Fit(weight, -float(weight @ (mean + other)) / 2)


def shrunk_covariance(centred: Tensor) -> Tensor:
    """Covariance [D, D] of centred rows [N, D] on the way to a multiple of the identity (Chen et al. 2010, OAS)."""
    n, d = centred.shape
    sample = centred.T @ centred / n
    trace, squares = float(sample.trace()), float(sample.square().sum())
    top, bottom = (1 - 2 / d) * squares + trace**2, (n + 1 - 2 / d) * (squares - trace**2 / d)
    share = 1.0 if bottom <= 0 else min(1.0, top / bottom)
    floor = max(share * trace / d, 1e-9)
    return (1 - share) * sample + floor * torch.eye(d, dtype=sample.dtype)


def scored(fit: Fit, z: Tensor, positive: Tensor) -> Score:
    """How well a fit ranks codes [N, D] with labels [N] bool that it has not seen."""
    return _ranked(fit.logit(z), positive)


def left_out(positives: Tensor, negatives: Tensor) -> Score:
    """Score of `few` where each example is read by a fit to others; for sets too small to hold a share out.

    One at a time is left out, or a twentieth of a side where it has more than twenty.
    """
    if min(len(positives), len(negatives)) < 2:
        return Score()
    logits = [few(rest, negatives).logit(part) for part, rest in _parts(positives)]
    logits += [few(positives, rest).logit(part) for part, rest in _parts(negatives)]
    labels = torch.arange(len(positives) + len(negatives)) < len(positives)
    return _ranked(torch.cat(logits), labels)


def _parts(z: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Every part of codes, with all the rest."""
    fold = torch.arange(len(z)) % min(len(z), FOLDS)
    return [(z[fold == i], z[fold != i]) for i in range(min(len(z), FOLDS))]


def _ranked(logits: Tensor, positive: Tensor) -> Score:
    if len(set(positive.tolist())) < 2:
        return Score()
    # by rank, for torchmetrics squeezes what lies outside 0..1 through a sigmoid, where far logits become ties
    ranks = logits.unique(return_inverse=True)[1].double() / max(len(logits), 1)
    labels = positive.long()
    return Score(float(binary_auroc(ranks, labels)), float(binary_average_precision(ranks, labels)))


def _refuse_one_sided(positive: Tensor) -> None:
    if bool(positive.all()) or not bool(positive.any()):
        raise ValueError("a direction needs examples both with and without the attribute; got one kind only")
