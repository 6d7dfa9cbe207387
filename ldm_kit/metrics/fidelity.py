"""Does a generated picture show what its prompt says? Measured on a set whose every picture is known.

Each prompt is the caption of one picture of the reference set. A generated picture's features are compared with those
of all reference pictures: rank 1 says the nearest one is the true one. Chance is 1 / N. The features are any
`Callable[[Tensor], Tensor]` from pictures to [B, D]; a figure means nothing without their name, and is only comparable
within one reference set.

`frechet` compares the two clouds of features as wholes. It bears the name of its features too: with EfficientNet-Lite0
it is the "Lite0 distance". It is an FID only with the FID's own Inception weights, which this room does not hold.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Distance = Literal["cosine", "euclidean"]
NO_TONE = ("", "mixed")
ENOUGH = 10  # samples a feature dimension, above which `frechet` is not warned of
_TIE = 1e-12  # squared distances this close are ties; features are scaled to a length of about 1
_BLOCK = 512


@dataclass(frozen=True)
class Fidelity:
    """Shares in 0..1 of `count` prompts, and of the `tone_count` among them that name one skin tone (NaN of none)."""

    rank1: float  # the nearest reference is the true picture
    rank5: float  # the true picture is among the five nearest
    tone: float  # the nearest reference has the tone that the prompt names
    tone_count: int
    count: int

    def interval(self, share: Literal["rank1", "rank5", "tone"]) -> tuple[float, float]:
        """Wilson 95 % interval of one of the shares."""
        return wilson(getattr(self, share), self.tone_count if share == "tone" else self.count)


class Frechet(NamedTuple):
    """A distance, and what there is to say against it: "" if there are enough samples on both sides."""

    distance: float
    warning: str


@torch.no_grad()
def embed(features: Callable[[Tensor], Tensor], pictures: Tensor, batch: int = 64) -> Tensor:
    """Features [N, D] of pictures [N, ...], float64 on the CPU, computed `batch` at a time.

    Raises:
        ValueError: no pictures, or the features are not [B, D].
    """
    found = [features(part).cpu().double() for part in pictures.split(batch) if len(part)]
    if not found or found[0].dim() != 2:
        raise ValueError(f"features must be [B, D] of at least one picture, got {[[*f.shape] for f in found[:1]]}")
    return torch.cat(found)


def truth_of(prompts: Sequence[str], captions: Sequence[str]) -> Tensor:
    """Index [M] of the reference picture that each prompt captions.

    Raises:
        ValueError: a prompt that captions no reference picture, or more than one.
    """
    places: dict[str, list[int]] = {}
    for place, caption in enumerate(captions):
        places.setdefault(caption, []).append(place)
    for prompt in prompts:
        if len(found := places.get(prompt, [])) != 1:
            raise ValueError(f"the prompt {prompt!r:.100} captions {len(found)} reference pictures; expected exactly 1")
    return torch.tensor([places[prompt][0] for prompt in prompts], dtype=torch.long)


def ranks(generated: Tensor, references: Tensor, truth: Tensor, distance: Distance = "cosine") -> Tensor:
    """Rank [M], from 1, of each true picture among the references by distance to the generated one.

    Features [M, D] and [N, D] are centred by the references' mean; truth [M] indexes the references. Ties count against
    us (the true picture comes last among its equals), and so do features that are not finite.

    Raises:
        ValueError: shapes that do not match, an index outside, or an unknown distance.
    """
    _check(generated, references, truth)
    found = []
    for apart, true in zip(_blocks(generated, references, distance), truth.cpu().split(_BLOCK), strict=True):
        found.append((~(apart > apart.gather(1, true[:, None]) + _TIE)).sum(1))
    return torch.cat(found)


def agreement(
    generated: Tensor, references: Tensor, truth: Tensor, values: Sequence[str], distance: Distance = "cosine"
) -> Tensor:
    """Whether [M] the nearest reference carries the same value (a skin tone, a gender) as the true one.

    `values` holds one a reference picture. If several are nearest, all of them must.

    Raises:
        ValueError: as in `ranks`, or not one value a reference.
    """
    _check(generated, references, truth)
    if len(values) != len(references):
        raise ValueError(f"got {len(values)} values for {len(references)} reference pictures; expected one each")
    known = {value: number for number, value in enumerate(dict.fromkeys(values))}
    numbers = torch.tensor([known[value] for value in values])
    found = []
    for apart, true in zip(_blocks(generated, references, distance), truth.cpu().split(_BLOCK), strict=True):
        farther = apart > apart.amin(1, keepdim=True) + _TIE
        found.append((farther | (numbers == numbers[true][:, None])).all(1))
    return torch.cat(found)


def fidelity(
    generated: Tensor,
    references: Tensor,
    truth: Tensor,
    tones: Sequence[str] | None = None,
    distance: Distance = "cosine",
) -> Fidelity:
    """Prompt fidelity of generated features [M, D] against the references' [N, D], whose true ones `truth` [M] indexes.

    `tones` holds the references' skin tones; prompts whose tone is "" or "mixed" do not count towards `tone`.

    Raises:
        ValueError: as in `ranks` and `agreement`.
    """
    rank = ranks(generated, references, truth, distance).double()
    toned = [i for i, t in enumerate(truth.tolist()) if tones is not None and tones[t] not in NO_TONE]
    tone = math.nan
    if toned and tones is not None:
        tone = agreement(generated[toned], references, truth[toned], tones, distance).double().mean().item()
    return Fidelity((rank <= 1).double().mean().item(), (rank <= 5).double().mean().item(), tone, len(toned), len(rank))


def ceiling(
    references: Tensor, truth: Tensor, tones: Sequence[str] | None = None, distance: Distance = "cosine"
) -> Fidelity:
    """What the true pictures themselves would score: below 1 where references are twins, as a tenth of OpenMoji's are.

    Report it beside every figure: "cook" and "man cook" are one drawing there, and such ties count against us.
    """
    return fidelity(references[truth.to(references.device)], references, truth, tones, distance)


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` (95 % by default); (NaN, NaN) of none."""
    if not count:
        return math.nan, math.nan
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    whole = 1 + z * z / count
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


