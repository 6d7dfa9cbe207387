"""Ways of getting figures from unCLIP: embeddings that a prior samples from captions, and pictures of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.claims.condition_cascade import captions_of
from benchmarks.claims.condition_data import NAMED, faces
from benchmarks.claims.condition_judge import face_judge, values_of
from benchmarks.claims.condition_variations import ALL, probes_of, shares_of, unrelated_shares
from benchmarks.claims.condition_ways import SAMPLING, originals
from benchmarks.claims.paper_ways import BATCH, Bench, Figures
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline

SCALE = 2.0  # of the prior's guidance; its other options are those of its config


@dataclass(frozen=True)
class FromCaptions:
    """Pictures for captions of held-out faces with old hair colours: an embedding by the prior, a picture of it.

    Attributes:
        unrelated: whether a picture is compared with all other captions in place of its own: the chance level.
        model: variant whose model samples.
        scale: guidance scale of the prior.
    """

    unrelated: bool = False
    model: str = "prior"
    scale: float = SCALE

    def samples(self, bench: Bench, seed: int) -> Tensor:
        """Sample `bench.count` pictures, uint8 [N, C, R, R]; a picture's noise is the same for all ways of one seed."""
        pipeline = Pipeline.load(bench.runs.model(self.model, seed))
        seeds = range(seed * bench.count, (seed + 1) * bench.count)
        options = SamplingOptions(**SAMPLING, prior_guidance_scale=self.scale)
        return torch.cat([*pipeline.generate(captions_of(bench.count), seeds, options, BATCH)])

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return the figures of `named_figures`; of related captions also the distance, and seconds of the prior."""
        pictures, values = self.samples(bench, seed), values_of(faces("old").heldout, bench.count)
        read = face_judge().read(pictures, NAMED)
        if self.unrelated:
            return named_figures(unrelated_shares(read, values))
        figures = {"distance": face_judge().distance(pictures, "old"), "seconds": bench.runs.seconds(self.model, seed)}
        return {**named_figures(shares_of(read, values)), **figures}


@dataclass(frozen=True)
class Unclip(FromCaptions):
    """Pictures for captions, which are shown."""

    def pictures(self, bench: Bench, seed: int) -> Tensor:
        """Return the pictures of `samples`."""
        return self.samples(bench, seed)


@dataclass(frozen=True)
class Probed:
    """What linear probes, fitted to real faces' embeddings, read in embeddings: no decoder has a part in it.

    Attributes:
        sampled: whether the embeddings are those that the prior samples for the captions, or the real faces' own.
        model: variant of the prior.
        scale: guidance scale of the prior.
    """

    sampled: bool
    model: str = "prior"
    scale: float = SCALE

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return the shares of the captions' values that the probes read; see `named_figures`."""
        pipeline = Pipeline.load(bench.runs.model(self.model, seed))
        heldout = faces("old").heldout
        if self.sampled:
            assert pipeline.prior is not None
            seeds = range(seed * bench.count, (seed + 1) * bench.count)
            prompts, count = captions_of(bench.count), bench.count
            z = pipeline.prior.sample(prompts, seeds, pipeline.saved, guidance_scale=self.scale)
        else:
            pictures = originals(bench)
            z, count = pipeline.embed(pictures), len(pictures)
        probes = probes_of(bench.runs.model(self.model, bench.runs.seeds[0]))
        read = torch.stack([probes[ALL.index(factor)].predict(z.double()) for factor in NAMED], 1)
        return named_figures(shares_of(read, values_of(heldout, count)))


def named_figures(shares: Tensor) -> Figures:
    """Return shares [F] of the factors NAMED by name, and caption values: their mean."""
    return {**dict(zip(NAMED, shares.tolist(), strict=True)), "caption values": float(shares.mean())}
