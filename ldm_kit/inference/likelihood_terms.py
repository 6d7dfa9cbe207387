"""Terms of the variational bound on the negative log-likelihood of pictures, measured under a diffusion model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from conditioning.base import Condition
from ldm_kit.data.images import PictureSet, to_unit
from ldm_kit.diffusion import likelihood, rng
from ldm_kit.diffusion.float64 import exact
from ldm_kit.diffusion.likelihood import Term
from ldm_kit.diffusion.timesteps import timesteps_at_quantiles
from ldm_kit.memory import BatchSize
from ldm_kit.models.pipeline import Pipeline


class BoundOptions(NamedTuple):
    """How much of the bound is measured."""

    times: int | None  # number of random timesteps of each picture; None: all timesteps
    seed: int  # of the noise and of the random timesteps


class PictureBits(NamedTuple):
    """Bits/dim of each of N pictures, float64 [N] each."""

    total: Tensor  # prior and all terms
    total_tanh: Tensor  # the same with the published code's approximation at t = 0
    prior: Tensor
    terms: Tensor
    first: Tensor  # part of `terms` at t = 0


def measure_terms(
    pipeline: Pipeline,
    pictures: PictureSet,
    rows: Sequence[int],
    condition: Callable[[Sequence[int]], Condition],
    options: BoundOptions,
    *,
    size: BatchSize,
) -> "TermSums":
    """Measure the terms of the bound of pictures; a picture's noise and timesteps depend on seed and row alone.

    Args:
        pipeline: a model of pixels, of a variance-preserving schedule.
        pictures: the set that the pictures belong to, with the model's channels and side.
        rows: rows in the set of the pictures to measure.
        condition: function of some rows that returns the condition under which these pictures are measured.
        options: number of timesteps, and seed.
        size: number of pictures at once.
    """
    steps = len(pipeline.schedule)
    sums, count = TermSums.empty(steps, options.times), options.times or steps
    with tqdm(total=len(rows) * count, unit="term", desc="nll", leave=False) as bar:

        def terms(batch: range) -> tuple[Tensor, list[Term]]:
            indices, bar.n = [rows[i] for i in batch], batch.start * count  # anew, where memory ran out
            x_0 = to_unit(pictures.pictures(indices)).to(pipeline.device)
            noise, times = _random(torch.tensor(indices, device=x_0.device), x_0.shape[1:], steps, options)
            measured: list[Term] = []
            denoiser, cond = pipeline.denoiser(), condition(indices)
            for term in likelihood.nll(denoiser, x_0, noise, times, cond, variance=pipeline.variance):
                measured.append(Term(*(value.cpu() for value in term)))
                bar.update(len(batch))
            return likelihood.prior(x_0, pipeline.schedule), measured

        for prior, measured in size.batches(len(rows), terms):
            sums.start(prior)
            for term in measured:
                sums.add(term)
    pipeline.finite.verify()
    return sums


def _random(
    indices: Tensor, shape: Sequence[int], steps: int, options: BoundOptions
) -> tuple[Callable[[Tensor], Tensor], Iterator[Tensor] | None]:
    """Return a function that gives the noise [B, *shape] at timesteps [B], and the random timesteps to measure.

    The latter are an iterator of `options.times` tensors [B]; None: all of the T = `steps` timesteps are measured. Both
    results depend on `options.seed` and the pictures' indices [B] in the held-out set alone.
    """

    def noise(t: Tensor) -> Tensor:
        return rng.normal(options.seed, "nll", indices * steps + t, shape)

    times = None if options.times is None else _sparse_times(options.times, steps, options.seed, indices)
    return noise, times


def _sparse_times(count: int, steps: int, seed: int, indices: Tensor) -> Iterator[Tensor]:
    """Yield timesteps [B] `count` times, drawn from `sparse_density`, in which early timesteps are most likely.

    The k-th timestep comes from the k-th of `count` equally likely parts of the density (stratified sampling).

    Args:
        count: number of timesteps of each picture.
        steps: number of all timesteps T.
        seed: seed of the random numbers.
        indices: indices [B] of the pictures, on which the random numbers depend.
    """
    density = likelihood.sparse_density(steps)
    for k in range(count):
        u = (k + rng.uniform(seed, "nll time", exact(indices * count + k))) / count
        yield timesteps_at_quantiles(u, density).to(indices.device)


@dataclass(eq=False)
class TermSums:
    """Running sums of the measured terms of the variational bound, in bits/dim, over T timesteps.

    A term at one of K random timesteps, drawn with density p, has weight 1 / (K p): the expected weighted sum of the K
    terms is then the sum of the terms of all timesteps.
    """

    weights: Tensor  # weight of a term at each timestep, [T]; 1 where all timesteps are measured
    times: int  # number of timesteps measured of each picture, K
    sums: Tensor  # sum of the measured terms at each timestep, without the weights, [T]
    counts: Tensor  # number of terms measured at each timestep, [T]
    batches: list[Tensor]  # for each batch [4, B]: prior; weighted sums of terms, of those at t = 0, of these with tanh

    @classmethod
    def empty(cls, steps: int, times: int | None) -> "TermSums":
        """Return the sums of no picture, for T = `steps` timesteps of which `times` are measured; None: all."""
        weights = torch.ones(steps).double() if times is None else 1 / (times * likelihood.sparse_density(steps))
        return cls(weights, times or steps, torch.zeros(steps).double(), torch.zeros(steps).double(), [])

    def start(self, prior: Tensor) -> None:
        """Start a batch of B pictures whose prior terms are `prior` [B]."""
        prior = prior.cpu().double()
        self.batches.append(torch.stack([prior, *torch.zeros(3, *prior.shape).double()]))

    def add(self, term: Term) -> None:
        """Add a term of each picture of the batch that was started last."""
        t, bits = term.t.cpu(), term.bits.cpu().double()
        self.sums.index_add_(0, t, bits)
        self.counts.index_add_(0, t, torch.ones_like(bits))
        self.batches[-1][1] += self.weights[t] * bits
        self.batches[-1][2] += self.weights[t] * bits * (t == 0)
        self.batches[-1][3] += self.weights[t] * term.bits_tanh.cpu().double() * (t == 0)

    def pictures(self) -> PictureBits:
        """Return the bits/dim of each picture, in order."""
        prior, terms, first, first_tanh = torch.cat(self.batches, dim=1)
        total = prior + terms
        return PictureBits(total, total - first + first_tanh, prior, terms, first)

    def curve(self) -> Tensor:
        """Return the mean term at each timestep, [T]; NaN: not measured."""
        return self.sums / self.counts
