"""The options with which a run's samples were evaluated, saved with its model in `sampling.json`.

Commands use them in place of their own defaults; a model's folder without the file is sampled with those defaults.
diffusers ignores the file, as model_index.json does not name it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from ldm_kit.config import Config, UserError, check
from ldm_kit.models.consistency_names import KARRAS_SCHEDULER, LATENT_SCHEDULERS, SOLVER
from ldm_kit.models.folder import INDEX, read_json
from ldm_kit.models.own_settings import own_settings
from ldm_kit.models.sampler_options import UNTRAINED_NULL, GuidanceRange

FILE = "sampling.json"
SAMPLING, RECONSTRUCTION, PRIOR = "sampling", "reconstruction", "prior"
"""Sections of the file: options of a diffusion model; steps of encoding and decoding pictures; options of a prior."""
GUIDANCE = "guidance"
"""A further section: the guidance scales that a U-Net with the scale as input was trained on."""

PUBLISHED_STEPS = {"encode_steps": 250, "decode_steps": 100}  # Preechakul et al. 2022, appendix A
_DROPOUT = "condition_dropout"  # key beside a section's options: 0 means that the null condition was never trained
C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class SavedSampling:
    """The options with which a model's training run was evaluated, as saved in `sampling.json`."""

    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """JSON values by section ("sampling", "reconstruction", "prior") and by option name."""

    file: str = FILE  # path of the file, for error messages

    @classmethod
    def of(cls, name: str, options: Config, condition_dropout: float | None = None) -> "SavedSampling":
        """Return a `SavedSampling` with one section, which holds the options of a training run.

        Args:
            name: the section, "sampling", "reconstruction" or "prior".
            options: options with which the run's samples are evaluated, saved without the field `prompts`.
            condition_dropout: fraction of the training samples whose condition was replaced by the null condition;
                None: not saved.
        """
        dropout = {} if condition_dropout is None else {_DROPOUT: condition_dropout}
        return cls({name: options.model_dump(mode="json", exclude={"prompts"}) | dropout})

    @classmethod
    def read(cls, folder: Path) -> "SavedSampling":
        """Read `sampling.json` of a saved model; if the folder has none, return `defaults_of` the kind of model.

        Raises:
            UserError: the file is no JSON object whose values are objects, or a value has a wrong type or is out of
                range.
        """
        path = folder / FILE
        if not path.exists():
            return cls(defaults_of(folder))
        sections = read_json(path, str(path))
        for name, values in sections.items():
            check(_Section, {"values": values}, f"{path}: {name}")
            numbers = {key: value for key, value in values.items() if key in _Numbers.model_fields}
            check(_Numbers, numbers, f"{path}: {name}")
        return cls(sections, str(path))

    def write(self, folder: Path) -> None:
        """Write `sampling.json` into a model's folder, unless there are no options to save."""
        if self.sections:
            text = json.dumps(self.sections, indent=2, ensure_ascii=False)
            (folder / FILE).write_text(f"{text}\n", encoding="utf-8")

    def joined(self, other: "SavedSampling") -> "SavedSampling":
        """Return the sections of this object and of `other`; a section in both is taken from `other`."""
        return SavedSampling({**self.sections, **other.sections}, other.file)

    @property
    def sampling(self) -> Mapping[str, Any]:
        """Saved options of sampling from a diffusion model; empty if none are saved."""
        return self.sections.get(SAMPLING, {})

    @property
    def guidance_range(self) -> GuidanceRange:
        """Guidance scales and times on which a U-Net that takes the scale was trained; if not saved, any from 1 on."""
        values = self.sections.get(GUIDANCE, {})
        low, high = values.get("interval", (0.0, 1.0))
        return GuidanceRange(values.get("max_scale", math.inf), (low, high), values.get("min_scale", 1.0))

    @property
    def trains_null(self) -> bool:
        """Whether the diffusion model's null condition was trained, as guidance needs; True if it is not stated."""
        return self.sampling.get(_DROPOUT) != 0

    def steps(self, key: str, most: int) -> int:
        """Return the number of DDIM steps to encode or decode a picture: the saved number, or else the DiffAE paper's.

        The paper encodes in 250 steps and decodes in 100.

        Args:
            key: "encode_steps" or "decode_steps".
            most: most steps that the model's noise schedule allows, to which the result is limited.
        """
        return min(self.sections.get(RECONSTRUCTION, {}).get(key, PUBLISHED_STEPS[key]), most)

    def of_prior(
        self, steps: int | None, scale: float | None, most: int, conditioned: bool, *, flag: str = "--guidance_scale"
    ) -> tuple[int, float]:
        """Return DDIM steps and guidance scale for a prior over codes: as given, or as saved, or else 100 and 1.

        Args:
            steps: the number of steps that the user gave; None: not given.
            scale: the guidance scale that the user gave; None: not given.
            most: number of the prior's training timesteps, to which steps that were not given are limited.
            conditioned: whether a class or a prompt is given; without one the saved scale is not used.
            flag: the flag of the scale, for the message.

        Raises:
            UserError: a scale other than 1 was given, but the prior's null condition was never trained.
        """
        prior = self.sections.get(PRIOR, {})
        trained = prior.get(_DROPOUT) != 0
        if scale is not None and scale != 1 and not trained:
            raise UserError(f"{flag} {UNTRAINED_NULL}")
        own = prior.get("guidance_scale", 1.0) if conditioned and trained else 1.0
        count = min(prior.get("steps", 100), most) if steps is None else steps
        return count, own if scale is None else scale

    def fill(self, options: C, section: str, names: Mapping[str, str]) -> tuple[C, str]:
        """Return a command's options in which those that the user left out have the values saved with the model.

        Args:
            options: the command's options; fields that the user gave stay.
            section: the section of the file from which saved options are taken, such as "reconstruction".
            names: field of `options` -> name of the saved option.

        Returns:
            The filled options, and a sentence that lists the saved options that were used ("" if none were).

        Raises:
            UserError: a saved option is out of range.
        """
        saved = self.sections.get(section, {})
        own = {name: saved[key] for name, key in names.items() if key in saved and name not in options.model_fields_set}
        if not own:
            return options, ""
        given = {name: getattr(options, name) for name in options.model_fields_set}
        return check(type(options), own | given, self.file), own_settings(own)


