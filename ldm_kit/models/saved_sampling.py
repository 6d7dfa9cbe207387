"""The sampling options that a run was judged with, which travel with its model: `sampling.json` in the model's folder.

diffusers reads what model_index.json names and nothing else, so that the file is ours alone. A folder without it is
sampled with the defaults of each command.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ldm_kit.config import Config, UserError, check
from ldm_kit.models.folder import read_json
from ldm_kit.models.sampler_options import UNTRAINED_NULL, own_settings

FILE = "sampling.json"
SAMPLING, RECONSTRUCTION, PRIOR = "sampling", "reconstruction", "prior"
"""Its sections: options of a denoiser, steps of encoding and decoding a picture, options of a prior over codes."""

PUBLISHED_STEPS = {"encode_steps": 250, "decode_steps": 100}  # Preechakul et al. 2022, appendix A
_DROPOUT = "condition_dropout"  # in a section, beside its options: 0 says that the null condition was never trained
C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class SavedSampling:
    """The sampling options of a run, by section and name, as JSON has them."""

    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    file: str = FILE  # what messages name

    @classmethod
    def of(cls, name: str, options: Config, condition_dropout: float | None = None) -> "SavedSampling":
        """Return one section: a run's options, and the share of samples that trained the null condition."""
        dropout = {} if condition_dropout is None else {_DROPOUT: condition_dropout}
        return cls({name: options.model_dump(mode="json", exclude={"prompts"}) | dropout})

    @classmethod
    def read(cls, folder: Path) -> "SavedSampling":
        """Read a saved model's file; empty where there is none.

        Raises:
            UserError: it is no JSON object of objects.
        """
        path = folder / FILE
        if not path.exists():
            return cls()
        sections = read_json(path, str(path))
        for name, values in sections.items():
            check(_Section, {"values": values}, f"{path}: {name}")
        return cls(sections, str(path))

    def write(self, folder: Path) -> None:
        """Write the file into a model's folder; nothing where there are no options."""
        if self.sections:
            text = json.dumps(self.sections, indent=2, ensure_ascii=False)
            (folder / FILE).write_text(f"{text}\n", encoding="utf-8")

    def joined(self, other: "SavedSampling") -> "SavedSampling":
        """Return the sections of both; the other's where both have one."""
        return SavedSampling({**self.sections, **other.sections}, other.file)

    @property
    def sampling(self) -> Mapping[str, Any]:
        """The options of a denoiser."""
        return self.sections.get(SAMPLING, {})

    @property
    def trains_null(self) -> bool:
        """Whether a denoiser's null condition was trained, as far as is known."""
        return self.sampling.get(_DROPOUT) != 0

    def steps(self, key: str, most: int) -> int:
        """Return the DDIM steps of encoding or decoding a picture: the run's, or else those of the method's paper.

        Args:
            key: encode_steps or decode_steps.
            most: as many as the model's noise schedule has; a default is never more.
        """
        return min(self.sections.get(RECONSTRUCTION, {}).get(key, PUBLISHED_STEPS[key]), most)

    def of_prior(self, steps: int | None, scale: float | None, most: int, conditioned: bool) -> tuple[int, float]:
        """Return the steps and the guidance scale of a prior over codes: as given, or its run's, or else 100 and 1.

        Args:
            steps: as given.
            scale: as given.
            most: training times of the prior; a default is never more.
            conditioned: whether there is a class or a prompt to guide to.

        Raises:
            UserError: guidance away from a null condition that was never trained.
        """
        prior = self.sections.get(PRIOR, {})
        trained = prior.get(_DROPOUT) != 0
        if scale is not None and scale != 1 and not trained:
            raise UserError(f"--guidance_scale {UNTRAINED_NULL}")
        own = prior.get("guidance_scale", 1.0) if conditioned and trained else 1.0
        return steps or min(prior.get("steps", 100), most), own if scale is None else scale

    def fill(self, options: C, section: str, names: Mapping[str, str]) -> tuple[C, str]:
        """Return options with the model's own in the place of those that were not given, and a note of which.

        Args:
            options: those of a command; fields that were given stay.
            section: whose options are taken.
            names: field of `options` -> name in the section.

        Raises:
            UserError: a saved option that is out of range.
        """
        saved = self.sections.get(section, {})
        own = {name: saved[key] for name, key in names.items() if key in saved and name not in options.model_fields_set}
        if not own:
            return options, ""
        given = {name: getattr(options, name) for name in options.model_fields_set}
        return check(type(options), own | given, self.file), own_settings(own)


class _Section(Config):
    values: dict[str, Any]
