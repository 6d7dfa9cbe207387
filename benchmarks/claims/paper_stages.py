"""Ways of getting figures from models of shapes: first stages, pictures and their cost, and pictures for captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import typer
from torch import Tensor

import autoencoder.saved as first_stages
from autoencoder.base import decode, encode
from benchmarks.claims.judge import pixels_of
from benchmarks.claims.paper_factors import FactorJudge
from benchmarks.claims.paper_runs import VARIANTS
from benchmarks.claims.paper_ways import BATCH, Bench, Figures
from ldm_kit.data.images import to_unit
from ldm_kit.methods import read_run
from ldm_kit.metrics.reconstruction import psnr
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline


@dataclass(frozen=True)
class Shown:
    """Pictures sampled without a condition from a model of shapes, and the cost of the trainings that it takes.

    Attributes:
        model: variant whose model samples.
        trainings: variants whose trainings are counted as the cost.
        options: sampling options that are not the defaults.
    """

    model: str
    trainings: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def pictures(self, bench: Bench, seed: int) -> Tensor:
        """Sample `bench.count` pictures, uint8 [N, C, R, R]; a picture's seed is the same for all ways of one seed."""
        pipeline = Pipeline.load(bench.runs.model(self.model, seed))
        return generated(pipeline, [""] * bench.count, seed, self.options)

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return distance, precision and recall of the pictures, and seconds: processor time of the trainings."""
        pictures = self.pictures(bench, seed)
        cost = Cost(self.trainings).measure(bench, seed)
        return {**judge_of(bench, self.model, seed).distances(pictures), **cost}


@dataclass(frozen=True)
class Restored:
    """Held-out pictures that a first stage encodes and decodes again: the best that a model of its latents can show."""

    model: str  # variant of an autoencoder

    def pictures(self, bench: Bench, seed: int) -> Tensor:
        """Decode the mean latents of at most `bench.count` held-out pictures, uint8 [N, C, R, R]."""
        vae = first_stages.load(bench.runs.model(self.model, seed)).eval()
        originals = to_unit(self._originals(bench, seed))
        with torch.no_grad():
            decoded = torch.cat([decode(vae, encode(vae, x).mean) for x in originals.split(BATCH)])
        return ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte()

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return psnr in dB, mean over pictures, distance to the held-out pictures, and seconds of the training."""
        decoded, originals = self.pictures(bench, seed), self._originals(bench, seed)
        distance = judge_of(bench, self.model, seed).distances(decoded)["distance"]
        figures = {"psnr": float(psnr(to_unit(originals), to_unit(decoded)).mean()), "distance": distance}
        return {**figures, "seconds": bench.runs.seconds(self.model, seed)}

    def _originals(self, bench: Bench, seed: int) -> Tensor:
        return pixels_of(judge_of(bench, self.model, seed).split.heldout)[: bench.count]


@dataclass(frozen=True)
class Prompted:
    """Pictures sampled for held-out captions, from a model that sees all states of a caption or only their mean."""

    model: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def pictures(self, bench: Bench, seed: int) -> Tensor:
        """Sample `bench.count` pictures, uint8 [N, C, R, R]; a picture's seed is the same for all ways of one seed."""
        folder = bench.runs.model(self.model, seed)
        prompts = judge_of(bench, self.model, seed).prompts(bench.count)
        with VARIANTS[self.model].context():
            return generated(Pipeline.load(folder), prompts, seed, self.options)

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return how well floor, wall, object and shape fit the captions, and the distance of the pictures."""
        pictures, judge = self.pictures(bench, seed), judge_of(bench, self.model, seed)
        distance = judge.distances(pictures)["distance"]
        return {**judge.fidelity(pictures), "distance": distance}


@dataclass(frozen=True)
class Cost:
    """The cost of trainings, which are measured by other ways."""

    trainings: tuple[str, ...]  # variants

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return seconds: processor time of the trainings, from opening the data to the evaluation at the end."""
        for name in self.trainings:
            bench.runs.model(name, seed)
        return {"seconds": sum(bench.runs.seconds(name, seed) for name in self.trainings)}


def judge_of(bench: Bench, variant: str, seed: int) -> FactorJudge:
    """Return the judge of the data that a variant's run was trained on; one is opened for each data set."""
    data = read_run(bench.runs.model(variant, seed).parent / "config.yaml").data
    key = repr(data)
    if key not in bench.judges:
        bench.judges[key] = FactorJudge.open(data)
        typer.echo(f"the judge reads {bench.judges[key].accuracy} of the held-out shapes rightly", err=True)
    return bench.judges[key]


def generated(pipeline: Pipeline, prompts: Sequence[str], seed: int, options: Mapping[str, Any]) -> Tensor:
    """Sample a picture for each of N prompts, uint8 [N, C, R, R]; the seeds of its noise follow from `seed`."""
    seeds = range(seed * len(prompts), (seed + 1) * len(prompts))
    asked = SamplingOptions(**{"guidance_scale": 1.0, **options})
    return torch.cat(list(pipeline.generate(prompts, seeds, asked, BATCH)))
