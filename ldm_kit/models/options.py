"""A wish: how pictures are to be drawn, in the words of `sample.py`'s flags, and what can be wrong with it at once."""

import math
from dataclasses import dataclass, fields

from ldm_kit.config import UserError
from ldm_kit.solvers.table import DIFFUSERS_PREFIX, sampler_names

CLIPS = ("auto", "none", "clip", "dynamic", "published")
ANCESTRAL = ("ddpm", "ddpm-large")  # solvers whose step is a normal distribution, whose mean can be shifted
TAKES_ETA = ("ddim", "diffusers:DDIMScheduler")  # solvers that take eta
FAST_STEPS = 8  # of dpm++, whose pictures are about those of 50 (docs/performance.md, what steps are worth)


@dataclass(frozen=True)
class SamplingOptions:
    """How pictures are to be drawn. What is "auto" or None is settled by the model (`Pipeline.settled`)."""

    steps: int = 20
    solver: str = "dpm++"
    guidance_scale: float = 3.0  # classifier-free; 1 is none
    negative: str | None = None  # None: the null condition that training used
    rescale: float = 0.0  # 0..1, how much of the guided prediction's contrast is taken back
    interval: tuple[float, float] = (0.0, 1.0)  # of t / T, in which there is classifier-free guidance
    spacing: str = "trailing"  # which training times the steps visit, `schedule.spaced`
    eta: float = 0.0  # DDIM's noise; 1 is DDPM's
    # Of the predicted picture, after guidance. auto: clip pixels to [-1, 1], leave latents alone; published: as clip,
    # but not once more after Algorithm 2, which breaks pictures where the schedule ends in almost pure noise.
    clip: str = "auto"
    classifier_scale: float | None = None  # None: 1 where there is a classifier
    classifier_class: str | None = None  # None: the prompts name the classes
    algorithm: int | None = None  # Dhariwal & Nichol 2021: 1 shifts ddpm's mean, 2 eps; None: 1 for ddpm, else 2
    autoguidance_scale: float | None = None  # None: 2 where there is a worse model; 1 is none


def check_options(wish: SamplingOptions) -> None:
    """Refuse what no model could draw.

    Raises:
        UserError: a number out of range, an unknown word, or two settings that exclude each other; it names the flag.
    """
    _refuse_numbers(wish)
    if wish.solver not in sampler_names() and not wish.solver.startswith(DIFFUSERS_PREFIX):
        raise UserError(
            f"unknown solver {wish.solver!r}; known are {', '.join(sampler_names())} and {DIFFUSERS_PREFIX}CLASS"
        )
    if wish.clip not in CLIPS:
        raise UserError(f"--clip is {wish.clip!r}; expected {', '.join(CLIPS)}")
    if wish.algorithm not in (None, 1, 2):
        raise UserError(f"--algorithm is {wish.algorithm}; expected 1 or 2")
    if wish.spacing != "trailing" and wish.solver.startswith(DIFFUSERS_PREFIX):
        raise UserError(f"--spacing is for our own solvers; {wish.solver} walks times of its own")
    if wish.eta > 0 and wish.solver not in TAKES_ETA:
        raise UserError(f"--eta {wish.eta:g} is for {TAKES_ETA[0]} alone, but --solver is {wish.solver}")
    if wish.algorithm == 1 and wish.solver not in ANCESTRAL:
        raise UserError(
            f"--algorithm 1 shifts the mean of {' and '.join(ANCESTRAL)}, and {wish.solver} has none; "
            "expected --algorithm 2, or --solver ddpm"
        )
    if wish.guidance_scale == 1:
        _refuse_idle(wish, "has no effect at --guidance_scale 1; expected another scale")


def check_unconditional_options(wish: SamplingOptions) -> None:
    """Refuse what an unconditional model has no use for; raises UserError."""
    _refuse_idle(wish, "is for models with a condition, and this one is unconditional")


def _refuse_numbers(wish: SamplingOptions) -> None:
    scales = {
        "--guidance_scale": wish.guidance_scale,
        "--classifier_scale": wish.classifier_scale,
        "--autoguidance_scale": wish.autoguidance_scale,
    }
    if wish.steps < 1:
        raise UserError(f"--steps is {wish.steps}; expected 1 or more")
    for flag, scale in scales.items():
        if scale is not None and not (scale >= 0 and math.isfinite(scale)):
            none = 0 if flag == "--classifier_scale" else 1
            raise UserError(f"{flag} is {scale}; expected a number of 0 or more, {none} is no guidance")
    for flag, share in (("--guidance_rescale", wish.rescale), ("--eta", wish.eta)):
        if not 0 <= share <= 1:
            raise UserError(f"{flag} is {share}; expected 0 to 1")
    low, high = wish.interval
    if not 0 <= low < high <= 1:
        raise UserError(f"--guidance_interval is {low:g} {high:g}; expected two shares of time, 0 <= LOW < HIGH <= 1")


def _refuse_idle(wish: SamplingOptions, why: str) -> None:
    usual = {field.name: field.default for field in fields(SamplingOptions)}
    flags = {"negative": "--negative_prompt", "rescale": "--guidance_rescale", "interval": "--guidance_interval"}
    for name, flag in flags.items():
        if getattr(wish, name) != usual[name]:
            raise UserError(f"{flag} {why}")
