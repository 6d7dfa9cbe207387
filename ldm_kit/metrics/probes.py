"""Linear probes: how well a linear classifier predicts labels from features."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ldm_kit.metrics.fidelity import wilson


class Accuracy(NamedTuple):
    """Accuracy of a classifier with its 95 % confidence interval."""

    share: float  # share of correct predictions, averaged over classes
    low: float  # bounds of the interval by Wilson's score
    high: float


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear classifier: multinomial logistic regression on standardised features.

    Attributes:
        mean, std: float64 [D], mean and standard deviation of the features that the probe was fitted to.
        weights: float64 [D + 1, K] for D features and K classes; the last row is the bias.
    """

    mean: Tensor
    std: Tensor
    weights: Tensor

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, classes: int, decay: float = 0.1) -> "LinearProbe":
        """Fit a probe to labelled features by L-BFGS; all classes weigh the same in the loss, however rare.

        Args:
            features: float64 [N, D].
            labels: [N], each in 0..classes - 1.
            classes: number of classes, K.
            decay: factor of the penalty, which is the sum of squared weights divided by K; biases are not penalised.

        Raises:
            ValueError: a shape is not as above, or a label is outside 0..classes - 1.
        """
        _check(features, labels, classes)
        mean, std = features.mean(0), features.std(0) + 1e-6
        inputs = _with_bias((features - mean) / std)
        balance = 1 / labels.bincount(minlength=classes).clamp_min(1).double()
        weights = torch.zeros(inputs.shape[1], classes, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            solver.zero_grad()
            error = cross_entropy(inputs @ weights, labels, weight=balance / balance.mean())
            loss = error + decay * weights[:-1].square().sum() / classes
            loss.backward()
            return loss

        solver.step(closure)  # pyright: ignore[reportArgumentType]  (a tensor is a float here)
        return cls(mean, std, weights.detach())

    def predict(self, features: Tensor) -> Tensor:
        """Return the predicted class indices [N] for features [N, D]."""
        return (_with_bias((features - self.mean) / self.std) @ self.weights).argmax(1)

    def accuracy(self, features: Tensor, labels: Tensor) -> Accuracy:
        """Return the probe's accuracy, averaged over classes, on features [N, D] with class indices `labels` [N]."""
        return balanced_accuracy(self.predict(features), labels)


def balanced_accuracy(predictions: Tensor, labels: Tensor) -> Accuracy:
    """Return the balanced accuracy of predictions [N]: the share of correct ones in each class, averaged over classes.

    `labels` [N] are the true classes. The accuracy's interval is Wilson's for a share of N predictions, which holds if
    all classes are equally frequent.
    """
    right = (predictions == labels).double()
    share = torch.stack([right[labels == k].mean() for k in labels.unique()]).mean().item()
    return Accuracy(share, *wilson(share, len(labels)))


def _with_bias(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)


def _check(features: Tensor, labels: Tensor, classes: int) -> None:
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"expected features [N, D] and labels [N], got {[*features.shape]} and {[*labels.shape]}")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels must be whole numbers in 0..{classes - 1}")
