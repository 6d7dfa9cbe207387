"""Picture conditions without a mask: a small picture to be upscaled, a grey one to be coloured, one of another kind."""

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from conditioning.condition import Condition, ConditioningError
from conditioning.pictures import IMAGE, LEVEL, SPACE, Draws, Frame, PictureCondition, Space, scaled

STEPS = 1000  # noise levels of the schedule that noises small pictures
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode L


class SuperResolution(PictureCondition, frozen=True, extra="forbid"):
    """A small picture, noised to a random level that the denoiser gets too (Ho et al. 2022; Rombach et al. 2022, 4.4).

    The small picture is the mean of each `factor` x `factor` pixels. It is noised at its own size by the schedule of
    the Stable Diffusion upscaler, and then scaled to the denoiser's size; or to that of a sample, and encoded.
    """

    kind: Literal["super_resolution"] = Field("super_resolution", description="a smaller picture")
    factor: int = Field(4, ge=2, le=64, description="how many times smaller the picture is along each side")
    max_level: int = Field(
        350, ge=0, lt=STEPS, description="greatest noise level of the picture in training, of 0 to 999; 0: next to none"
    )

    space: Literal["pixels", "latents"] = Field(
        "pixels",
        description="what the small picture becomes: pixels, scaled to the latents' size, which must not be less than "
        "its own; or, scaled to the size of a sample, latents of the run's autoencoder",
    )

    takes_level: ClassVar[bool] = True

    @property
    def most_level(self) -> int:
        """The greatest noise level of the training."""
        return self.max_level

    def channels(self, picture: int, latent: int | None) -> int:
        """Return the channels of a picture, or of a latent."""
        return picture if latent is None or self.space == "pixels" else latent

    def check_size(self, resolution: int, size: int) -> None:
        """Check that a small picture is not scaled down; raises ConditioningError if it would be."""
        if self.space == "pixels" and self.side(resolution) > size:
            raise ConditioningError(
                f"pictures of {resolution // self.factor} pixels would be scaled down to the {size} of the latents; "
                "expected condition.space latents, or a greater condition.factor"
            )

    def side(self, resolution: int) -> int:
        """Return `resolution` / `factor`; raises ConditioningError if that is no whole number."""
        if resolution % self.factor:
            raise ConditioningError(f"condition.factor is {self.factor}, which does not divide {resolution} pixels")
        return resolution // self.factor

    def example(self, picture: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Return the small pictures [B, C, R / factor, R / factor], and noise levels drawn from 0 to `max_level`."""
        self.side(picture.shape[-1])
        level = (draws.uniform("picture level", 1)[:, 0] * (self.max_level + 1)).long()
        return {IMAGE: F.avg_pool2d(picture, self.factor), LEVEL: level.to(picture.device)}

    def condition(self, given: Mapping[str, Tensor], frame: Frame, draws: Draws) -> Condition:
        """Return the small pictures, noised and scaled to the size of `frame`, and their noise levels."""
        image, level = given[IMAGE], given[LEVEL]
        noise = draws.normal("picture noise", tuple(image.shape[1:])).to(image)
        noised = _scheduler().add_noise(image, noise, level)
        if self.space == "latents":
            height, width = (self.factor * side for side in image.shape[2:])
            noised = scaled(noised, (height, width))
        return Condition(concat=frame.maps(noised, self.space), level=level)

    def shown(self, given: Mapping[str, Tensor], resolution: int) -> Tensor:
        """Return the small pictures with each pixel repeated."""
        return F.interpolate(given[IMAGE], size=(resolution, resolution))


class Grey(PictureCondition, frozen=True, extra="forbid"):
    """The grey picture, for colourisation."""

    kind: Literal["grey"] = Field("grey", description="the grey picture, to be coloured")
    space: Space = SPACE

    def channels(self, picture: int, latent: int | None) -> int:
        """Return 1, or the channels of a latent."""
        return 1 if latent is None or self.space == "pixels" else latent

    def condition(self, given: Mapping[str, Tensor], frame: Frame, draws: Draws) -> Condition:
        """Return the luma of the given pictures, coloured or grey; for the autoencoder, in each of its channels."""
        grey = luma(given[IMAGE])
        latents = frame.encode is not None and self.space != "pixels"
        return Condition(concat=frame.maps(grey.expand_as(given[IMAGE]) if latents else grey, self.space))

    def shown(self, given: Mapping[str, Tensor], resolution: int) -> Tensor:
        """Return the luma in all channels."""
        return luma(given[IMAGE]).expand_as(given[IMAGE])


class Column(PictureCondition, frozen=True, extra="forbid"):
    """A picture that a column of the metadata names for each training picture: depth, a sketch, a layout."""

    kind: Literal["column"] = Field("column", description="a picture that a column of metadata.jsonl names")
    column: str = Field(min_length=1, description="the column; its values are files relative to the data's folder")
    space: Space = SPACE

    reads_column: ClassVar[bool] = True

    def channels(self, picture: int, latent: int | None) -> int:
        """Return the channels of a picture, or of a latent."""
        return picture if latent is None or self.space == "pixels" else latent

    def condition(self, given: Mapping[str, Tensor], frame: Frame, draws: Draws) -> Condition:
        """Return the pictures as maps."""
        return Condition(concat=frame.maps(given[IMAGE], self.space))


def luma(pictures: Tensor) -> Tensor:
    """Return the brightness [B, 1, R, R] of pictures [B, C, R, R]: of RGB the luma, without any alpha channel."""
    if pictures.shape[1] < 3:
        return pictures[:, :1]
    weights = torch.tensor(_LUMA, device=pictures.device, dtype=pictures.dtype)
    return (pictures[:, :3] * weights[:, None, None]).sum(1, keepdim=True)


@cache
def _scheduler() -> Any:
    """Return diffusers' scheduler with the noise schedule of the Stable Diffusion upscaler's small pictures."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler(STEPS, beta_start=1e-4, beta_end=2e-2, beta_schedule="scaled_linear")
