"""Accuracy of a noisy classifier by level of noise: hits, means over held-out pictures, and their plot."""

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
LEVELS = 8  # of noise, at which every held-out picture is classified: two a quartile
TOP = 5  # accuracy is also that of the five likeliest classes, where there are more


@dataclass(frozen=True)
class HeldoutAccuracy:
    """Mean loss and accuracies over held-out pictures at each level of noise, from least to most."""

    losses: tuple[float, ...]
    first: tuple[float, ...]  # share of pictures whose likeliest class is right
    top: tuple[float, ...] | None  # share whose class is among the likeliest five; None: there are no more than five

    def metrics(self) -> dict[str, float]:
        """Return means by name, overall and for each quartile of noise."""
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
    """Return the names of `HeldoutAccuracy.metrics`, with that of the five likeliest classes if `top`."""
    none = (0.0,) * LEVELS
    return list(HeldoutAccuracy(none, none, none if top else None).metrics())


def hits(logits: Tensor, label: Tensor, count: int) -> Tensor:
    """Return whether the label [B] is among the `count` likeliest classes of logits [B, K], float32 [B] of 0 and 1."""
    likeliest = logits.topk(min(count, logits.shape[1]), dim=1).indices
    return (likeliest == label[:, None]).any(1).float()


def scores(logits: Tensor, label: Tensor) -> Tensor:
    """Return cross-entropy, and hits of the likeliest and of the likeliest five classes, float32 [3, B]."""
    return torch.stack(
        [cross_entropy(logits, label, reduction="none"), hits(logits, label, 1), hits(logits, label, TOP)]
    )


def plot_accuracy(accuracy: HeldoutAccuracy, path: Path) -> None:
    """Plot accuracy over the share t / T of noising that was done."""
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
    """Return the share [4] of training times that each quartile of noise gets, by a fine stratified draw."""
    count, even = 4096, sampling.model_copy(update={"stratified": True})
    t = sample_timesteps(even, 0, torch.arange(count), count, times)
    return (t * QUARTILES // times).bincount(minlength=QUARTILES) / count


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
