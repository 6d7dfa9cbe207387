"""What a semantic model keeps of a picture, what its code tells, and which of the two halves of a code matters."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.judge import Judge
from ldm_kit.data.images import to_unit
from ldm_kit.editing import fitting
from ldm_kit.editing.labels import Column
from ldm_kit.editing.operations import interpolate, mix_codes
from ldm_kit.metrics.fidelity import frechet
from ldm_kit.metrics.reconstruction import mse, ssim
from ldm_kit.models.protocol import Code
from ldm_kit.models.semantic import SemanticModel

FRAMES = 9  # of an interpolation, both ends among them
FEWEST = 5  # unseen pictures with a value, below which it is left out of a probe's mean


@dataclass(frozen=True)
class Reconstruction:
    """Pictures drawn again from their codes; means over pictures."""

    model: str
    steps: int  # of DDIM, both ways
    noise: str  # "inferred" or "random"
    mse: float  # of pixels in 0 to 1
    ssim: float
    lite0: float  # perceptual distance
    seconds: float


def reconstructions(
    name: str, model: SemanticModel, pictures: Tensor, steps: Sequence[int], judge: Judge
) -> Iterator[tuple[Reconstruction, Tensor]]:
    """A line for each number of steps and kind of x_T, with the pictures, uint8 like those given."""
    z = model.encode(pictures)
    for count in steps:
        for noise in ("inferred", "random"):
            began = time.monotonic()
            x_T = model.invert(pictures, z, count, 64) if noise == "inferred" else model.noise(range(len(z)))
            drawn = model.decode(z, x_T, count, 64)
            seconds = time.monotonic() - began
            x, y = to_unit(drawn), to_unit(pictures)
            with torch.no_grad():
                means = [float(value.mean()) for value in (mse(x, y) / 4, ssim(x, y), judge.lite0(x, y))]
            yield Reconstruction(name, count, noise, means[0], means[1], means[2], seconds), drawn


@dataclass(frozen=True)
class Probe:
    """How well logistic regression tells an attribute from codes of unseen pictures; means over its values."""

    code: str
    attribute: str
    values: int
    auroc: float
    precision: float  # average precision
    chance: float  # of the average precision: the share of the pictures that have the value


def probes(code: str, z: Mapping[str, Tensor], columns: Mapping[str, Sequence[Column]]) -> Iterator[Probe]:
    """One for each attribute, each value against the others.

    Args:
        code: its name.
        z: codes [N, D] of the pictures "train" and "unseen"; those of training decide the scale.
        columns: the attributes of both, in one order.
    """
    mean, std = z["train"].mean(0), z["train"].std(0) + 1e-6
    scaled = {part: (value - mean) / std for part, value in z.items()}
    for train, unseen in zip(columns["train"], columns["unseen"], strict=True):
        found: list[tuple[float, float, float]] = []
        for value in train.kinds:
            (a, positive), (b, new) = (_marks(column, value) for column in (train, unseen))
            if int(new.sum()) >= FEWEST:
                fit = fitting.classifier(scaled["train"][a], positive)
                score = fitting.scored(fit, scaled["unseen"][b], new)
                found.append((score.auroc or 0.0, score.average_precision or 0.0, float(new.double().mean())))
        means = torch.tensor(found, dtype=torch.float64).mean(0).tolist()
        yield Probe(code, train.name, len(found), *means)


def _marks(column: Column, value: str) -> tuple[Tensor, Tensor]:
    """Which pictures the attribute is known of [N], and which of those have the value."""
    marks = column.positive(value)
    known = torch.tensor([mark is not None for mark in marks])
    return known, torch.tensor([mark is True for mark in marks])[known]


@dataclass(frozen=True)
class Smoothness:
    """Of interpolations between two pictures, measured between neighbouring frames by Lite0's distance."""

    way: str
    count: int
    largest: float  # the largest step by the mean step: 1 is even, 8 a jump
    length: float  # all steps together by the distance of the ends: 1 is straight


def smoothness(way: str, frames: Tensor, judge: Judge) -> Smoothness:
    """Of frames uint8 [P, FRAMES, 3, R, R]; means over the P pairs."""
    x = to_unit(frames.flatten(0, 1))
    with torch.no_grad():
        after = torch.arange(len(x)).view(len(frames), FRAMES)
        steps = judge.lite0(x[after[:, :-1].flatten()], x[after[:, 1:].flatten()]).view(len(frames), -1)
        whole = judge.lite0(x[after[:, 0]], x[after[:, -1]])
    return Smoothness(
        way, len(frames), float((steps.amax(1) / steps.mean(1)).mean()), float((steps.sum(1) / whole).mean())
    )


def interpolated(model: SemanticModel, code: Code, steps: int) -> Tensor:
    """Frames uint8 [P, FRAMES, 3, R, R] between the first and the second half of codes [2 P, ...]."""
    half = len(code.z) // 2
    pairs = [interpolate(code.take([i]), code.take([half + i]), FRAMES) for i in range(half)]
    drawn = model.decode(torch.cat([p.z for p in pairs]), torch.cat([p.x_T for p in pairs]), steps, 64)
    return drawn.view(half, FRAMES, *drawn.shape[1:])


def cross_faded(pictures: Tensor) -> Tensor:
    """The same of pictures uint8 [2 P, 3, R, R], by mixing pixels."""
    first, last = (part[:, None].float() for part in pictures.chunk(2))
    weights = torch.linspace(0, 1, FRAMES).view(1, -1, 1, 1, 1)
    return torch.lerp(first, last, weights).round().byte()


@dataclass(frozen=True)
class Swap:
    """Pictures of two groups, each drawn with the other's x_T; shares of `count`."""

    model: str
    count: int
    nearer: float  # more like the picture that z is of than like the one that x_T is of, by Lite0 features
    group_z: float  # the judge reads the group of the picture that z is of
    group_x: float  # ... that x_T is of


def swaps(name: str, model: SemanticModel, code: Code, labels: Tensor, steps: int, judge: Judge) -> tuple[Swap, Tensor]:
    """Of codes [2 P, ...] whose halves are of different groups, `labels` [2 P]; and the pictures [2 P, 3, R, R]."""
    count = len(code.z)
    other = torch.arange(count).roll(count // 2)
    pictures = model.decode(*mix_codes(code, code.take(other.tolist())), steps, 64)
    originals = model.decode(*code, steps, 64)
    drawn, known = judge.features(pictures), judge.features(originals)
    centre = known.mean(0)
    likeness = [torch.cosine_similarity(drawn - centre, known[i] - centre) for i in (torch.arange(count), other)]
    group = judge.guess(drawn)
    shares = [_share(likeness[0] > likeness[1]), _share(group == labels), _share(group == labels[other])]
    return Swap(name, count, *shares), pictures


@dataclass(frozen=True)
class Draw:
    """New pictures from codes of some origin, beside pictures that were not trained on."""

    codes: str
    count: int
    distance: float  # Lite0 Fréchet distance to the training pictures


def draw(codes: str, pictures: Tensor, reference: Tensor, judge: Judge) -> Draw:
    """Of pictures uint8 [N, 3, R, R] and Lite0 features [M, D] of training pictures."""
    return Draw(codes, len(pictures), frechet(judge.features(pictures), reference))


def _share(true: Tensor) -> float:
    return float(true.double().mean())
