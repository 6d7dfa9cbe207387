"""Prompt fidelity by retrieval among reference pictures, and the Fréchet distance between sets of features.

Each prompt is the caption of one reference picture, the true picture. A generated picture's features are compared with
those of all N reference pictures: rank 1 means that the true picture is the nearest, which has a chance of 1 / N. The
features may be any function from pictures to [B, D]. Values are comparable only for the same features and the same
reference pictures, so reports must name both.

Reports must name the features of `frechet` too: with EfficientNet-Lite0 it is the "Lite0 distance". It is an FID only
with the FID's Inception weights, which are not part of this package.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ldm_kit.memory import Batch, BatchSize
from ldm_kit.metrics.moments import frechet_of_moments, moments

Distance = Literal["cosine", "euclidean"]
NO_TONE = ("", "mixed")  # skin tones of prompts that name no single skin tone
MIN_SAMPLES = 10  # samples per feature dimension below which `frechet_checked` warns
_TIE = 1e-12  # squared distances this close are ties; features are scaled to a length of about 1
_BLOCK = 512


@dataclass(frozen=True)
class Fidelity:
    """Prompt fidelity: how often, of all reference pictures, the true one is the nearest to the generated picture.

    The true picture of a prompt is the reference picture whose caption the prompt is; distances are between features.
    """

    rank1: float  # share of prompts whose true picture is the nearest reference, in [0, 1]
    rank5: float  # share of prompts whose true picture is among the five nearest
    tone: float  # share of prompts with a skin tone whose nearest reference has the same tone; NaN if there are none
    tone_count: int  # prompts that name one skin tone
    count: int  # all prompts

    def interval(self, share: Literal["rank1", "rank5", "tone"]) -> tuple[float, float]:
        """Return the 95 % confidence interval (low, high), by Wilson's score, of the share with this name."""
        return wilson(getattr(self, share), self.tone_count if share == "tone" else self.count)


class Frechet(NamedTuple):
    """A Fréchet distance of two sets of features, and whether it is reliable."""

    distance: float
    warning: str  # says that a set has too few samples for its number of features; "" if both have enough


@torch.no_grad()
def embed(features: Callable[[Tensor], Tensor], pictures: Tensor, batch: Batch = 64) -> Tensor:
    """Return the features of pictures [N, ...] as float64 [N, D] on the CPU, computed for `batch` pictures at a time.

    `features` maps pictures [B, ...] to D features each, [B, D].

    Raises:
        ValueError: there are no pictures, or `features` does not return [B, D].
    """
    batches = [*BatchSize.of(batch).map(pictures, lambda x: features(x).cpu().double())]
    if not batches or batches[0].dim() != 2:
        raise ValueError(f"features must be [B, D] of at least one picture, got {[[*f.shape] for f in batches[:1]]}")
    return torch.cat(batches)


def ranks(generated: Tensor, references: Tensor, truth: Tensor, distance: Distance = "cosine") -> Tensor:
    """Return int64 [M]: for each generated picture, the rank (from 1) of its true picture among all references.

    The true picture is the reference whose caption was the prompt. References are ranked by their features' distance to
    the generated picture's, all minus the references' mean. Ties and non-finite features count against the true one.

    Args:
        generated: features [M, D] of the generated pictures.
        references: features [N, D] of the reference pictures.
        truth: int64 [M], the index of each generated picture's true picture among the references.
        distance: cosine or euclidean.

    Raises:
        ValueError: a shape is not as above, an index is outside 0..N - 1, or the distance is unknown.
    """
    _check(generated, references, truth)
    blocks = zip(_distances(generated, references, distance), truth.cpu().split(_BLOCK), strict=True)
    return torch.cat([(~(d > d.gather(1, true[:, None]) + _TIE)).sum(1) for d, true in blocks])


def agreement(
    generated: Tensor, references: Tensor, truth: Tensor, values: Sequence[str], distance: Distance = "cosine"
) -> Tensor:
    """Return bool [M]: whether the nearest reference has the same attribute (such as skin tone) as the true picture.

    The true picture is the reference whose caption was the prompt; the nearest reference is that with the nearest
    features. If several references are equally near, all of them must have the attribute.

    Args:
        generated: features [M, D] of the generated pictures.
        references: features [N, D] of the reference pictures.
        truth: int64 [M], the index of each generated picture's true picture among the references.
        values: the attribute's value for each of the N references.
        distance: cosine or euclidean.

    Raises:
        ValueError: a shape is not as above, an index is outside 0..N - 1, the distance is unknown, or there is not one
            value for each reference.
    """
    _check(generated, references, truth)
    if len(values) != len(references):
        raise ValueError(f"got {len(values)} values for {len(references)} reference pictures; expected one each")
    numbers_by_value = {value: number for number, value in enumerate(dict.fromkeys(values))}
    numbers = torch.tensor([numbers_by_value[value] for value in values])
    agrees = []
    for d, true in zip(_distances(generated, references, distance), truth.cpu().split(_BLOCK), strict=True):
        farther = d > d.amin(1, keepdim=True) + _TIE
        agrees.append((farther | (numbers == numbers[true][:, None])).all(1))
    return torch.cat(agrees)


