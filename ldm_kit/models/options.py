"""Sampling options: one description for scripts, configs and Python, and what a model makes of them.

A field is a flag of `sample.py`: its name, help, range, default and error text. This module waits for no heavy library.
"""

from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from ldm_kit.config import Config, UserError
from ldm_kit.solvers.table import DIFFUSERS_PREFIX, find_sampler, names_where, sampler_help, sampler_names

if TYPE_CHECKING:
    from ldm_kit.models.pipeline import Pipeline

FAST_STEPS = 8  # of dpm++, whose pictures are about those of 50 (docs/performance.md, what steps are worth)
_ETA_OF_DIFFUSERS = ("diffusers:DDIMScheduler",)  # diffusers' classes that take eta
_OF_CONDITION = ("negative_prompt", "guidance_rescale", "guidance_interval")  # without effect where nothing is guided
_OF_CLASSIFIER = ("classifier_scale", "classifier_class", "algorithm")


class SamplingOptions(Config):
    """How pictures are sampled; "auto" and None are decided by the model (`resolve`)."""

    steps: int = Field(default=20, ge=1, description="sampling steps")
    solver: str = Field(default="dpm++", description=sampler_help())
    guidance_scale: float = Field(default=3.0, ge=0, description="classifier-free guidance; 1 is no guidance")
    negative_prompt: str | None = Field(
        default=None, description="what to steer away from; left out: the null condition that training used"
    )
    guidance_rescale: float = Field(
        default=0.0, ge=0, le=1, description="how much of guidance's added contrast is taken back"
    )
    guidance_interval: tuple[float, float] = Field(
        default=(0.0, 1.0), description="shares of time, LOW and HIGH, between which is guided; 0 is clean"
    )
    spacing: str = Field(
        default="trailing", description="training times that are visited: trailing, leading, linspace; ddim25; 90,60,20"
    )
    eta: float = Field(default=0.0, ge=0, le=1, description="noise of ddim's steps; 1 is as much as ddpm's")
    clip: Literal["auto", "none", "clip", "dynamic", "published"] = Field(
        default="auto",
        description="range of the predicted picture, after guidance; auto clips pixels to -1..1 and leaves latents; "
        "published is clip, but not once more after --algorithm 2",
    )
    classifier_scale: float | None = Field(
        default=None, ge=0, description="of the noisy classifier's gradient; 1 left out, 0 is no guidance"
    )
    classifier_class: str | None = Field(default=None, description="the classifier's class, in the prompts' place")
    algorithm: Literal[1, 2] | None = Field(
        default=None, description="of Dhariwal & Nichol 2021: 1 shifts the mean (ddpm's default), 2 shifts eps"
    )
    autoguidance_scale: float | None = Field(
        default=None, ge=0, description="of guidance away from the guide model; 2 left out, 1 is no guidance"
    )

    @field_validator("solver")
    @classmethod
    def _known_solver(cls, solver: str) -> str:
        if solver not in sampler_names() and not solver.startswith(DIFFUSERS_PREFIX):
            raise ValueError(f"expected one of {', '.join(sampler_names())}, or {DIFFUSERS_PREFIX}CLASS")
        return solver

    @field_validator("guidance_interval")
    @classmethod
    def _rising_interval(cls, interval: tuple[float, float]) -> tuple[float, float]:
        low, high = interval
        if not 0 <= low < high <= 1:
            raise ValueError("expected two shares of time, 0 <= LOW < HIGH <= 1")
        return interval

    @model_validator(mode="after")
    def _agree(self) -> "SamplingOptions":
        """Refuse options that exclude each other, whatever the model."""
        if self.spacing != "trailing" and self.solver.startswith(DIFFUSERS_PREFIX):
            raise ValueError(f"--spacing is for our own solvers; {self.solver} has a time grid of its own")
        if self.eta > 0 and not self._takes_eta:
            taken = ", ".join(names_where(lambda sampler: sampler.takes_eta))
            raise ValueError(f"--eta {self.eta:g} is for {taken} alone, but --solver is {self.solver}")
        if self.algorithm == 1 and not self._shifts_mean:
            shifted = " and ".join(names_where(lambda sampler: sampler.shifts_mean))
            raise ValueError(
                f"--algorithm 1 shifts the mean of {shifted}, and {self.solver} has none; "
                "expected --algorithm 2, or --solver ddpm"
            )
        if self.guidance_scale == 1 and (idle := self._given(_OF_CONDITION)):
            raise ValueError(f"--{idle} has no effect at --guidance_scale 1; expected another scale")
        return self

    @property
    def _takes_eta(self) -> bool:
        built_in = not self.solver.startswith(DIFFUSERS_PREFIX)
        return find_sampler(self.solver).takes_eta if built_in else self.solver in _ETA_OF_DIFFUSERS

    @property
    def _shifts_mean(self) -> bool:
        """Whether a step of the solver is a normal distribution, whose mean a gradient can shift."""
        return not self.solver.startswith(DIFFUSERS_PREFIX) and find_sampler(self.solver).shifts_mean

    def _given(self, names: tuple[str, ...]) -> str | None:
        """Return the first of these options that differs from its default."""
        defaults = SamplingOptions.model_fields
        return next((name for name in names if getattr(self, name) != defaults[name].default), None)

    def fast(self) -> "SamplingOptions":
        """Return these options with as few steps as look alike, unless a number of steps was given."""
        return self if "steps" in self.model_fields_set else self.model_copy(update={"steps": FAST_STEPS})

    def resolve(self, model: "Pipeline") -> "ResolvedOptions":
        """Decide all that is left to the model, and check that the model can follow.

        Args:
            model: a pipeline, with the guides that it is sampled with.

        Raises:
            UserError: options that this model has no use for or cannot follow; names the flag.
        """
        self._check_guides(model)
        timesteps = self._timesteps(model)
        decided: dict[str, Any] = {"steps": len(timesteps) - 1, "timesteps": timesteps}
        if self.clip == "auto":
            decided["clip"] = "clip" if model.vae is None else "none"
        if model.classifier is not None and self.classifier_scale is None:
            decided["classifier_scale"] = 1.0
        if model.classifier is not None and self.algorithm is None:
            decided["algorithm"] = 1 if self._shifts_mean else 2
        if model.autoguidance_model is not None and self.autoguidance_scale is None:
            decided["autoguidance_scale"] = 2.0
        resolved = ResolvedOptions(**self.model_dump() | decided)
        resolved._check_sampler(model)
        return resolved

    def _check_guides(self, model: "Pipeline") -> None:
        if model.classifier is None and (idle := self._given(_OF_CLASSIFIER)):
            raise UserError(f"--{idle} needs --classifier DIR, a noisy classifier")
        if model.autoguidance_model is None and self.autoguidance_scale is not None:
            raise UserError("--autoguidance_scale needs --autoguidance_model DIR, a guide model of the same pictures")
        if model.conditioner.null is None and (idle := self._given(_OF_CONDITION)):
            raise UserError(f"--{idle} is for models with a condition, and this one is unconditional")

    def _timesteps(self, model: "Pipeline") -> tuple[int, ...]:
        """Return the falling training times that the steps visit, -1 (clean) the last."""
        from ldm_kit.diffusion.respacing import Spacing, respaced_timesteps

        total = model.schedule_config.num_train_timesteps
        try:
            return tuple(respaced_timesteps(total, self.steps, self.spacing))
        except ValueError as error:
            what = f"--steps {self.steps}" if self.spacing in get_args(Spacing) else f"--spacing {self.spacing}"
            raise UserError(f"{what}: {error}") from None


