"""Height and width of sampled pictures: the options, and the size of the latents that they ask of a model.

A U-Net and an autoencoder of convolutions and attention take any size that both can halve as often as they do. No torch
at import, as `--help` must not wait for it.
"""

from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationInfo, field_validator

from ldm_kit.config import Config, UserError

if TYPE_CHECKING:
    from ldm_kit.models.pipeline import Pipeline
    from ldm_kit.models.pipeline_parts import PipelineParts

MOST = 8192  # pixels of a side, so that a mistyped number does not fill the memory
_LEFT_OUT = "left out: the side of the pictures that the model was trained on"


class SizeOptions(Config):
    """Height and width of the pictures that are sampled."""

    height: int | None = Field(default=None, ge=1, le=MOST, description=f"pixels from top to bottom; {_LEFT_OUT}")
    width: int | None = Field(default=None, ge=1, le=MOST, description=f"pixels from left to right; {_LEFT_OUT}")

    def size(self, model: "Pipeline") -> tuple[int, int]:
        """Return (height, width) in pixels of a model's pictures, after checking that the model can sample them.

        Raises:
            UserError: height or width is no multiple of what the autoencoder and the U-Net reduce by together, or a
                noisy classifier guides the model, which takes pictures of the trained size alone.
        """
        side, step = model.resolution, side_step(model)
        for name, value in (("height", self.height), ("width", self.width)):
            if value is not None and value != side and value % step:
                raise UserError(
                    f"--{name} is {value}, but this model's {_reduced_by(model, step)}; expected a multiple of {step} "
                    "pixels"
                )
        size = self.height or side, self.width or side
        if model.classifier is not None and size != (side, side):
            raise UserError(
                f"--classifier is for pictures of {side} x {side} pixels, but --height and --width ask for "
                f"{size[1]} x {size[0]}; leave them out"
            )
        return size


class SizeConditionOptions(SizeOptions):
    """Height and width, and the sizes that a model is conditioned on, if it is (SDXL's micro-conditions)."""

    original_size: tuple[int, int] | None = Field(
        default=None,
        description="for models conditioned on sizes: HEIGHT WIDTH of the image file that the sample is as if made "
        "from; left out: that of the sample",
    )
    crop: tuple[int, int] | None = Field(
        default=None,
        description="for models conditioned on sizes: TOP LEFT, pixels that are as if cropped; left out: 0 0",
    )

    @field_validator("original_size", "crop")
    @classmethod
    def _whole_sizes(cls, pair: tuple[int, int] | None, info: ValidationInfo) -> tuple[int, int] | None:
        least = 1 if info.field_name == "original_size" else 0
        if pair is not None and min(pair) < least:
            raise ValueError(f"expected two whole numbers of {least} or more")
        return pair


def side_step(model: "PipelineParts") -> int:
    """Return the number of pixels of which a model's sides are multiples, those of its guide model's U-Net too."""
    unets = [each.unet for each in (model, model.autoguidance_model) if each is not None]
    return model.reduction * max(map(halvings, unets))


def halvings(unet: Any) -> int:
    """Return the ratio of a latent's side to the side of the features in the middle of a U-Net."""
    return 2 ** (len(unet.config["block_out_channels"]) - 1)


def latent_shape_at(model: "PipelineParts", size: tuple[int, int]) -> tuple[int, int, int]:
    """Return the shape (channels, height, width) of a model's latents for pictures of a size (height, width)."""
    height, width = (side // model.reduction for side in size)
    return model.latent_shape[0], height, width


def _reduced_by(model: "Pipeline", step: int) -> str:
    unet = f"U-Net reduces by {step // model.reduction}"
    return unet if model.vae is None else f"autoencoder reduces by {model.reduction} and its {unet}"
