"""Options of the commands of `edit.py` that sample: from a prior over codes, or from a model of prompts or classes.

No torch here, as `--help` must not wait for it.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ldm_kit.config import Config
from ldm_kit.editing.options import StepOptions
from ldm_kit.models.options import SamplingOptions

_SAMPLING = SamplingOptions.model_fields  # flags that mean the same here: range, help and error text
_MAX_SEED = 2**64 - 1
_IMAGE = "the picture; scaled and cropped to the model's size"
_STRENGTH = "share of the way to pure noise; less keeps more, 0.5 to 0.8 is usual"


class SeedOptions(Config):
    """Which pictures are sampled: of a prompt, how many, and their seeds."""

    prompt: str | None = Field(default=None, description="a prompt or a class; none for unconditional models")
    count: int = Field(default=1, ge=1, description="pictures")
    seed: int = Field(default=0, ge=0, description="of the first picture; the next counts up")

    @model_validator(mode="after")
    def _seeds_in_range(self) -> Self:
        if self.seed > _MAX_SEED - self.count + 1:
            raise ValueError(f"--seed is {self.seed}; expected 0 to 2^64 - --count")
        return self

    @property
    def seeds(self) -> list[int]:
        """One seed for each picture."""
        return list(range(self.seed, self.seed + self.count))

    @property
    def captions(self) -> list[str]:
        """One caption for each picture: its prompt and its seed."""
        return [f"{self.prompt or 'sample'}, seed {seed}" for seed in self.seeds]


class GuidedOptions(Config):
    """How a picture is sampled again: DDIM steps and classifier-free guidance."""

    steps: Annotated[int, _SAMPLING["steps"]] = 50
    guidance_scale: Annotated[float, _SAMPLING["guidance_scale"]] = 3.0
    negative_prompt: Annotated[str | None, _SAMPLING["negative_prompt"]] = None

    @model_validator(mode="after")
    def _guidance_has_an_effect(self) -> Self:
        if self.guidance_scale == 1 and self.negative_prompt is not None:
            raise ValueError("--negative_prompt has no effect at --guidance_scale 1; expected another scale")
        return self


class RepromptOptions(GuidedOptions):
    """A picture, what it shows, and what it is to show instead."""

    image: Path = Field(description=_IMAGE)
    source: str = Field(description="what the picture shows: a prompt or a class")
    prompt: str = Field(description="what it is to show instead")
    strength: float = Field(default=1.0, gt=0, le=1, description=_STRENGTH)
    refine: int = Field(
        default=0, ge=0, description="further evaluations in each step of the inversion; 3 is nearly exact"
    )


class Img2ImgOptions(GuidedOptions, SeedOptions):
    """A picture, and how far it is noised before it is sampled again."""

    image: Path = Field(description=_IMAGE)
    strength: float = Field(default=0.6, gt=0, le=1, description=_STRENGTH)


class InpaintOptions(GuidedOptions, SeedOptions):
    """A picture, and the part of it that is sampled again."""

    image: Path = Field(description=_IMAGE)
    mask: Path = Field(description="a picture: white is sampled again, black stays")
    resample: int = Field(default=4, ge=1, description="times that each step is repeated; more fits better")


class SamplePriorOptions(StepOptions, SeedOptions):
    """How new pictures are sampled from a prior over codes."""

    STEP_FIELDS: ClassVar[tuple[str, ...]] = ("decode_steps",)

    prompt: str | None = Field(
        default=None, description="condition of the prior", json_schema_extra={"flags": ["--class"]}
    )
    count: int = Field(default=8, ge=1, description="pictures")
    attribute: str | None = Field(default=None, description="sample until the code has this learned attribute")
    threshold: float | None = Field(
        default=None, ge=0, lt=1, description="that the attribute's probability must exceed; 0.5 if left out"
    )
    tries: int = Field(default=1000, ge=1, description="codes for each picture, at most")
    steps: int = Field(default=100, ge=1, description="DDIM steps of the code")
    decode_steps: int = Field(default=100, ge=1, description="DDIM steps of the picture")
    guidance_scale: Annotated[float, _SAMPLING["guidance_scale"]] = 1.0
    clip: Literal["none", "published"] = Field(
        default="none", description="published: codes are clipped as PDAE's code does by mistake"
    )
    batch_size: int = Field(default=32, ge=1, description="pictures at once; changes no picture")

    @model_validator(mode="after")
    def _threshold_needs_an_attribute(self) -> Self:
        if self.threshold is not None and self.attribute is None:
            raise ValueError(
                "--threshold is for --attribute NAME, whose probability it limits; give both, or leave it out"
            )
        return self