def table(rows: Mapping[str, Fidelity]) -> str:
    """A markdown table, one named row each: percentages with their 95 % intervals."""
    lines = ["| | rank 1 | rank 5 | skin tone | prompts (with a tone) |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        shares = [_percent(row.rank1, row.count), _percent(row.rank5, row.count), _percent(row.tone, row.tone_count)]
        safe = " ".join(name.split()).replace("|", "\\|")
        lines.append(f"| {safe} | {' | '.join(shares)} | {row.count} ({row.tone_count}) |")
    return "\n".join(lines)


def frechet(features_a: Tensor, features_b: Tensor) -> float:
    """Fréchet distance of two clouds of features, [N, D] and [M, D]; see `frechet_checked` for what it is worth."""
    return frechet_checked(features_a, features_b).distance


def frechet_checked(features_a: Tensor, features_b: Tensor) -> Frechet:
    """|m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) of means m and covariances A, B (over N - 1), in float64.

    It is biased upwards by about 1 / N: figures compare only at equal N. `warning` says so when a side has fewer than
    10 D samples, and that the covariance is singular when it has D or fewer.

    Raises:
        ValueError: not [N, D] and [M, D] with at least 2 samples each, or features that are not finite.
    """
    a, b = features_a.detach().cpu().double(), features_b.detach().cpu().double()
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"expected [N, D] and [M, D] of at least 2 samples, got {[*a.shape]} and {[*b.shape]}")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("expected finite features, got NaN or infinity")
    of_a, of_b = a.T.cov().reshape(a.shape[1], -1), b.T.cov().reshape(a.shape[1], -1)
    root = _root(of_a)
    overlap = torch.linalg.eigvalsh(root @ of_b @ root).clamp_min(0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + of_a.trace() + of_b.trace() - 2 * overlap
    return Frechet(max(0.0, distance.item()), _warning(min(len(a), len(b)), a.shape[1]))


def _warning(count: int, dimensions: int) -> str:
    if count >= ENOUGH * dimensions:
        return ""
    why = "the covariance is singular and" if count <= dimensions else "the distance is biased upwards:"
    return f"{count} samples for {dimensions} feature dimensions: {why} only distances at this same count compare"


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def _blocks(generated: Tensor, references: Tensor, distance: Distance) -> Iterator[Tensor]:
    """What orders all references for each generated picture, [<= 512, N], in float64 on the CPU, block by block.

    -2 cos, or |r - g|^2 less |g|^2, which is the same for all references. The mean itself has no direction: cos is 0.
    """
    references, generated = references.detach().cpu().double(), generated.detach().cpu().double()
    mean = references.mean(0)
    references, generated, offset = _scale(references - mean, generated - mean, distance)
    for part in generated.split(_BLOCK):
        yield offset - 2 * part @ references.T


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


def _percent(share: float, count: int) -> str:
    if not count:
        return "-"
    low, high = wilson(share, count)
    return f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
