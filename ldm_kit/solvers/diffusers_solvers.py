"""diffusers' schedulers as samplers, with betas or sigmas from a `Schedule`, predictions by a `Denoiser`."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers import schedulers
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ldm_kit.diffusion.denoiser import Denoiser
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.diffusion.samplers import SchedulerLike, State, run_scheduler
from ldm_kit.diffusion.schedule import Schedule

SMALLEST_A = 2.0**-12  # replaces signal level a = 0 (pure noise), as in diffusers: a solver would divide by zero


def run_multistep(
    denoiser: Denoiser, noise: Tensor, times: Sequence[int], cond: Any = None, *, scheduler: str
) -> Iterator[State]:
    """Sample by one of diffusers' multistep solvers on exactly the given timesteps.

    Args:
        denoiser: predicts x_0 and eps.
        noise: standard normal noise [B, ...].
        times: falling timesteps; the last is -1, clean data.
        cond: condition in the form that the denoiser takes.
        scheduler: class name, DPMSolverMultistepScheduler or UniPCMultistepScheduler.

    Returns:
        The state after each step: samples x_t, their timestep t, and the denoiser's prediction.
    """
    solver = multistep(scheduler, denoiser.schedule, times)
    return run_scheduler(solver, denoiser, noise, cond, prediction_type="x0")


def multistep(scheduler: str, schedule: Schedule, times: Sequence[int]) -> SchedulerLike:
    """Return a diffusers multistep scheduler that is set to exactly the given timesteps and takes predictions of x_0.

    The timesteps that the scheduler chooses itself would differ from those of ldm_kit's samplers. They are rounded in
    another way, for flow with noise levels up to 1e-3 apart, and sometimes their number differs by one.

    Args:
        scheduler: class name, DPMSolverMultistepScheduler (Lu et al. 2022, 2M) or UniPCMultistepScheduler (Zhao et al.
            2023).
        schedule: noise schedule of any kind.
        times: falling timesteps; the last is -1, clean data.
    """
    flow = schedule.is_flow
    total, count = len(schedule), len(times) - 1
    solver = getattr(schedulers, scheduler)(num_train_timesteps=total, prediction_type="sample", use_flow_sigmas=flow)
    solver.set_timesteps(count)
    a, s = schedule.alpha_sigma(torch.tensor(times))
    sigmas = s if flow else s / a.clamp_min(SMALLEST_A)
    sigmas[:-1].clamp_min_(1e-6)  # flow at t = 0 is clean data, sigma 0, of which the solver would take a logarithm
    solver.sigmas, solver.timesteps = sigmas.float(), torch.tensor(times[:-1])
    return solver


def run_diffusers_scheduler(
    name: str,
    denoiser: Denoiser,
    noise: Tensor,
    times: Sequence[int],
    cond: Any = None,
    *,
    seeds: Sequence[int] | None = None,
    eta: float = 0.0,
) -> Iterator[State]:
    """Sample by any of diffusers' schedulers, on the scheduler's own trailing timesteps.

    Args:
        name: class name of the scheduler, such as LMSDiscreteScheduler.
        denoiser: predicts x_0 and eps.
        noise: standard normal noise [B, ...].
        times: only the number of steps, `len(times)` - 1, is used.
        cond: condition in the form that the denoiser takes.
        seeds: a seed for each sample, for schedulers that add noise.
        eta: scale of DDPM's noise, 0 to 1, for schedulers whose `step` takes an eta.

    Returns:
        The state after each evaluation of the denoiser: samples x_t, their timestep t, and the prediction. A step may
        have more than one evaluation; Heun's method has two.

    Raises:
        ValueError: diffusers has no scheduler `name`, or it cannot be used, see `build_diffusers_scheduler`. Or the
            scheduler's `step` takes a generator, but `seeds` has not one seed for each sample; or `eta` is above 0, but
            `step` takes no eta.
    """
    solver = build_diffusers_scheduler(name, denoiser.schedule, times)
    parameters = inspect.signature(solver.step).parameters
    options: dict[str, Any] = {}
    if "generator" in parameters:
        if seeds is None or len(seeds) != len(noise):
            raise ValueError(f"{name} draws noise and needs one seed for each of {len(noise)} pictures, got {seeds}")
        options["generator"] = [torch.Generator().manual_seed(derive_seed(seed, "foreign solver")) for seed in seeds]
    if eta > 0 and "eta" not in parameters:
        raise ValueError(f"{name} has no eta, got {eta}")
    if "eta" in parameters:
        options["eta"] = eta
    prediction_type: PredictionType = "flow" if denoiser.schedule.is_flow else "v"
    start = noise * solver.init_noise_sigma
    return run_scheduler(solver, denoiser, start, cond, prediction_type=prediction_type, **options)


def build_diffusers_scheduler(name: str, schedule: Schedule, times: Sequence[int]) -> Any:
    """Return a diffusers scheduler with the betas (for flow, the sigmas) of a noise schedule, ready to sample.

    Args:
        name: class name of the scheduler, such as LMSDiscreteScheduler.
        schedule: variance-preserving noise schedule, or rectified flow's.
        times: only the number of steps, `len(times)` - 1, is used; the scheduler sets its own trailing timesteps.

    Raises:
        ValueError: diffusers has no scheduler class `name`, or the class cannot represent the noise schedule or does
            not take falling integer timesteps in 0..T-1.
    """
    kind = getattr(schedulers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ValueError(f"diffusers has no scheduler {name}; expected a class such as LMSDiscreteScheduler")
    if schedule.is_flow:
        settings = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        solver = _make(kind, settings, schedule, "flow sigmas")
    else:
        solver = _preserving_solver(kind, schedule)
    solver.set_timesteps(len(times) - 1)
    emitted = solver.timesteps.double()
    whole = bool((emitted - emitted.round()).abs().max() < 1e-3)
    if not whole or emitted.min() < 0 or emitted.max() >= len(schedule) or (emitted.diff() > 0).any():
        raise ValueError(
            f"{name} walks times that are not whole, falling and below {len(schedule)}; it cannot be driven"
        )
    return solver


def _preserving_solver(kind: type[Any], schedule: Schedule) -> Any:
    """Return a diffusers scheduler of the class `kind` with the betas of a variance-preserving schedule.

    The scheduler's prediction type is v. Signal levels a_t, with x_t = a_t x_0 + s_t eps, are raised to at least
    `SMALLEST_A`, so that the scheduler does not divide by 0.

    Raises:
        ValueError: the class takes no betas or changes them, or its `step` has other required arguments than
            (model_output, timestep, sample).
    """
    alpha_bar = schedule.a.clamp_min(SMALLEST_A).square().cpu()
    betas = 1 - alpha_bar / torch.cat([torch.ones(1).double(), alpha_bar[:-1]])
    settings = {"trained_betas": betas.tolist(), "prediction_type": "v_prediction"}
    solver = _make(kind, settings, schedule, "betas")
    if not torch.allclose(solver.alphas_cumprod.double(), alpha_bar, atol=1e-5):
        raise ValueError(f"{kind.__name__} does not keep the betas that it is given; it cannot be driven")
    return solver


def _make(kind: type[Any], required: dict[str, Any], schedule: Schedule, tables: str) -> Any:
    parameters = inspect.signature(kind.__init__).parameters
    step = getattr(kind, "step", None)
    takes = [] if step is None else [n for n, p in inspect.signature(step).parameters.items() if p.default is p.empty]
    if not required.keys() <= parameters.keys() or takes != ["self", "model_output", "timestep", "sample"]:
        raise ValueError(f"{kind.__name__} cannot be built from our {tables} and driven; expected another scheduler")
    settings = {
        "num_train_timesteps": len(schedule),
        "timestep_spacing": "trailing",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "skip_prk_steps": True,
        **required,
    }
    return kind(**{name: value for name, value in settings.items() if name in parameters})