def defaults_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the sections of a model that has no `sampling.json`, such as one from the Hub.

    A flow model has the shift of its scheduler, a consistency model a solver and a number of steps, others nothing.
    A consistency model is recognised by the scheduler that model_index.json names. It is sampled in four steps if it is
    a latent consistency model, and in two without guidance if it is one of Song et al. 2023. A model of pixels whose
    scheduler thresholds x_0, such as DeepFloyd IF, is sampled with dynamic thresholding.
    """
    index = read_json(folder / INDEX, str(folder / INDEX)) if (folder / INDEX).exists() else {}
    match index.get("scheduler"):
        case ["diffusers", name] if name in LATENT_SCHEDULERS:
            return {SAMPLING: {"solver": SOLVER, "steps": 4}}
        case ["diffusers", name] if name == KARRAS_SCHEDULER:
            return {SAMPLING: {"solver": SOLVER, "steps": 2, "guidance_scale": 1.0}}
        case _:
            shift = _shift_of_scheduler(folder / "scheduler" / "scheduler_config.json")
            options = _clipping(folder, index) | ({} if shift == 1 else {"flow_shift": shift})
            return {SAMPLING: options} if options else {}


def _clipping(folder: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of dynamic thresholding that the scheduler of a model of pixels states; {}: it states none."""
    path = folder / "scheduler" / "scheduler_config.json"
    if {"vae", "vqvae"} & index.keys() or not path.exists():
        return {}
    config = read_json(path, str(path))
    if config.get("thresholding") is not True:
        return {}
    limits = {"dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}  # defaults of diffusers' schedulers
    return {"clip": "dynamic", **{name: config.get(name, default) for name, default in limits.items()}}


def _shift_of_scheduler(path: Path) -> float:
    """Return the shift of sampling times in the scheduler_config.json of a flow model; 1: none is stated."""
    config = read_json(path, str(path)) if path.exists() else {}
    name = str(config.get("_class_name"))
    key = "shift" if "FlowMatch" in name else "flow_shift" if config.get("use_flow_sigmas") is True else None
    value = config.get(key, 1.0) if key else 1.0
    dynamic = config.get("use_dynamic_shifting") is True  # by the size: the file states no number
    return float(value) if isinstance(value, int | float) and value > 0 and not dynamic else 1.0


class _Section(Config):
    values: dict[str, Any]


class _Numbers(Config):
    """Types and ranges of the saved values that are used as numbers; `SamplerOptions` checks the others.

    The fields are the numbers of all sections of `sampling.json` together.
    """

    steps: int = Field(default=1, ge=1)
    encode_steps: int = Field(default=1, ge=1)
    decode_steps: int = Field(default=1, ge=1)
    guidance_scale: float = Field(default=1.0, ge=0)
    stop: float = Field(default=0.0, ge=0, le=1)
    condition_dropout: float = Field(default=0.0, ge=0, le=1)
    max_scale: float = Field(default=1.0, ge=1)
    min_scale: float = Field(default=1.0, ge=1)
    interval: tuple[float, float] = (0.0, 1.0)
