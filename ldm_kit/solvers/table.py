"""The table of samplers by name, with the properties and the help text of each; it does not import torch.

A sampler is a function, which its record in this table (a `NamedSampler`) describes. Installed packages add samplers by
the entry-point group `ldm_kit.samplers`. An entry point names a `NamedSampler`, or a function that takes no options:

    [project.entry-points."ldm_kit.samplers"]
    toy = "my_package.toy:RECORD"
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated, Any

from pydantic import AfterValidator

DIFFUSERS_PREFIX = "diffusers:"  # diffusers:CLASS is the name of a diffusers scheduler that is not in the table
ENTRY_POINTS = "ldm_kit.samplers"


@dataclass(frozen=True)
class NamedSampler:
    """Description of a sampler: its function, the keyword arguments that it takes, and its diffusers scheduler.

    Args:
        run: the function, or its name "module:function", which is imported at first use. It is called as
            `run(denoiser, x, times, cond, **keywords)`, where `x` is standard normal [B, ...] and `times` are
            timesteps that fall to -1, and yields a `ldm_kit.diffusion.samplers.State` for each step.
        description: a few words for help texts.
        adds_noise: the function takes the keyword `noise`: a function of a step's index and the shape of one sample,
            which returns the standard normal noise [B, *shape] to add in this step.
        takes_eta: the function takes `eta`, 0 to 1, which scales DDPM's noise; and `noise`, None if eta is 0.
        takes_variance: the function takes `variance`, of the reverse step: small, large, learned_range or auto.
        shifts_mean: the function takes `gradient`, classifier guidance's, which shifts the mean of each step (Dhariwal
            & Nichol 2021, algorithm 1), or None.
        options: further keyword arguments of the function, always the same.
        scheduler: name of the diffusers class that corresponds to the sampler, for saved models; None: there is none.
        scheduler_options: keyword arguments of the diffusers class, in addition to those that `scheduler_config` gives.
        scheduler_takes_flow: whether diffusers' pipelines can sample flow models with the diffusers class.
        scheduler_takes_pure_noise: whether the diffusers class can start from pure noise, a_t = 0 (zero_terminal).
        scheduler_takes_x0: whether the diffusers class takes networks that predict x_0.
    """

    run: str | Callable[..., Iterator[Any]]
    description: str = ""
    adds_noise: bool = False
    takes_eta: bool = False
    takes_variance: bool = False
    shifts_mean: bool = False
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    scheduler: str | None = None
    scheduler_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    scheduler_takes_flow: bool = False
    scheduler_takes_pure_noise: bool = True
    scheduler_takes_x0: bool = True

    @property
    def function(self) -> Callable[..., Iterator[Any]]:
        """The sampler's function, imported if `run` is its name."""
        if not isinstance(self.run, str):
            return self.run
        module, _, name = self.run.partition(":")
        return getattr(import_module(module), name)


