"""Rows of tables about a semantic model's codes: reconstruction, probes, exchanged x_T, interpolation."""

import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.claims.judge import Judge
from benchmarks.kit import SemanticModel
from benchmarks.tables import Columns, Row
from ldm_kit.data.images import to_unit
from ldm_kit.editing import fitting
from ldm_kit.editing.labels import Column
from ldm_kit.editing.operations import interpolate, mix_codes
from ldm_kit.metrics.reconstruction import mse, ssim
from ldm_kit.models.protocol import Code

FRAMES = 9  # of an interpolation, both ends among them
FEWEST = 5  # unseen pictures with a value, below which it is left out of a probe's mean

RECONSTRUCTION: Columns = {
    "model": ("one training each", ""),
    "steps": ("steps", ""),  # of DDIM, both ways
    "noise": ("x_T", ""),
    "mse": ("MSE", ".1e"),  # of pixels in 0 to 1
    "ssim": ("SSIM", ".3f"),
    "lite0": ("Lite0 distance", ".3f"),
}
PROBES: Columns = {
    "code": ("one training each", ""),
    "attribute": ("attribute", ""),
    "values": ("values", ""),
    "auroc": ("AUROC", ".3f"),  # means over the attribute's values
    "precision": ("average precision", ".3f"),
    "chance": ("chance", ".3f"),  # of the average precision: the share of the pictures that have the value
}
SWAPS: Columns = {
    "model": ("one training each", ""),
    "count": ("pictures", ""),
    "nearer": ("nearer to z's", ".0%"),  # than to x_T's, by Lite0 features
    "group_z": ("group of z's", ".0%"),  # as the judge reads it
    "group_x": ("group of x_T's", ".0%"),
}
INTERPOLATION: Columns = {
    "way": ("one training each", ""),
    "count": ("pairs", ""),
    "largest": ("largest step", ".2f"),  # by the mean step: 1 is even, 8 a jump
    "length": ("length", ".2f"),  # all steps by the distance of the ends: 1 is straight
}
PRIOR: Columns = {
    "codes": ("codes, one training", ""),
    "count": ("pictures", ""),
    "distance": ("Lite0 Fréchet distance", ".0f"),
}


def reconstructions(
    name: str, model: SemanticModel, pictures: Tensor, steps: Sequence[int], judge: Judge
) -> Iterator[tuple[Row, Tensor]]:
    """Encode and decode pictures; yield a row of errors and the decoded pictures for each way of decoding.

    The ways are each number in `steps` with the inverted and with a random x_T.

    Args:
        name: name of the model, for the rows.
        model: the semantic model.
        pictures: uint8 [N, 3, R, R].
        steps: numbers of steps of inversion and decoding.
        judge: measures the Lite0 distance.
    """
    z = model.encode(pictures)
    for count in steps:
        for noise in ("inferred", "random"):
            start = time.monotonic()
            x_T = model.invert(pictures, z, count, 64) if noise == "inferred" else model.noise(range(len(z)))
            decoded = model.decode(z, x_T, count, 64)
            seconds = time.monotonic() - start
            x, y = to_unit(decoded), to_unit(pictures)
            with torch.no_grad():
                errors = {"mse": mse(x, y) / 4, "ssim": ssim(x, y), "lite0": judge.lite0(x, y)}
            means = {key: float(value.mean()) for key, value in errors.items()}
            yield {"model": name, "steps": count, "noise": noise, **means, "seconds": seconds}, decoded


def probes(code: str, z: Mapping[str, Tensor], columns: Mapping[str, Sequence[Column]]) -> Iterator[Row]:
    """Fit a logistic regression for each value of an attribute against the others; yield a row for each attribute.

    Args:
        code: name of the kind of code, for the rows.
        z: codes [N, D] of the pictures "train", to which regressions are fitted, and "unseen", which give the scores.
        columns: the attributes of the pictures "train" and "unseen", in the same order.
    """
    mean, std = z["train"].mean(0), z["train"].std(0) + 1e-6
    scaled = {split: (value - mean) / std for split, value in z.items()}
    for train, unseen in zip(columns["train"], columns["unseen"], strict=True):
        scores: list[tuple[float, float, float]] = []
        for value in train.kinds:
            (a, positive), (b, new) = (_marks(column, value) for column in (train, unseen))
            if int(new.sum()) >= FEWEST:
                fit = fitting.classifier(scaled["train"][a], positive)
                score = fitting.score(fit, scaled["unseen"][b], new)
                scores.append((score.auroc or 0.0, score.average_precision or 0.0, float(new.double().mean())))
        auroc, precision, chance = torch.tensor(scores, dtype=torch.float64).mean(0).tolist()
        means = {"auroc": auroc, "precision": precision, "chance": chance}
        yield {"code": code, "attribute": train.name, "values": len(scores), **means}


