"""Ways of getting figures from the trained runs of a claim: pictures sampled, likelihoods, reconstructions."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
import typer
from torch import Tensor

from benchmarks.claims.judge import pixels_of
from benchmarks.claims.paper_factors import FactorJudge
from benchmarks.claims.paper_judge import PictureJudge
from benchmarks.claims.paper_runs import CONFIGS, VARIANTS, Runs
from ldm_kit.data.images import to_unit
from ldm_kit.inference.likelihood import evaluate_likelihood
from ldm_kit.inference.requests import LikelihoodRequest
from ldm_kit.methods import read_run
from ldm_kit.metrics.reconstruction import mse, psnr
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.semantic import SemanticModel

Figures = dict[str, float]
BATCH = 128


@dataclass(frozen=True, eq=False)
class Bench:
    """The trained runs, how many pictures a row has, and what judges them."""

    runs: Runs
    count: int = 256  # pictures of a row
    judges: dict[str, FactorJudge] = field(default_factory=dict[str, FactorJudge])  # of shapes, by the data's config

    @cached_property
    def judge(self) -> PictureJudge:
        """The judge of digits, made when it is first needed."""
        judge = PictureJudge.open(read_run(CONFIGS / f"{VARIANTS['eps'].config}.yaml").data)
        typer.echo(f"the judge reads {judge.accuracy:.1%} of {len(judge.labels)} held-out pictures rightly", err=True)
        return judge

    def figures(self, way: "Way", seed: int) -> Figures:
        """Return the figures of a way for a seed; they are kept beside the runs, and not measured twice."""
        digest = hashlib.sha256(f"{way!r} {self.count}".encode()).hexdigest()[:16]
        path = self.runs.folder / "measured" / f"{digest}-{seed}.json"
        if not path.exists():
            figures = way.measure(self, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"way": repr(way), "seed": seed, **figures}), encoding="utf-8")
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {name: value for name, value in stored.items() if isinstance(value, float)}


class Way(Protocol):
    """A way of getting figures by name from runs; its `repr` identifies it."""

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return the figures by name; what must be trained for them is trained first."""
        ...


@runtime_checkable
class Pictured(Way, Protocol):
    """A way whose figures are those of pictures."""

    def pictures(self, bench: Bench, seed: int) -> Tensor:
        """Return the pictures, uint8 [N, C, R, R], of which the figures are; N is at most `bench.count`."""
        ...


@dataclass(frozen=True)
class Sampled:
    """Pictures sampled from a pixel model, judged by features and prompts.

    Attributes:
        model: variant whose model samples.
        options: sampling options that are not the defaults; the default is no guidance.
        classifier: variant of a noisy classifier that guides; "": none.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    classifier: str = ""

    def pipeline(self, bench: Bench, seed: int) -> Pipeline:
        """Return the model that samples, with its classifier if there is one."""
        pipeline = Pipeline.load(bench.runs.model(self.model, seed))
        if not self.classifier:
            return pipeline
        return pipeline.with_guides(NoisyClassifier.load(bench.runs.model(self.classifier, seed)))

    def pictures(self, bench: Bench, seed: int) -> Tensor:
        """Sample `bench.count` pictures, uint8 [N, C, R, R]; noise is the same for all ways of one seed."""
        pipeline, judge = self.pipeline(bench, seed), bench.judge
        prompts: Sequence[str | int] = judge.classes(bench.count).tolist()
        if pipeline.conditioner.null is None and not self.classifier:
            prompts = [""] * bench.count
        seeds = range(seed * bench.count, (seed + 1) * bench.count)
        options = SamplingOptions(**{"guidance_scale": 1.0, **self.options})
        return torch.cat(list(pipeline.generate(prompts, seeds, options, BATCH)))

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return distance, precision, recall and right of the sampled pictures."""
        return bench.judge.figures(self.pictures(bench, seed))


@dataclass(frozen=True)
class SampledLarge(Sampled):
    """Pictures sampled with beta as the variance of DDPM's steps, in place of the posterior's."""

    def pipeline(self, bench: Bench, seed: int) -> Pipeline:
        """Return the model that samples, with variance `large`."""
        return replace(super().pipeline(bench, seed), variance="large")


@dataclass(frozen=True)
class Likely:
    """The variational bound of held-out pictures in bits/dim, from `times` random timesteps of each picture."""

    model: str
    times: int = 50

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return bits: bits/dim of at most `bench.count` held-out pictures."""
        run = bench.runs.model(self.model, seed).parent
        for old in run.glob("nll*.json"):
            old.unlink()
        evaluate_likelihood(run, LikelihoodRequest(count=bench.count, times=self.times, batch_size=BATCH), "cpu")
        return {"bits": float(json.loads((run / "nll.json").read_text(encoding="utf-8"))["total"])}


@dataclass(frozen=True)
class Reconstructed:
    """Held-out pictures that a semantic model encodes to (z, x_T) and decodes again."""

    model: str
    noise: str  # x_T: "inferred" by DDIM, "random", or "exchanged" with that of another picture
    steps: int = 20

    def pictures(self, bench: Bench, seed: int) -> Tensor:
        """Decode at most `bench.count` held-out pictures' codes, uint8 [N, C, R, R]."""
        model = SemanticModel.load(bench.runs.model(self.model, seed))
        originals = self._originals(bench)
        z = model.encode(originals, BATCH)
        if self.noise == "random":
            return model.decode(z, model.noise(range(len(z))), self.steps, BATCH)
        x_T = model.invert(originals, z, self.steps, BATCH)
        return model.decode(z, x_T.roll(1, 0) if self.noise == "exchanged" else x_T, self.steps, BATCH)

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return mse in 0..1 and psnr in dB to z's picture, and whose class is read: z's picture's, or x_T's.

        The classes count where both pictures' differ.
        """
        decoded, originals = self.pictures(bench, seed), self._originals(bench)
        x, y = to_unit(originals), to_unit(decoded)
        judge = bench.judge
        read, labels = judge.reader.read(decoded)[:, 0], judge.labels[: len(decoded)]
        other = labels.roll(1)
        differ = other != labels
        shares = {"class of z": (read == labels)[differ], "class of x_T": (read == other)[differ]}
        means = {name: float(share.double().mean()) for name, share in shares.items()}
        return {"mse": float(mse(x, y).mean()) / 4, "psnr": float(psnr(x, y).mean()), **means}

    def _originals(self, bench: Bench) -> Tensor:
        return pixels_of(bench.judge.split.heldout)[: bench.count]
