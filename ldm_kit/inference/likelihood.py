"""Measure the variational bound on the negative log-likelihood of held-out pictures under a pixel model, in bits/dim.

The bound is a prior term, the KL divergence of fully noised pictures from normal noise, plus a term for each timestep.
The term of t = 0 is that of the reconstruction.
"""

import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from conditioning.base import Condition
from ldm_kit.config import UserError
from ldm_kit.data.batches import spread
from ldm_kit.data.images import PictureSet, Split, to_unit
from ldm_kit.data.readable import replacements, sources
from ldm_kit.data.sources import load
from ldm_kit.diffusion import likelihood, rng
from ldm_kit.diffusion.finite import check_finite
from ldm_kit.diffusion.float64 import exact
from ldm_kit.diffusion.likelihood import Term
from ldm_kit.diffusion.timesteps import timesteps_at_quantiles
from ldm_kit.inference.pixel_runs import of_latents, read_pixel_run, run_folders
from ldm_kit.inference.requests import LikelihoodRequest
from ldm_kit.memory import BatchSize
from ldm_kit.methods.conditions import split_conditions
from ldm_kit.methods.latent_config import LatentRun
from ldm_kit.models.folder import device_named
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.paths import check_writable
from ldm_kit.viz.png import unused_path, write_atomic


@dataclass(frozen=True)
class Likelihood:
    """The bound on the negative log-likelihood in bits/dim, averaged over pictures: total = prior + terms."""

    total: float
    prior: float  # KL divergence between the fully noised pictures' distribution and standard normal noise
    terms: float  # sum of the terms of all timesteps
    first: float  # part of `terms` at t = 0
    standard_error: float | None  # standard error of `total` over pictures; None: one picture only
    pictures: int  # number of pictures
    times: int  # number of timesteps at which a term was measured for each picture
    of: int  # number of all timesteps
    variance: str  # type of the reverse steps' variance: small, large or learned_range
    seed: int  # seed of the random noise and timesteps

    def __str__(self) -> str:
        spread = "" if self.standard_error is None else f" +- {self.standard_error:.2g} (standard error)"
        coverage = f"all {self.of} times"
        if self.times < self.of:
            coverage = f"an unbiased estimate from {self.times} random ones of {self.of} times for each picture"
        return (
            f"{self.total:.4f}{spread} bits/dim bound the negative log-likelihood of {self.pictures} held-out pictures:"
            f" prior {self.prior:.3g}, terms {self.terms:.4f} ({self.first:.4f} of them at t = 0); {coverage}, "
            f"variance {self.variance}"
        )


def evaluate_likelihood(
    path: Path,
    request: LikelihoodRequest,
    device: str | None = None,
    overrides: Sequence[str] = (),
    *,
    data: Split | None = None,
) -> str:
    """Measure the likelihood bound of a run's held-out pictures, and write nll.json and nll.png into the run's folder.

    nll.json holds the numbers, nll.png plots the term of each timestep. If one of the files exists already, the new
    ones are nll-2.json and nll-2.png.

    Args:
        path: a finished run's folder, or the model/ within it.
        request: how many pictures and timesteps are measured.
        device: cpu, cuda, ...; None: the accelerator if there is one.
        overrides: new values of keys in the run's config, such as `data.path=elsewhere` if the pictures have moved.
        data: the run's pictures, if a Python program passed them to `train`; None: those of the config.

    Returns:
        A sentence with the result and the paths of both files.

    Raises:
        UserError: the run or model is missing, has no likelihood (a latent or a flow model) or has no held-out
            pictures; the pictures differ from the model's in size or channels; or `request.times` is not below the
            number of all timesteps.
        NonFiniteError: the bound is NaN or infinity.
    """
    run, model = run_folders(path)
    config = read_pixel_run(run, overrides)
    check_writable(run)
    _check_times(request, config.schedule.num_train_timesteps)
    split = load(config.data, captions=config.needs_captions) if data is None else data
    if not len(split.heldout):
        raise UserError(f"the run in {run} has held no pictures out; expected data.heldout above 0")
    pipeline = Pipeline.load(model, device_named(device))
    if pipeline.vae is not None:
        raise of_latents(model)
    _check_pictures(split.heldout, pipeline, model)
    bound, curve = _measure(pipeline, split, config, request)
    check_finite("the likelihood", torch.tensor(bound.total))
    report = {**asdict(bound), "mean_term_by_time": [None if math.isnan(bits) else bits for bits in curve.tolist()]}
    out = unused_path(run / "nll.json", ".png")
    write_atomic(out, (json.dumps(report, indent=1) + "\n").encode())
    _plot(curve, out.with_suffix(".png"))
    return f"{bound}; written to {out} and {out.with_suffix('.png')}"


def _check_times(request: LikelihoodRequest, steps: int) -> None:
    if request.times is not None and request.times >= steps:
        raise UserError(f"--times is {request.times}, but there are {steps} times in all; leave it out to take all")


def _check_pictures(pictures: PictureSet, pipeline: Pipeline, model: Path) -> None:
    channels, side, _ = pipeline.latent_shape  # of a picture: the model has no autoencoder
    if (pictures.resolution, pictures.channels) != (side, channels):
        raise UserError(
            f"the held-out pictures have {pictures.resolution} px and {pictures.channels} channels; "
            f"expected {side} px and {channels} channels, as the model in {model} has"
        )


