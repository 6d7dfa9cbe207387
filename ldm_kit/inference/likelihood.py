"""How many bits a pixel model takes for a run's held-out pictures: the bound on its negative log-likelihood."""

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
from ldm_kit.data.images import PictureSet, to_unit
from ldm_kit.data.sources import load
from ldm_kit.diffusion import likelihood, rng
from ldm_kit.diffusion.likelihood import Term
from ldm_kit.diffusion.timesteps import timesteps_at_quantiles
from ldm_kit.methods import read_run
from ldm_kit.methods.inputs import raw_conditions
from ldm_kit.methods.latent_config import LatentRun
from ldm_kit.models import folder as parts
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.viz.png import write_atomic


@dataclass(frozen=True)
class LikelihoodRequest:
    """How much is measured: `count` pictures (None: all held out), `times` terms of each (None: all T)."""

    count: int | None = None
    times: int | None = None
    seed: int = 0
    batch_size: int = 64


@dataclass(frozen=True)
class Likelihood:
    """The bound in bits/dim, mean over pictures: total = prior + terms, of which `first` is that of t = 0."""

    total: float
    prior: float
    terms: float
    first: float
    standard_error: float | None  # of the total, over pictures; None: there is only one
    pictures: int
    times: int  # terms measured of each picture
    of: int  # all there are
    variance: str
    seed: int

    def told(self) -> str:
        """In a sentence."""
        spread = "" if self.standard_error is None else f" +- {self.standard_error:.2g} (standard error)"
        how = f"all {self.of} times"
        if self.times < self.of:
            how = f"an unbiased estimate from {self.times} random ones of {self.of} times for each picture"
        return (
            f"{self.total:.4f}{spread} bits/dim bound the negative log-likelihood of {self.pictures} held-out pictures:"
            f" prior {self.prior:.3g}, terms {self.terms:.4f} ({self.first:.4f} of them at t = 0); {how}, "
            f"variance {self.variance}"
        )


def evaluate_likelihood(place: Path, question: LikelihoodRequest, device: str | None = None) -> str:
    """Measure a trained run's model, write nll.json and nll.png into the run's folder, and say what was found.

    Args:
        place: a run's folder, or the model/ within it.
        question: how much is measured.
        device: cpu, cuda, ...; None: the accelerator if there is one.

    Raises:
        UserError: no such run or model, one without a likelihood (of latents, or flow), nothing held out, a number out
            of range.
    """
    folder, model = _places(place)
    settings = _settings(folder)
    _refuse(question, settings.schedule.num_train_timesteps)
    pictures = load(settings.data).heldout
    if not len(pictures):
        raise UserError(f"the run in {folder} has held no pictures out; expected data.heldout above 0")
    pipeline = Pipeline.load(model, parts.device_named(device))
    if pipeline.vae is not None:
        raise _latents(model)
    found, curve = _measured(pipeline, pictures, settings, question)
    sheet = {**asdict(found), "mean_term_by_time": [None if math.isnan(bits) else bits for bits in curve.tolist()]}
    write_atomic(folder / "nll.json", (json.dumps(sheet, indent=1) + "\n").encode())
    _draw(curve, folder / "nll.png")
    return f"{found.told()}; written to {folder / 'nll.json'} and {folder / 'nll.png'}"


def _places(place: Path) -> tuple[Path, Path]:
    """A run's folder and its model's."""
    model = parts.model_folder(place)
    folder = model.parent if model.name == "model" else place
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder} has no config.yaml, which says what pictures are held out; expected a run's folder, or the "
            "model/ within it"
        )
    return folder, model


def _settings(folder: Path) -> LatentRun:
    settings = read_run(folder / "config.yaml")
    if not isinstance(settings, LatentRun):
        raise UserError(f"{folder} is a run of method {settings.method}, which has no likelihood; expected latent")
    if settings.autoencoder is not None:
        raise _latents(folder)
    if settings.schedule.kind == "flow":
        raise UserError(f"{folder} is a flow model, whose schedule has no variational bound; expected another schedule")
    return settings


def _latents(where: Path) -> UserError:
    return UserError(
        f"{where} is a model of latents: how likely the decoder makes a picture is unknown, and so is the picture's "
        "likelihood; expected a model of pixels (autoencoder: null)"
    )


def _refuse(question: LikelihoodRequest, steps: int) -> None:
    numbers = {"--count": question.count, "--times": question.times, "--batch_size": question.batch_size}
    for flag, number in numbers.items():
        if number is not None and number < 1:
            raise UserError(f"{flag} is {number}; expected 1 or more")
    if question.times is not None and question.times >= steps:
        raise UserError(f"--times is {question.times}, but there are {steps} times in all; leave it out to take all")