SAMPLERS: dict[str, NamedSampler] = {
    "ddpm": NamedSampler(
        run="ldm_kit.diffusion.samplers:ddpm",
        description="ancestral sampling",
        adds_noise=True,
        takes_variance=True,
        shifts_mean=True,
        scheduler="DDPMScheduler",
    ),
    "ddpm-large": NamedSampler(
        run="ldm_kit.diffusion.samplers:ddpm",
        description="ancestral sampling with beta as its variance",
        adds_noise=True,
        shifts_mean=True,
        options={"variance": "large"},
        scheduler="DDPMScheduler",
        scheduler_options={"variance_type": "fixed_large"},
    ),
    "ddim": NamedSampler(
        run="ldm_kit.diffusion.samplers:ddim",
        description="first order, deterministic unless eta is above 0",
        takes_eta=True,
        scheduler="DDIMScheduler",
    ),
    "dpm++": NamedSampler(
        run="ldm_kit.solvers.diffusers_solvers:run_multistep",
        description="DPM-Solver++(2M), second order",
        options={"scheduler": "DPMSolverMultistepScheduler"},
        scheduler="DPMSolverMultistepScheduler",
        scheduler_takes_flow=True,
    ),
    "unipc": NamedSampler(
        run="ldm_kit.solvers.diffusers_solvers:run_multistep",
        description="UniPC, second order",
        options={"scheduler": "UniPCMultistepScheduler"},
        scheduler="UniPCMultistepScheduler",
        scheduler_takes_flow=True,
    ),
    "heun": NamedSampler(
        run="ldm_kit.diffusion.samplers:heun",
        description="second order, two evaluations a step",
        scheduler="HeunDiscreteScheduler",
        scheduler_takes_pure_noise=False,
    ),
    "euler-a": NamedSampler(
        run="ldm_kit.diffusion.samplers:ddpm",
        description="k-diffusion's name for ddpm with the small variance",
        adds_noise=True,
        options={"variance": "small"},
        scheduler="EulerAncestralDiscreteScheduler",
        scheduler_takes_x0=False,
    ),
    "sde": NamedSampler(
        run="ldm_kit.diffusion.samplers:euler_maruyama",
        description="Euler-Maruyama on the reverse-time SDE",
        adds_noise=True,
    ),
    "consistency": NamedSampler(
        run="ldm_kit.diffusion.consistency_samplers:consistency",
        description="one step or a few of a consistency model, for which it is the default",
        adds_noise=True,
        scheduler="LCMScheduler",
    ),
}


def sampler_names() -> tuple[str, ...]:
    """Return the names of all samplers: those in the table, then those that only installed packages have."""
    return tuple(dict.fromkeys([*SAMPLERS, *(entry.name for entry in entry_points(group=ENTRY_POINTS))]))


def names_where(condition: Callable[[NamedSampler], bool]) -> list[str]:
    """Return the names of the samplers in the table whose `NamedSampler` satisfies `condition`."""
    return [name for name, record in SAMPLERS.items() if condition(record)]


def find_sampler(name: str) -> NamedSampler:
    """Return the `NamedSampler` of a name such as ddim, from the table or from an installed package's entry point.

    Raises:
        ValueError: there is no sampler `name`, or its entry point is neither a `NamedSampler` nor a function.
    """
    if name not in SAMPLERS:
        entries = [entry for entry in entry_points(group=ENTRY_POINTS) if entry.name == name]
        if not entries:
            raise ValueError(
                f"unknown solver {name!r}; known are {', '.join(sampler_names())} and {DIFFUSERS_PREFIX}CLASS"
            )
        SAMPLERS[name] = _record(name, entries[0].load())
    return SAMPLERS[name]


def _record(name: str, loaded: NamedSampler | Callable[..., Iterator[Any]]) -> NamedSampler:
    if isinstance(loaded, NamedSampler):
        return loaded
    if not callable(loaded):
        raise ValueError(f"entry point {name!r} of {ENTRY_POINTS} is {loaded!r:.80}; expected a NamedSampler")
    return NamedSampler(run=loaded)


def check_sampler(name: str) -> str:
    """Check that there is a sampler `name`, and return the name; diffusers:CLASS always passes, for any CLASS.

    Raises:
        ValueError: there is no sampler `name`.
    """
    if not name.startswith(DIFFUSERS_PREFIX) and name not in sampler_names():
        find_sampler(name)
    return name


SamplerName = Annotated[str, AfterValidator(check_sampler)]
"""Type of a config's field that holds a sampler's name; an unknown name is a validation error."""


def sampler_help() -> str:
    """Return a help text with the names and descriptions of all samplers."""
    described = [f"{name} ({record.description})" for name, record in SAMPLERS.items()]
    others = [name for name in sampler_names() if name not in SAMPLERS]
    return ", ".join([*described, *others, f"{DIFFUSERS_PREFIX}CLASS (any other diffusers scheduler)"])
