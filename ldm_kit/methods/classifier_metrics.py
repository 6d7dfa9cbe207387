"""Accuracy of a noisy classifier at each noise level: its computation, and its plot for held-out pictures."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ldm_kit.diffusion.timesteps import TimestepSamplingConfig, sample_timesteps
from ldm_kit.viz.png import tolerate_oserror, write_atomic

QUARTILES = 4
LEVELS = 8  # equal intervals of t / T; every held-out picture is classified at one t in each; two per quartile
TOP = 5  # top-5 accuracy is measured too, if there are more than five classes


@dataclass(frozen=True)
class HeldoutAccuracy:
    """Mean loss and accuracies of held-out pictures at 8 (`LEVELS`) noise levels: 8 values each, least noise first."""

    losses: tuple[float, ...]  # mean cross-entropy
    first: tuple[float, ...]  # top-1 accuracy
    top: tuple[float, ...] | None  # top-5 accuracy; None: there are at most five classes

    def metrics(self) -> dict[str, float]:
        """Return metrics by name: means over all noise levels, and accuracy in each quartile of noise levels."""
        each = LEVELS // QUARTILES
        quartiles = [_mean(self.first[q * each : (q + 1) * each]) for q in range(QUARTILES)]
        top = {} if self.top is None else {f"heldout_accuracy{TOP}": _mean(self.top)}
        return {
            "heldout_loss": _mean(self.losses),
            "heldout_accuracy": _mean(self.first),
            **top,
            **{f"heldout_accuracy_q{q}": value for q, value in enumerate(quartiles, 1)},
        }


def figure_names(top: bool) -> list[str]:
    """Return the names of the metrics that `HeldoutAccuracy.metrics` returns; `top`: whether it has top-5 accuracy."""
    none = (0.0,) * LEVELS
    return list(HeldoutAccuracy(none, none, none if top else None).metrics())


def hits(logits: Tensor, label: Tensor, count: int) -> Tensor:
    """Return 1 where the true class `label` [B] is among the `count` classes of highest logits [B, K], else 0.

    The result is float32 [B].
    """
    likeliest = logits.topk(min(count, logits.shape[1]), dim=1).indices
    return (likeliest == label[:, None]).any(1).float()


def scores(logits: Tensor, label: Tensor) -> Tensor:
    """Return cross-entropy, top-1 hit and top-5 hit (0 or 1) of each sample, stacked: float32 [3, B].

    Args:
        logits: logits of K classes [B, K].
        label: index of the true class, int64 [B].
    """
    return torch.stack(
        [cross_entropy(logits, label, reduction="none"), hits(logits, label, 1), hits(logits, label, TOP)]
    )


def plot_accuracy(accuracy: HeldoutAccuracy, path: Path) -> None:
    """Plot accuracy over the noise level t / T into the PNG file `path`; a failure to write it only warns."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    levels = [(level + 0.5) / LEVELS for level in range(LEVELS)]
    axes.plot(levels, accuracy.first, marker=".", label="likeliest class")
    if accuracy.top is not None:
        axes.plot(levels, accuracy.top, marker=".", label="five likeliest")
        axes.legend()
    axes.set(title="held-out accuracy over noise", xlabel="t / T", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    with tolerate_oserror(path):
        write_atomic(path, buffer.getvalue())


def quartile_shares(sampling: TimestepSamplingConfig, times: int) -> Tensor:
    """Return the fraction of training timesteps that fall into each quarter of 0..`times` - 1, float [4].

    The fractions are counted in 4096 timesteps drawn from the density `sampling`, stratified.
    """
    count, even = 4096, sampling.model_copy(update={"stratified": True})
    t = sample_timesteps(even, 0, torch.arange(count), count, times)
    return (t * QUARTILES // times).bincount(minlength=QUARTILES) / count


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