def _measure(
    pipeline: Pipeline, split: Split, config: LatentRun, request: LikelihoodRequest
) -> tuple[Likelihood, Tensor]:
    """Return the bound, and its term at each of the T timesteps [T], averaged over pictures (NaN: not measured).

    The pictures are those held out in `split`; `config` is the run's, and `request` says how much to measure.
    """
    steps, pictures = len(pipeline.schedule), split.heldout
    chosen = spread(len(pictures), request.count or len(pictures))
    _, raw = split_conditions(config.condition, split)
    sums = _Sums.empty(steps, request.times)
    count = request.times or steps
    with tqdm(total=len(chosen) * count, unit="term", desc="nll") as bar:

        def terms(batch: range) -> tuple[Tensor, list[Term]]:
            indices, bar.n = [chosen[i] for i in batch], batch.start * count  # anew, where memory ran out
            x_0 = to_unit(pictures.pictures(indices)).to(pipeline.device)
            shown = sources(torch.tensor(indices), replacements(pictures)).tolist()
            cond = Condition() if pipeline.conditioner.null is None else pipeline.condition([raw[i] for i in shown])
            noise, times = _random(torch.tensor(indices, device=x_0.device), x_0.shape[1:], steps, request)
            measured: list[Term] = []
            for term in likelihood.nll(pipeline.denoiser(), x_0, noise, times, cond, variance=pipeline.variance):
                measured.append(Term(*(value.cpu() for value in term)))
                bar.update(len(batch))
            return likelihood.prior(x_0, pipeline.schedule), measured

        for prior, measured in BatchSize(request.batch_size).batches(len(chosen), terms):
            sums.start(prior)
            for term in measured:
                sums.add(term)
    pipeline.finite.verify()
    return sums.likelihood(pipeline.variance, request.seed), sums.curve()


def _random(
    indices: Tensor, shape: Sequence[int], steps: int, request: LikelihoodRequest
) -> tuple[Callable[[Tensor], Tensor], Iterator[Tensor] | None]:
    """Return a function that gives the noise [B, *shape] at timesteps [B], and the random timesteps to measure.

    The latter are an iterator of `request.times` tensors [B]; None: all of the T = `steps` timesteps are measured. Both
    results depend on `request.seed` and the pictures' indices [B] in the held-out set alone.
    """

    def noise(t: Tensor) -> Tensor:
        return rng.normal(request.seed, "nll", indices * steps + t, shape)

    times = None if request.times is None else _sparse_times(request.times, steps, request.seed, indices)
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
class _Sums:
    """Running sums of the measured terms of the variational bound, in bits/dim, over T timesteps.

    A term at one of K random timesteps, drawn with density p, has weight 1 / (K p): the expected weighted sum of the K
    terms is then the sum of the terms of all timesteps.
    """

    weights: Tensor  # weight of a term at each timestep, [T]; 1 where all timesteps are measured
    times: int  # number of timesteps measured of each picture, K
    sums: Tensor  # sum of the measured terms at each timestep, without the weights, [T]
    counts: Tensor  # number of terms measured at each timestep, [T]
    batches: list[Tensor]  # for each batch [3, B]: prior, weighted sum of terms, weighted sum of terms at t = 0

    @classmethod
    def empty(cls, steps: int, times: int | None) -> "_Sums":
        weights = torch.ones(steps).double() if times is None else 1 / (times * likelihood.sparse_density(steps))
        return cls(weights, times or steps, torch.zeros(steps).double(), torch.zeros(steps).double(), [])

    def start(self, prior: Tensor) -> None:
        prior = prior.cpu().double()
        self.batches.append(torch.stack([prior, torch.zeros_like(prior), torch.zeros_like(prior)]))

    def add(self, term: Term) -> None:
        t, bits = term.t.cpu(), term.bits.cpu().double()
        self.sums.index_add_(0, t, bits)
        self.counts.index_add_(0, t, torch.ones_like(bits))
        self.batches[-1][1] += self.weights[t] * bits
        self.batches[-1][2] += self.weights[t] * bits * (t == 0)

    def likelihood(self, variance: str, seed: int) -> Likelihood:
        rows = torch.cat(self.batches, dim=1)
        prior, terms, first = rows.mean(1).tolist()
        count = rows.shape[1]
        error = float(rows[:2].sum(0).std()) / math.sqrt(count) if count > 1 else None
        steps = len(self.weights)
        return Likelihood(prior + terms, prior, terms, first, error, count, self.times, steps, variance, seed)

    def curve(self) -> Tensor:
        return self.sums / self.counts


def _plot(curve: Tensor, out: Path) -> None:
    """Plot `curve`, the mean term [T] of each timestep (bits/dim; NaN: not measured), to the PNG `out`."""
    from matplotlib.figure import Figure  # slow to import

    drawn = curve.isfinite() & (curve > 0)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes: Any = figure.add_subplot()
    axes.loglog((torch.arange(len(curve)) + 1)[drawn], curve[drawn], marker=".", markersize=3, linewidth=1)
    axes.set_xlabel("t + 1")
    axes.set_ylabel("bits/dim")
    axes.set_title("terms of the variational bound")
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomic(out, buffer.getvalue())