def fidelity(
    generated: Tensor,
    references: Tensor,
    truth: Tensor,
    tones: Sequence[str] | None = None,
    distance: Distance = "cosine",
) -> Fidelity:
    """Return how often the true picture is the nearest reference, or among the five nearest, to a generated picture.

    The true picture is the reference whose caption was the prompt. The result also says how often the nearest reference
    has the skin tone of the true picture.

    Args:
        generated: features [M, D] of the generated pictures.
        references: features [N, D] of the reference pictures.
        truth: int64 [M], the index of each generated picture's true picture among the references.
        tones: skin tone of each of the N references; a true picture whose tone is "" or "mixed" does not count
            towards the share `tone`. None: that share is NaN.
        distance: cosine or euclidean.

    Raises:
        ValueError: a shape is not as above, an index is outside 0..N - 1, the distance is unknown, or there is not one
            tone for each reference.
    """
    if tones is not None and len(tones) != len(references):
        raise ValueError(f"got {len(tones)} tones for {len(references)} reference pictures; expected one each")
    rank = ranks(generated, references, truth, distance).double()
    toned = [i for i, t in enumerate(truth.tolist()) if tones is not None and tones[t] not in NO_TONE]
    tone = math.nan
    if toned and tones is not None:
        tone = agreement(generated[toned], references, truth[toned], tones, distance).double().mean().item()
    return Fidelity((rank <= 1).double().mean().item(), (rank <= 5).double().mean().item(), tone, len(toned), len(rank))


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's score interval (low, high) of a share; (NaN, NaN) if `count` is 0.

    Args:
        share: share of successes, in [0, 1].
        count: number of trials.
        z: quantile of the standard normal distribution; by default that of a 95 % interval.
    """
    if not count:
        return math.nan, math.nan
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def percent(share: float, count: int) -> str:
    """Return a share of `count` trials as text: in per cent, with its 95 % interval in brackets; "-" without trials."""
    if not count:
        return "-"
    low, high = wilson(share, count)
    return f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def table(rows: Mapping[str, Fidelity]) -> str:
    """Return a markdown table with a row for each `Fidelity`, by its title: shares in per cent with 95 % intervals."""
    lines = ["| | rank 1 | rank 5 | skin tone | prompts (with a tone) |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        shares = [percent(row.rank1, row.count), percent(row.rank5, row.count), percent(row.tone, row.tone_count)]
        escaped = " ".join(name.split()).replace("|", "\\|")
        lines.append(f"| {escaped} | {' | '.join(shares)} | {row.count} ({row.tone_count}) |")
    return "\n".join(lines)


def frechet(features_a: Tensor, features_b: Tensor) -> float:
    """Return the Fréchet distance of two sets of features, [N, D] and [M, D]; it is biased upwards for few samples."""
    return frechet_checked(features_a, features_b).distance


def frechet_checked(features_a: Tensor, features_b: Tensor) -> Frechet:
    """Return the Fréchet distance of two sets of features, [N, D] and [M, D], and a warning if a set is small.

    It is |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) for means m_a, m_b and covariances A, B (divided by N - 1),
    in float64. It is biased upwards by about 1 / N, so values are comparable only at equal N. The warning says so if a
    set has fewer than 10 D samples; for D samples or fewer, the warning says that the covariance is singular.

    Raises:
        ValueError: features are not [N, D] and [M, D] with at least 2 samples each, or are not finite.
    """
    a, b = features_a.detach().cpu().double(), features_b.detach().cpu().double()
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"expected [N, D] and [M, D] of at least 2 samples, got {[*a.shape]} and {[*b.shape]}")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("expected finite features, got NaN or infinity")
    distance = frechet_of_moments(*moments(a), *moments(b))
    return Frechet(distance, _warning(min(len(a), len(b)), a.shape[1]))


def _warning(count: int, dimensions: int) -> str:
    if count >= MIN_SAMPLES * dimensions:
        return ""
    reason = "the covariance is singular and" if count <= dimensions else "the distance is biased upwards:"
    return f"{count} samples for {dimensions} feature dimensions: {reason} only distances at this same count compare"


def _distances(generated: Tensor, references: Tensor, distance: Distance) -> Iterator[Tensor]:
    """Yield the distances of features [M, D] to reference features [N, D], 512 at a time: float64 [<= 512, N], CPU.

    For features g and r, minus the references' mean, the cosine distance is -2 cos(g, r), and 0 if g or r is 0. The
    euclidean distance is |r - g|^2 - |g|^2, times a constant: for one g it orders the references as |r - g| does.
    """
    references, generated = references.detach().cpu().double(), generated.detach().cpu().double()
    mean = references.mean(0)
    references, generated, offset = _scale(references - mean, generated - mean, distance)
    for block in generated.split(_BLOCK):
        yield offset - 2 * block @ references.T


def _scale(references: Tensor, generated: Tensor, distance: Distance) -> tuple[Tensor, Tensor, Tensor]:
    match distance:
        case "cosine":
            directions = torch.nn.functional.normalize(references)
            return directions, torch.nn.functional.normalize(generated), torch.zeros(len(references)).double()
        case "euclidean":
            length = references.square().sum(1).mean().sqrt().clamp_min(1e-300)
            return references / length, generated / length, (references / length).square().sum(1)
        case _:
            raise ValueError(f"distance must be cosine or euclidean, got {distance!r}")


def _check(generated: Tensor, references: Tensor, truth: Tensor) -> None:
    shapes = f"{[*generated.shape]}, {[*references.shape]} and {[*truth.shape]}"
    if generated.dim() != 2 or references.dim() != 2 or generated.shape[1] != references.shape[1]:
        raise ValueError(f"expected features [M, D] and [N, D], got shapes {shapes}")
    if truth.shape != generated.shape[:1] or not len(truth):
        raise ValueError(f"expected one index a generated picture, at least one, got shapes {shapes}")
    if truth.is_floating_point() or int(truth.min()) < 0 or int(truth.max()) >= len(references):
        raise ValueError(f"indices of true pictures must be whole numbers in 0..{len(references) - 1}")
