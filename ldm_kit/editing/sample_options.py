"""Options of the commands of `edit.py` that sample: from a prior over codes, or from a model of prompts or classes.

No torch here, as `--help` must not wait for it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from ldm_kit.config import Config
from ldm_kit.editing.options import BATCH_SIZE, StepOptions
from ldm_kit.models.options import ResolvedOptions, SamplingOptions
from ldm_kit.models.sampler_options import OWN, Seed, check_seeds
from ldm_kit.models.sizes import SizeOptions
from ldm_kit.solvers.table import DIFFUSERS_PREFIX, sampler_names

if TYPE_CHECKING:
    from ldm_kit.models.pipeline import Pipeline

_SAMPLING = SamplingOptions.model_fields  # fields that are flags here as well, with the same range and help
_IMAGE = "the picture; scaled and cropped to the model's size, or to --height and --width"
_STRENGTH = "share of the way to pure noise; less keeps more of the picture, 0.5 to 0.8 is usual"


class SeedOptions(Config):
    """How many pictures are sampled, under which prompt, and from which seeds."""

    prompt: str | None = Field(default=None, description="a prompt or a class; none for unconditional models")
    count: int = Field(default=1, ge=1, description="number of pictures")
    seed: Seed = Field(default=0, description="seed of the first picture; the next add 1")

    @model_validator(mode="after")
    def _seeds_in_range(self) -> Self:
        check_seeds(self.seed, self.count)
        return self

    @property
    def seeds(self) -> list[int]:
        """One seed for each picture: `seed`, and those that follow it."""
        return list(range(self.seed, self.seed + self.count))

    @property
    def captions(self) -> list[str]:
        """One caption for each picture: the prompt, or "sample" without one, and the picture's seed."""
        return [f"{self.prompt or 'sample'}, seed {seed}" for seed in self.seeds]


class GuidedOptions(SizeOptions):
    """Size, steps and classifier-free guidance with which a picture is sampled again.

    The fields mean what they mean in `SamplerOptions`. A field that the user leaves out takes the value saved with the
    model, if there is such a value.
    """

    DEFAULTS: ClassVar[Mapping[str, Any]] = {"steps": 50, "solver": "ddim"}  # for models without saved options

    steps: Annotated[int, _SAMPLING["steps"]] = 50
    guidance_scale: Annotated[float, _SAMPLING["guidance_scale"]] = 3.0
    negative_prompt: Annotated[str | None, _SAMPLING["negative_prompt"]] = None

    @model_validator(mode="after")
    def _guidance_has_an_effect(self) -> Self:
        if self.guidance_scale == 1 and self.negative_prompt is not None:
            raise ValueError("--negative_prompt has no effect at --guidance_scale 1; expected another scale")
        return self

    def resolve(self, pipeline: "Pipeline", **fixed: Any) -> ResolvedOptions:
        """Return complete sampling options for a model.

        An option that the user left out takes the value saved with the model, or else that of `DEFAULTS`.

        Args:
            pipeline: the model.
            fixed: values, by the option's name, that the command sets whatever the user or the model says.

        Raises:
            UserError: an option has no effect on the model, or is impossible with it; the message names the flag.
        """
        given = self.model_dump(include=self.model_fields_set & SamplingOptions.model_fields.keys()) | fixed
        if str(pipeline.saved.sampling.get("solver")).startswith(DIFFUSERS_PREFIX):  # its grid starts at pure noise
            given = {"solver": self.DEFAULTS["solver"], **given}
        return SamplingOptions(**given).resolve(pipeline, self.DEFAULTS)


class RepromptOptions(GuidedOptions):
    """Options of `edit.py reprompt`: a picture, the prompt that describes it, and the new prompt."""

    steps: int = Field(default=50, ge=1, description="DDIM steps of the inversion, and as many of sampling")
    image: Path = Field(description=_IMAGE)
    source: str = Field(description="what the picture shows: a prompt or a class")
    prompt: str = Field(description="what the edited picture shows: a prompt or a class")
    strength: float = Field(default=1.0, gt=0, le=1, description=_STRENGTH)
    refine: int = Field(
        default=0, ge=0, description="further evaluations in each step of the inversion; 3 is nearly exact"
    )


class Img2ImgOptions(GuidedOptions, SeedOptions):
    """Options of `edit.py img2img`: a picture, and how far it is noised before it is sampled again."""

    image: Path = Field(description=_IMAGE)
    strength: float = Field(default=0.6, gt=0, le=1, description=_STRENGTH)
    solver: str = Field(default="ddim", description=", ".join(sampler_names()), json_schema_extra=OWN)
    batch_size: int = Field(default=32, ge=1, description=BATCH_SIZE)

    @field_validator("solver")
    @classmethod
    def _own_solver(cls, solver: str) -> str:
        if solver not in sampler_names():  # a diffusers class has a grid of its own, which starts at pure noise
            raise ValueError(f"expected one of {', '.join(sampler_names())}")
        return solver


class InpaintOptions(GuidedOptions, SeedOptions):
    """Options of `edit.py inpaint`: a picture, and the mask of the part that is sampled again."""

    image: Path = Field(description=_IMAGE)
    mask: Path = Field(description="a picture: white is sampled again, black stays")
    resample: int = Field(default=4, ge=1, description="times that each step is taken; more blends in better")
    batch_size: int = Field(default=32, ge=1, description=BATCH_SIZE)


class SamplePriorOptions(StepOptions, SeedOptions):
    """Options of `edit.py sample`: how codes are sampled from a prior, and decoded as new pictures.

    `STEP_FIELDS` names the fields that count steps of the decoder; `SAVED` maps fields to the options, saved with the
    model in the section `SECTION`, that they default to.
    """

    SECTION: ClassVar[str] = "prior"
    STEP_FIELDS: ClassVar[tuple[str, ...]] = ("decode_steps",)
    SAVED: ClassVar[Mapping[str, str]] = {name: name for name in ("steps", "decode_steps", "stop", "guidance_scale")}

    prompt: str | None = Field(
        default=None, description="condition of the prior", json_schema_extra={"flags": ["--class"]}
    )
    count: int = Field(default=8, ge=1, description="number of pictures")
    attribute: str | None = Field(default=None, description="sample until the code has this learned attribute")
    threshold: float | None = Field(
        default=None, ge=0, lt=1, description="probability of the attribute that codes must exceed; left out: 0.5"
    )
    tries: int = Field(default=1000, ge=1, description="most codes tried for each picture")
    steps: int = Field(default=100, ge=1, description="DDIM steps of the code", json_schema_extra=OWN)
    decode_steps: int = Field(default=100, ge=1, description="DDIM steps of the picture", json_schema_extra=OWN)
    guidance_scale: Annotated[float, _SAMPLING["guidance_scale"]] = 1.0
    clip: Literal["none", "published"] = Field(
        default="none", description="published: clip codes to [-1, 1], a mistake of PDAE's code"
    )
    batch_size: int = Field(default=32, ge=1, description=BATCH_SIZE)

    @model_validator(mode="after")
    def _threshold_needs_an_attribute(self) -> Self:
        if self.threshold is not None and self.attribute is None:
            raise ValueError(
                "--threshold is for --attribute NAME, whose probability it limits; give both, or leave it out"
            )
        return self
