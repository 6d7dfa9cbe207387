"""Any diffusers scheduler by its class name, built from our tables and driven by our denoiser."""

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
from ldm_kit.diffusion.samplers import State, run_scheduler
from ldm_kit.diffusion.schedule import Schedule

SMALLEST_A = 2.0**-12  # diffusers' stand-in for a = 0, where a solver would divide by zero


def is_flow(schedule: Schedule) -> bool:
    """Whether a + s = 1."""
    return torch.allclose(schedule.a + schedule.s, torch.ones_like(schedule.a))


def run_diffusers_scheduler(
    word: str,
    denoiser: Denoiser,
    noise: Tensor,
    times: Sequence[int],
    cond: Any = None,
    *,
    seeds: Sequence[int] | None = None,
    eta: float = 0.0,
) -> Iterator[State]:
    """The states of a diffusers scheduler on its own (trailing) grid of as many steps as `times` has.

    Solvers that evaluate between the steps, such as Heun's, have a state for each evaluation.

    Raises:
        ValueError: no such class, or one that does not fit our tables, needs non-integer times, or lacks seeds or eta.
    """
    solver = build_diffusers_scheduler(word, denoiser.schedule, times)
    known = inspect.signature(solver.step).parameters
    options: dict[str, Any] = {}
    if "generator" in known:
        if seeds is None or len(seeds) != len(noise):
            raise ValueError(f"{word} draws noise and needs one seed for each of {len(noise)} pictures, got {seeds}")
        options["generator"] = [torch.Generator().manual_seed(derive_seed(seed, "foreign solver")) for seed in seeds]
    if eta > 0 and "eta" not in known:
        raise ValueError(f"{word} has no eta, got {eta}")
    if "eta" in known:
        options["eta"] = eta
    target: PredictionType = "flow" if is_flow(denoiser.schedule) else "v"
    return run_scheduler(solver, denoiser, noise * solver.init_noise_sigma, cond, target=target, **options)


def build_diffusers_scheduler(word: str, schedule: Schedule, times: Sequence[int]) -> Any:
    """The scheduler of that class with our table and as many steps as `times` has, refused unless it is the same."""
    kind = getattr(schedulers, word, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ValueError(f"diffusers has no scheduler {word}; expected a class such as LMSDiscreteScheduler")
    if is_flow(schedule):
        needed = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        solver = _make(kind, needed, schedule, "flow sigmas")
    else:
        solver = _preserving_solver(kind, schedule)
    solver.set_timesteps(len(times) - 1)
    emitted = solver.timesteps.double()
    whole = bool((emitted - emitted.round()).abs().max() < 1e-3)
    if not whole or emitted.min() < 0 or emitted.max() >= len(schedule) or (emitted.diff() > 0).any():
        raise ValueError(
            f"{word} walks times that are not whole, falling and below {len(schedule)}; it cannot be driven"
        )
    return solver


def _preserving_solver(kind: type[Any], schedule: Schedule) -> Any:
    kept = schedule.a.clamp_min(SMALLEST_A).square().cpu()
    betas = 1 - kept / torch.cat([torch.ones(1).double(), kept[:-1]])
    needed = {"trained_betas": betas.tolist(), "prediction_type": "v_prediction"}
    solver = _make(kind, needed, schedule, "betas")
    if not torch.allclose(solver.alphas_cumprod.double(), kept, atol=1e-5):
        raise ValueError(f"{kind.__name__} does not keep the betas that it is given; it cannot be driven")
    return solver


def _make(kind: type[Any], needed: dict[str, Any], schedule: Schedule, what: str) -> Any:
    known = inspect.signature(kind.__init__).parameters
    step = getattr(kind, "step", None)
    takes = [] if step is None else [n for n, p in inspect.signature(step).parameters.items() if p.default is p.empty]
    if not needed.keys() <= known.keys() or takes != ["self", "model_output", "timestep", "sample"]:
        raise ValueError(f"{kind.__name__} cannot be built from our {what} and driven; expected another scheduler")
    wished = {
        "num_train_timesteps": len(schedule),
        "timestep_spacing": "trailing",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "skip_prk_steps": True,
        **needed,
    }
    return kind(**{name: value for name, value in wished.items() if name in known})