class ResolvedOptions(SamplingOptions):
    """Sampling options of which a model has decided all that was left to it; what generation takes."""

    timesteps: tuple[int, ...] = Field(description="falling training times, -1 (clean) the last; steps + 1 of them")

    def resolve(self, model: "Pipeline") -> "ResolvedOptions":
        """Return these options, which are decided already."""
        return self

    def settings(self) -> dict[str, Any]:
        """Return what a picture's metadata says of them: all but the times, as JSON takes it."""
        return self.model_dump(mode="json", exclude={"timesteps"})

    def _check_sampler(self, model: "Pipeline") -> None:
        if model.vae is not None and self.clip != "none":
            raise UserError(f"--clip {self.clip} is for pixels, but this model denoises latents, which have no range")
        if self.algorithm == 1 and self.steps == 1:
            raise UserError(
                "--algorithm 1 shifts by a step's variance, and a single one has none; expected more --steps"
            )
        if self.solver.startswith(DIFFUSERS_PREFIX):
            from ldm_kit.solvers.diffusers_solvers import build_diffusers_scheduler

            try:
                build_diffusers_scheduler(self.solver.removeprefix(DIFFUSERS_PREFIX), model.schedule, self.timesteps)
            except ValueError as error:
                raise UserError(f"--solver {self.solver}: {error}") from None
