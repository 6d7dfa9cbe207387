"""Measure the variational bound on the negative log-likelihood of held-out pictures under a pixel model, in bits/dim.

The bound is a prior term, the KL divergence of fully noised pictures from normal noise, plus a term for each timestep.
The term of t = 0 is that of the reconstruction.
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conditioning.base import Condition
from ldm_kit.config import UserError
from ldm_kit.data.batches import spread
from ldm_kit.data.buckets import square_split
from ldm_kit.data.images import PictureSet, Split
from ldm_kit.data.readable import replacements, sources
from ldm_kit.data.sources import load
from ldm_kit.diffusion.finite import check_finite
from ldm_kit.inference.likelihood_terms import BoundOptions, TermSums, measure_terms
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
    total_tanh: float  # the same with the published code's approximation at t = 0, to compare with published figures
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
            f"variance {self.variance}; {self.total_tanh:.4f} with the tanh approximation of published figures"
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
    check_times(request.times, config.schedule.num_train_timesteps)
    split = square_split(load(config.data, captions=config.needs_captions)) if data is None else data
    if not len(split.heldout):
        raise UserError(f"the run in {run} has held no pictures out; expected data.heldout above 0")
    pipeline = Pipeline.load(model, device_named(device))
    if pipeline.vae is not None:
        raise of_latents(model)
    if pipeline.takes_pictures:
        raise UserError(f"the model in {model} is conditioned on a picture; expected one that is not")
    _check_pictures(split.heldout, pipeline, model)
    bound, curve = _measure(pipeline, split, config, request)
    check_finite("the likelihood", torch.tensor(bound.total))
    report = {**asdict(bound), "mean_term_by_time": [None if math.isnan(bits) else bits for bits in curve.tolist()]}
    out = unused_path(run / "nll.json", ".png")
    write_atomic(out, (json.dumps(report, indent=1) + "\n").encode())
    _plot(curve, out.with_suffix(".png"))
    return f"{bound}; written to {out} and {out.with_suffix('.png')}"


def check_times(times: int | None, steps: int) -> None:
    """Check the number of random timesteps; UserError: it is not below `steps`, that of all."""
    if times is not None and times >= steps:
        raise UserError(f"--times is {times}, but there are {steps} times in all; leave it out to take all")


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
    pictures = split.heldout
    chosen = spread(len(pictures), request.count or len(pictures))
    _, raw = split_conditions(config.condition.prompts, split)

    def condition(rows: Sequence[int]) -> Condition:
        shown = sources(torch.tensor(rows), replacements(pictures)).tolist()
        return Condition() if pipeline.conditioner.null is None else pipeline.condition([raw[i] for i in shown])

    sums = measure_terms(
        pipeline,
        pictures,
        chosen,
        condition,
        BoundOptions(request.times, request.seed),
        size=BatchSize(request.batch_size),
    )
    return _likelihood(sums, pipeline.variance, request.seed), sums.curve()


def _likelihood(sums: TermSums, variance: str, seed: int) -> Likelihood:
    columns = sums.pictures()
    error = float(columns.total.std()) / math.sqrt(len(columns.total)) if len(columns.total) > 1 else None
    total, total_tanh, prior, terms, first = (column.mean().item() for column in columns)
    return Likelihood(
        total, total_tanh, prior, terms, first, error, len(columns.total), sums.times, len(sums.weights), variance, seed
    )


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