def _measured(
    pipeline: Pipeline, pictures: PictureSet, settings: LatentRun, question: LikelihoodRequest
) -> tuple[Likelihood, Tensor]:
    """The likelihood, and the mean term at every time [T] (NaN where none was drawn)."""
    steps = len(pipeline.schedule)
    chosen = spread(len(pictures), question.count or len(pictures))
    raw = raw_conditions(settings.condition, pictures)
    tally = _Tally.empty(steps, question.times)
    count = question.times or steps
    batches = [chosen[i : i + question.batch_size] for i in range(0, len(chosen), question.batch_size)]
    with tqdm(total=len(batches) * count, unit="term", desc="nll") as bar:
        for places in batches:
            x_0 = to_unit(pictures.pictures(places)).to(pipeline.device)
            tally.start(likelihood.prior(x_0, pipeline.schedule))
            cond = Condition() if pipeline.conditioner.null is None else pipeline.condition([raw[i] for i in places])
            noise, times = _draws(torch.tensor(places, device=x_0.device), x_0.shape[1:], steps, question)
            for found in likelihood.nll(pipeline.denoiser(), x_0, noise, times, cond, variance=pipeline.variance):
                tally.add(found)
                bar.update()
    return tally.likelihood(pipeline.variance, question.seed), tally.curve()


def _draws(
    places: Tensor, shape: Sequence[int], steps: int, question: LikelihoodRequest
) -> tuple[Callable[[Tensor], Tensor], Iterator[Tensor] | None]:
    """Noise, and times (None: all), addressed by a picture's place in the held-out set, whatever its batch."""

    def noise(t: Tensor) -> Tensor:
        return rng.normal(question.seed, "nll", places * steps + t, shape)

    times = None if question.times is None else _sparse(question.times, steps, question.seed, places)
    return noise, times


def _sparse(count: int, steps: int, seed: int, places: Tensor) -> Iterator[Tensor]:
    """`count` times [B] for each picture, one in each stratum of a density that favours the early ones."""
    density = likelihood.sparse_density(steps)
    for k in range(count):
        u = (k + rng.uniform(seed, "nll time", places * count + k)) / count
        yield timesteps_at_quantiles(u, density)


@dataclass(eq=False)
class _Tally:
    """Sums over terms; a time drawn with density p counts 1 / (K p) times, so that their mean is the whole sum's."""

    weights: Tensor  # [T]
    times: int
    sums: Tensor  # [T] of terms
    counts: Tensor  # [T]
    rows: list[Tensor]  # a batch each: prior, weighted sum of terms, that of t = 0, as [3, B]

    @classmethod
    def empty(cls, steps: int, times: int | None) -> "_Tally":
        weights = torch.ones(steps).double() if times is None else 1 / (times * likelihood.sparse_density(steps))
        return cls(weights, times or steps, torch.zeros(steps).double(), torch.zeros(steps).double(), [])

    def start(self, prior: Tensor) -> None:
        prior = prior.double().cpu()
        self.rows.append(torch.stack([prior, torch.zeros_like(prior), torch.zeros_like(prior)]))

    def add(self, found: Term) -> None:
        t, bits = found.t.cpu(), found.bits.double().cpu()
        self.sums.index_add_(0, t, bits)
        self.counts.index_add_(0, t, torch.ones_like(bits))
        self.rows[-1][1] += self.weights[t] * bits
        self.rows[-1][2] += self.weights[t] * bits * (t == 0)

    def likelihood(self, variance: str, seed: int) -> Likelihood:
        rows = torch.cat(self.rows, dim=1)
        prior, terms, first = rows.mean(1).tolist()
        count = rows.shape[1]
        error = float(rows[:2].sum(0).std()) / math.sqrt(count) if count > 1 else None
        steps = len(self.weights)
        return Likelihood(prior + terms, prior, terms, first, error, count, self.times, steps, variance, seed)

    def curve(self) -> Tensor:
        return self.sums / self.counts


def _draw(curve: Tensor, out: Path) -> None:
    """The mean term over time, both on logarithmic scales; times that were never drawn are left out."""
    from matplotlib.figure import Figure  # slow to import

    met = curve.isfinite() & (curve > 0)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes: Any = figure.add_subplot()
    axes.loglog((torch.arange(len(curve)) + 1)[met], curve[met], marker=".", markersize=3, linewidth=1)
    axes.set_xlabel("t + 1")
    axes.set_ylabel("bits/dim")
    axes.set_title("terms of the variational bound")
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomic(out, buffer.getvalue())
