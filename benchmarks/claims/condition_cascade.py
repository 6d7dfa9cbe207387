"""Ways of getting figures from a cascade of pixel models, and from one pixel model of the same computing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.claims.condition_data import NAMED, faces, reduced
from benchmarks.claims.condition_judge import face_judge, share, values_of
from benchmarks.claims.condition_runs import FACTOR
from benchmarks.claims.condition_ways import SAMPLING, Tuned, originals
from benchmarks.claims.paper_ways import BATCH, Bench, Figures
from ldm_kit.models.cascade import Cascade
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline

LEVEL = 100  # of 1000: noise of the small pictures that are upscaled
COLOURED = ("hair colour", "skin", "clothes colour")  # factors that small pictures show too


def upscaling() -> dict[str, Any]:
    """Return the sampling options of a model that upscales: it has no caption, so that nothing guides it."""
    return {"solver": SAMPLING["solver"], "steps": SAMPLING["steps"], "noise_level": LEVEL}


@dataclass(frozen=True)
class OneModel:
    """Pictures for captions of held-out faces with old hair colours, from one model of 32 px."""

    model: str = "pixels"

    def pictures(self, bench: Bench, seed: int) -> Tensor:
        """Sample `bench.count` pictures, uint8 [N, C, R, R]."""
        return Tuned(self.model).pictures(bench, seed, "old")

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return the figures of `caption_figures`, and seconds: processor time of the training."""
        return {**caption_figures(self.pictures(bench, seed)), "seconds": bench.runs.seconds(self.model, seed)}


@dataclass(frozen=True)
class Cascaded:
    """Pictures for the same captions from a base model and a model that upscales its pictures.

    Attributes:
        base, upscaler: variants whose models sample.
        options: sampling options of each model.
    """

    base: str = "small"
    upscaler: str = "upscaler"
    options: Sequence[Mapping[str, Any]] = field(default_factory=lambda: (dict(SAMPLING), upscaling()))

    def pictures(self, bench: Bench, seed: int) -> Tensor:
        """Sample `bench.count` pictures, uint8 [N, C, R, R]; the base model's seeds are those of `OneModel`."""
        stages = tuple(Pipeline.load(bench.runs.model(name, seed)) for name in (self.base, self.upscaler))
        prompts = captions_of(bench.count)
        seeds = range(seed * bench.count, (seed + 1) * bench.count)
        options = [SamplingOptions(**each) for each in self.options]
        return torch.cat([*Cascade(stages).generate(prompts, seeds, options, BATCH)])

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return the figures of `caption_figures`, and seconds: processor time of both trainings."""
        seconds = sum(bench.runs.seconds(name, seed) for name in (self.base, self.upscaler))
        return {**caption_figures(self.pictures(bench, seed)), "seconds": seconds}


@dataclass(frozen=True)
class Enlarged:
    """The pictures of the cascade's base model, enlarged by bicubic interpolation in place of the second model."""

    base: str = "small"

    def pictures(self, bench: Bench, seed: int) -> Tensor:
        """Sample `bench.count` small pictures and enlarge them, uint8 [N, C, R, R]."""
        return enlarged(Tuned(self.base).pictures(bench, seed, "old"), FACTOR)

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return the figures of `caption_figures`, and seconds: processor time of the training."""
        return {**caption_figures(self.pictures(bench, seed)), "seconds": bench.runs.seconds(self.base, seed)}


@dataclass(frozen=True)
class Upscaled:
    """Held-out faces, made small and upscaled by the cascade's second model: the most that it can show."""

    upscaler: str = "upscaler"
    options: Mapping[str, Any] = field(default_factory=upscaling)

    def pictures(self, bench: Bench, seed: int) -> Tensor:
        """Upscale at most `bench.count` held-out faces, uint8 [N, C, R, R]."""
        small = reduced(originals(bench), FACTOR)
        pipeline = Pipeline.load(bench.runs.model(self.upscaler, seed))
        seeds = range(seed * len(small), (seed + 1) * len(small))
        options = SamplingOptions(**self.options)
        return torch.cat([*pipeline.generate([""] * len(small), seeds, options, BATCH, pictures={"image": small})])

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return the figures of `caption_figures`, and seconds: processor time of the training."""
        return {**caption_figures(self.pictures(bench, seed)), "seconds": bench.runs.seconds(self.upscaler, seed)}


@dataclass(frozen=True)
class Faces:
    """The held-out faces themselves."""

    def pictures(self, bench: Bench, seed: int) -> Tensor:
        """Return at most `bench.count` held-out faces, uint8 [N, C, R, R]."""
        return originals(bench)

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return the figures of `caption_figures`."""
        return caption_figures(originals(bench))


def captions_of(count: int) -> list[str]:
    """Return the captions of `count` held-out faces with old hair colours, in turn."""
    records = faces("old").heldout.records
    return [records[i % len(records)].text for i in range(count)]


def enlarged(pictures: Tensor, factor: int) -> Tensor:
    """Return pictures, uint8 [N, C, R, R], enlarged `factor` times along each side by bicubic interpolation."""
    larger = interpolate(pictures.float(), scale_factor=factor, mode="bicubic", align_corners=False)
    return larger.round().clamp(0, 255).to(torch.uint8)


def caption_figures(pictures: Tensor) -> Figures:
    """Return what is measured of pictures, uint8 [N, C, R, R], sampled for the captions of held-out faces in turn.

    caption values: the share of the captions' values that are right; colours: of those of the three factors that are
    colours; distance: to all faces with old hair colours.
    """
    right = face_judge().right(pictures, values_of(faces("old").heldout, len(pictures)))
    return {
        "caption values": share(right, NAMED),
        "colours": share(right, COLOURED),
        "shapes": share(right, [factor for factor in NAMED if factor not in COLOURED]),
        "distance": face_judge().distance(pictures, "old"),
    }
