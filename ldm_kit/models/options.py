"""Sampling options, described once for scripts, configs and Python, and resolved for the model that is sampled.

Each field defines a flag of `sample.py`: its name, help, range, default and error text. A flag that is left out takes
the value saved with the model, which was used to evaluate its run (`models.saved_sampling`). This module imports no
heavy library at the top.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from ldm_kit.config import UserError, check
from ldm_kit.diffusion.respacing import Spacing, respaced_timesteps
from ldm_kit.models.condition_options import check_conditions
from ldm_kit.models.flow_shift import SHIFTS, flow_shift_of, shift_times
from ldm_kit.models.own_settings import own_settings
from ldm_kit.models.sampler_options import (
    DEFAULT_LEVEL,
    OF_CONDITION,
    OF_THRESHOLD,
    UNTRAINED_NULL,
    SamplerOptions,
    check_scale,
)
from ldm_kit.models.sizes import SizeConditionOptions
from ldm_kit.solvers.table import DIFFUSERS_PREFIX, find_sampler, names_where

if TYPE_CHECKING:
    from ldm_kit.models.pipeline import Pipeline

FAST_STEPS = 8  # with dpm++ pictures look about as with 50 steps (docs/results/performance.md, what steps are worth)
_OF_CLASSIFIER = ("classifier_scale", "classifier_class", "algorithm")
_ALWAYS_SAID = ("steps", "solver", "guidance_scale")
_SCALES = ("guidance_scale", "guidance_scales")


class SamplingOptions(SizeConditionOptions, SamplerOptions):
    """How pictures are sampled. Options that are not given, "auto" or None are decided for a model by `resolve`.

    `classifier_scale`, `classifier_class` (the class to guide to) and `algorithm` are for a noisy classifier (Dhariwal
    & Nichol 2021), `autoguidance_scale` is for a weaker model (Karras et al. 2024).
    """

    classifier_scale: float | None = Field(
        default=None, ge=0, description="scale of the noisy classifier's gradient; left out: 1; 0: no guidance"
    )
    classifier_class: str | None = Field(
        default=None, description="class to which the classifier guides; left out: the prompts are the classes"
    )
    algorithm: Literal[1, 2] | None = Field(
        default=None,
        description="algorithm of Dhariwal & Nichol 2021: 1 shifts the mean (ddpm's default), 2 shifts eps",
    )
    prior_steps: int | None = Field(
        default=None, ge=1, description="DDIM steps of a prior over image embeddings; left out: the model's own"
    )
    prior_guidance_scale: float | None = Field(
        default=None, ge=0, description="scale of guidance of that prior; left out: the model's own; 1: no guidance"
    )
    autoguidance_scale: float | None = Field(
        default=None, ge=0, description="scale of guidance away from the guide model; left out: 2; 1: no guidance"
    )

    @model_validator(mode="after")
    def _algorithm_agrees(self) -> Self:
        if self.algorithm == 1 and not self._shifts_mean:
            shifted = " and ".join(names_where(lambda sampler: sampler.shifts_mean))
            raise ValueError(
                f"--algorithm 1 shifts the mean of {shifted}, and {self.solver} has none; "
                "expected --algorithm 2, or --solver ddpm"
            )
        return self

    @property
    def _shifts_mean(self) -> bool:
        """Whether the solver draws each step from a normal distribution, whose mean a gradient can shift."""
        return not self.solver.startswith(DIFFUSERS_PREFIX) and find_sampler(self.solver).shifts_mean

    def fast(self) -> "SamplingOptions":
        """Return these options with few steps (`FAST_STEPS`, 8), or unchanged if the user gave a number of steps."""
        return self if "steps" in self.model_fields_set else self.model_copy(update={"steps": FAST_STEPS})

    def resolve(self, model: "Pipeline", fallback: Mapping[str, Any] | None = None) -> "ResolvedOptions":
        """Return these options with every value decided for a model, and checked against it.

        Args:
            model: a pipeline with the guides that are used in sampling.
            fallback: values, by option name, of options that are neither given here nor saved with the model; None:
                such options take their defaults.

        Raises:
            UserError: an option has no effect on this model, or is impossible with it; the message names the flag.
        """
        self._check_guides(model)
        if all(name in self.model_fields_set for name in _SCALES):
            raise UserError("--guidance_scales stand in place of --guidance_scale; expected one of them")
        own = self._saved_options(model)
        values = {**(fallback or {}), **own, **self._unguided(model), **self._given_values}
        values["steps"] = self._steps(model, values)
        options = check(SamplingOptions, values, model.saved.file)
        timesteps = options._timesteps(model)
        check_conditions(options, model)
        decided = {"steps": len(timesteps) - 1, "timesteps": timesteps, **options._decided(model)}
        decided["own"] = tuple(name for name in own if values[name] == own[name] and name not in self._unguided(model))
        resolved = ResolvedOptions(**options.model_dump() | decided)
        resolved._check_sampler(model)
        if model.takes_scale:
            try:
                check_scale(resolved, model.saved.guidance_range)
            except ValueError as error:
                raise UserError(str(error)) from None
        return resolved

    @property
    def _given_values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.model_fields_set}

    def _saved_options(self, model: "Pipeline") -> dict[str, Any]:
        """Return those options saved with the model that apply: {name: value}.

        Options that the user gave here, and those that conflict with a given one, are left out.
        """
        given = self._given_values
        own = {name: value for name, value in model.saved.sampling.items() if name in SamplerOptions.model_fields}
        scaled = any(name in given for name in _SCALES)  # then the saved scales are not used
        unguided = {**own, **self._unguided(model), **given}.get("guidance_scale") == 1
        sections = own.get("spacing") not in get_args(Spacing)  # such a spacing has a number of steps of its own
        stale = {
            *(OF_CONDITION if unguided else ()),
            *(_SCALES if scaled else ("guidance_scales",) if unguided else ()),
            *(("eta",) if "solver" in given else ()),
            *(OF_THRESHOLD if given.get("clip", "dynamic") != "dynamic" else ()),
            *(("spacing",) if (sections and "steps" in given) or self.solver.startswith(DIFFUSERS_PREFIX) else ()),
            *(SHIFTS if self.solver.startswith(DIFFUSERS_PREFIX) else ()),
        }
        return {name: value for name, value in own.items() if name not in given and name not in stale}

    def _unguided(self, model: "Pipeline") -> dict[str, float]:
        """Return the guidance scale, {"guidance_scale": 1.0}, if guidance must be off by default for `model`, else {}.

        The result is {} whenever the user gave guidance scales. Guidance is off if the model's null condition is
        missing or was not trained; a U-Net that takes the scale as input needs none. It is also off if a guide model
        guides instead, unless the user gave another option of classifier-free guidance. In place of 1.0, a U-Net that
        takes the scale gets the least scale that it was trained on.
        """
        if any(name in self.model_fields_set for name in _SCALES):
            return {}
        no_null = not model.takes_scale and (model.conditioner.null is None or not model.saved.trains_null)
        guided = model.autoguidance_model is not None and self._given(OF_CONDITION) is None
        least = model.saved.guidance_range.min_scale if model.takes_scale else 1.0
        return {"guidance_scale": least} if no_null or guided else {}

    def _steps(self, model: "Pipeline", values: Mapping[str, Any]) -> int:
        """Return the number of sampling steps: as the user gave it, or else `values["steps"]`, or else the default.

        A number that the user did not give is limited to the number of training timesteps of `model`.
        """
        steps = values.get("steps", SamplerOptions.model_fields["steps"].default)
        return steps if "steps" in self.model_fields_set else min(steps, model.schedule_config.num_train_timesteps)

    def _decided(self, model: "Pipeline") -> dict[str, Any]:
        """Return {name: value}: what the options that are "auto" or None here become for `model`."""
        decided: dict[str, Any] = {}
        if (self.height, self.width) != (None, None):
            decided |= dict(zip(("height", "width"), self.size(model), strict=True))
        if self.clip == "auto":
            decided["clip"] = "clip" if model.vae is None else "none"
        if self.noise_level is None and model.picture is not None and model.picture.takes_level:
            decided["noise_level"] = min(DEFAULT_LEVEL, model.picture.most_level)
        if model.classifier is not None and self.classifier_scale is None:
            decided["classifier_scale"] = 1.0
        if model.classifier is not None and self.algorithm is None:
            decided["algorithm"] = 1 if self._shifts_mean else 2
        if model.autoguidance_model is not None and self.autoguidance_scale is None:
            decided["autoguidance_scale"] = 2.0
        return decided

    def _check_guides(self, model: "Pipeline") -> None:
        """Raise UserError if an option is set that needs a guide or null condition which the model lacks."""
        if model.classifier is None and (idle := self._given(_OF_CLASSIFIER)):
            raise UserError(f"--{idle} needs --classifier DIR, a noisy classifier")
        if model.autoguidance_model is None and self.autoguidance_scale is not None:
            raise UserError("--autoguidance_scale needs --autoguidance_model DIR, a guide model of the same pictures")
        given = self._given_values
        guiding = "guidance_scales" if given.get("guidance_scales") else self._given(OF_CONDITION)
        guiding = "guidance_scale" if given.get("guidance_scale", 1) != 1 else guiding
        if guiding is not None and model.conditioner.null is None:
            raise UserError(f"--{guiding} is for models with a condition, and this one is unconditional")
        if guiding is not None and not (model.takes_scale or model.saved.trains_null):
            raise UserError(f"--{guiding} {UNTRAINED_NULL}")

    def _timesteps(self, model: "Pipeline") -> tuple[int, ...]:
        """Return the falling training timesteps of `model` that the sampler visits, then -1, which is clean data.

        Raises:
            UserError: `steps` or `spacing` does not fit the number of training timesteps.
        """
        total = model.schedule_config.num_train_timesteps
        try:
            times = respaced_timesteps(total, self.steps, self.spacing)
        except ValueError as error:
            what = f"--steps {self.steps}" if self.spacing in get_args(Spacing) else f"--spacing {self.spacing}"
            raise UserError(f"{what}: {error}") from None
        return shift_times(times, total, flow_shift_of(self, model))


class ResolvedOptions(SamplingOptions):
    """Sampling options with every value decided for one model, as `Pipeline.states` needs them.

    `own` holds the names of the options whose values were saved with the model.
    """

    timesteps: tuple[int, ...] = Field(
        description="falling training timesteps that are visited, then -1 (clean data); steps + 1 numbers"
    )
    own: tuple[str, ...] = Field(default=(), description="names of the options whose values were saved with the model")

    def resolve(self, model: "Pipeline", fallback: Mapping[str, Any] | None = None) -> "ResolvedOptions":
        """Return these options unchanged, as they are resolved already; the arguments are ignored."""
        return self

    def settings(self) -> dict[str, Any]:
        """Return the options as JSON values for a picture's metadata, without `timesteps` and `own`."""
        return self.model_dump(mode="json", exclude={"timesteps", "own"})

    @property
    def note(self) -> str:
        """Sentence for commands to print: the options whose values were saved with the model; empty if none were.

        Of these, steps, solver and guidance scale are always listed, others only if they differ from the default.
        """
        fields = SamplerOptions.model_fields
        decided = {name: getattr(self, name) for name in self.own}
        return own_settings({k: v for k, v in decided.items() if k in _ALWAYS_SAID or v != fields[k].default})

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
