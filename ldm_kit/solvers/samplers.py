"""Sample with a sampler chosen by its name, see `ldm_kit.solvers.table`."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor

from ldm_kit.diffusion.denoiser import Denoiser, Gradient
from ldm_kit.diffusion.posterior import VarianceType
from ldm_kit.diffusion.rng import step_noise
from ldm_kit.diffusion.samplers import Noise, State
from ldm_kit.solvers.diffusers_solvers import run_diffusers_scheduler
from ldm_kit.solvers.table import DIFFUSERS_PREFIX, NamedSampler, find_sampler, names_where


def sample(
    name: str,
    denoiser: Denoiser,
    noise: Tensor,
    times: Sequence[int],
    cond: Any = None,
    *,
    seeds: Sequence[int] | None = None,
    eta: float = 0.0,
    gradient: Gradient | None = None,
    variance: VarianceType | Literal["auto"] = "auto",
) -> Iterator[State]:
    """Sample from a denoiser with the sampler of the given name.

    A sample depends on its own noise, condition and seed, never on the other samples of the batch.

    Args:
        name: name of a sampler, see `ldm_kit.solvers.table`; or `diffusers:CLASS`, see `run_diffusers_scheduler`.
        denoiser: predicts x_0 and eps; for guidance, a denoiser wrapped by `ldm_kit.diffusion.guidance`.
        noise: standard normal noise [B, ...], such as `rng.initial_noise(seeds, shape)`.
        times: falling timesteps, such as `respacing.respaced_timesteps` returns; the last is -1, clean data.
        cond: condition in the form that the denoiser takes.
        seeds: a seed for each sample, for samplers that add noise.
        eta: for ddim: standard deviation of the noise added at each step, relative to ddpm's, 0 to 1.
        gradient: for ddpm and ddpm-large: classifier guidance's gradient, which shifts the mean of each step (Dhariwal
            & Nichol 2021, algorithm 1).
        variance: for ddpm: variance of the reverse step: small (the posterior's), large (beta) or learned_range
            (predicted by the network); auto: learned_range if the network predicts a variance, else small.

    Returns:
        The state after each step: samples x_t, their timestep t, and the prediction. The last is clean data, t = -1.

    Raises:
        ValueError: `name` is unknown; the sampler adds noise, but `seeds` has not one seed for each sample; or `eta` is
            above 0 or `gradient` is given, but the sampler takes no eta or no gradient.
    """
    record = None if name.startswith(DIFFUSERS_PREFIX) else find_sampler(name)
    if gradient is not None and not (record and record.shifts_mean):
        raise ValueError(
            f"{name} has no variance by which a gradient could shift its mean (algorithm 1); expected "
            f"{' or '.join(names_where(lambda one: one.shifts_mean))}, or the gradient in the denoiser (algorithm 2)"
        )
    if record is None:
        cls = name.removeprefix(DIFFUSERS_PREFIX)
        return run_diffusers_scheduler(cls, denoiser, noise, times, cond, seeds=seeds, eta=eta)
    if eta > 0 and not record.takes_eta:
        expected = " or ".join(names_where(lambda one: one.takes_eta))
        raise ValueError(f"{name} has no eta, got {eta}; expected {expected}")
    fresh = _step_noise(name, seeds, len(noise)) if record.adds_noise or eta > 0 else None
    options = _options(record, eta=eta, gradient=gradient, variance=variance, noise=fresh)
    return record.function(denoiser, noise, times, cond, **options)


def _options(record: NamedSampler, **given: Any) -> dict[str, Any]:
    """Return the keyword arguments for a sampler's function: its fixed options, and those of `given` that it takes.

    Args:
        record: the sampler's `NamedSampler`.
        given: eta, gradient, variance and noise by name.
    """
    takes = {
        "eta": record.takes_eta,
        "gradient": record.shifts_mean,
        "variance": record.takes_variance,
        "noise": record.adds_noise or record.takes_eta,
    }
    return {**record.options, **{key: value for key, value in given.items() if takes[key]}}


def _step_noise(name: str, seeds: Sequence[int] | None, count: int) -> Noise:
    if seeds is None or len(seeds) != count:
        raise ValueError(f"{name} adds noise and needs one seed for each of {count} pictures, got {seeds}")
    return partial(step_noise, seeds)
