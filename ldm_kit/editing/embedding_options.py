"""Options of the commands of `edit.py` that move the image embedding of a decoder (unCLIP).

No torch here, as `--help` must not wait for it.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from ldm_kit.editing.options import BATCH_SIZE
from ldm_kit.editing.sample_options import GuidedOptions
from ldm_kit.models.sampler_options import Seed

_PROMPT = "what a decoder that takes text beside the image gets; left out: nothing"
_SEED = "seed of the noise, one for all pictures"


class BlendOptions(GuidedOptions):
    """Options of `edit.py blend`: the two pictures, and how many pictures lead from one to the other."""

    image: tuple[Path, ...] = Field(description="the two pictures, each by its own --image")
    count: int = Field(default=8, ge=2, description="number of pictures, both ends among them")
    prompt: str = Field(default="", description=_PROMPT)
    seed: Seed = Field(default=0, description=_SEED)
    batch_size: int = Field(default=32, ge=1, description=BATCH_SIZE)

    @field_validator("image")
    @classmethod
    def _two_images(cls, image: tuple[Path, ...]) -> tuple[Path, ...]:
        if len(image) != 2:
            raise ValueError(f"got {len(image)} pictures; expected two, each by its own --image")
        return image


class TextDiffOptions(GuidedOptions):
    """Options of `edit.py textdiff`: a picture, what it shows, what it shall show, and how far it is moved."""

    image: Path = Field(description="the picture; scaled and cropped to the model's size")
    source: str = Field(description="what the picture shows: a prompt")
    target: str = Field(description="what the edited picture shows: a prompt")
    count: int = Field(default=5, ge=2, description="number of pictures, from the picture's embedding to the last")
    theta: float = Field(
        default=0.5, gt=0, le=1, description="share of the way to the text difference of the last picture"
    )
    clip_model: str | None = Field(
        default=None,
        description="open_clip:ARCHITECTURE/WEIGHTS, the model's own CLIP, whose text encoder gives the difference; "
        "left out: the mean embeddings that the model's prior samples for the two prompts",
    )
    samples: int = Field(default=16, ge=1, description="embeddings of each prompt that the prior samples")
    prompt: str = Field(default="", description=_PROMPT)
    seed: Seed = Field(default=0, description=_SEED)
    batch_size: int = Field(default=32, ge=1, description=BATCH_SIZE)

    @model_validator(mode="after")
    def _prompts_differ(self) -> Self:
        if self.source == self.target:
            raise ValueError("--source and --target are equal, and have no difference; expected two prompts")
        return self