def _marks(column: Column, value: str) -> tuple[Tensor, Tensor]:
    """Return which of N pictures have a known value of an attribute, bool [N], and which M of these have `value`."""
    marks = column.positive(value)
    labelled = torch.tensor([mark is not None for mark in marks])
    return labelled, torch.tensor([mark is True for mark in marks])[labelled]


def smoothness(way: str, frames: Tensor, judge: Judge) -> Row:
    """Return a row on how even and how straight P interpolations are, by Lite0 distances between neighbouring frames.

    Args:
        way: name of the way of interpolating, for the row.
        frames: uint8 [P, FRAMES, 3, R, R].
        judge: measures the Lite0 distance.
    """
    x = to_unit(frames.flatten(0, 1))
    with torch.no_grad():
        index = torch.arange(len(x)).view(len(frames), FRAMES)
        steps = judge.lite0(x[index[:, :-1].flatten()], x[index[:, 1:].flatten()]).view(len(frames), -1)
        whole = judge.lite0(x[index[:, 0]], x[index[:, -1]])
    largest, length = (steps.amax(1) / steps.mean(1)).mean(), (steps.sum(1) / whole).mean()
    return {"way": way, "count": len(frames), "largest": float(largest), "length": float(length)}


def interpolated(model: SemanticModel, code: Code, steps: int) -> Tensor:
    """Interpolate between code i and code P + i of 2 P codes, and decode: frames uint8 [P, FRAMES, 3, R, R].

    `steps` is the number of steps of decoding.
    """
    half = len(code.z) // 2
    pairs = [interpolate(code.take([i]), code.take([half + i]), FRAMES) for i in range(half)]
    frames = model.decode(torch.cat([p.z for p in pairs]), torch.cat([p.x_T for p in pairs]), steps, 64)
    return frames.view(half, FRAMES, *frames.shape[1:])


def cross_faded(pictures: Tensor) -> Tensor:
    """Interpolate pixels between pictures i and P + i of 2 P, uint8 [2 P, 3, R, R]: uint8 [P, FRAMES, 3, R, R]."""
    first, last = (half[:, None].float() for half in pictures.chunk(2))
    weights = torch.linspace(0, 1, FRAMES).view(1, -1, 1, 1, 1)
    return torch.lerp(first, last, weights).round().byte()


def swaps(
    name: str, model: SemanticModel, code: Code, labels: Tensor, *, steps: int, judge: Judge
) -> tuple[Row, Tensor]:
    """Decode each of 2 P codes z with the x_T of its partner, and measure which of both the picture looks like.

    The partner of code i is code P + i, and conversely.

    Args:
        name: name of the model, for the row.
        model: the semantic model.
        code: codes z and x_T of 2 P pictures.
        labels: group of each picture, [2 P]; partners are of different groups.
        steps: number of steps of decoding.
        judge: computes Lite0 features, and predicts groups from them.

    Returns:
        A row of shares of the pictures, and the pictures, uint8 [2 P, 3, R, R].
    """
    count = len(code.z)
    other = torch.arange(count).roll(count // 2)
    pictures = model.decode(*mix_codes(code, code.take(other.tolist())), steps, 64)
    originals = judge.features(model.decode(*code, steps, 64))
    features, centre = judge.features(pictures), originals.mean(0)
    likeness = [torch.cosine_similarity(features - centre, originals[i] - centre) for i in (torch.arange(count), other)]
    group = judge.probe.predict(features)
    hits = {"nearer": likeness[0] > likeness[1], "group_z": group == labels, "group_x": group == labels[other]}
    return {"model": name, "count": count, **{key: float(hit.double().mean()) for key, hit in hits.items()}}, pictures
