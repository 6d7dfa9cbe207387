"""Check the sampling options that belong to a model's conditions: guidance scales, and the noise level of a picture."""

from typing import TYPE_CHECKING

from ldm_kit.config import UserError
from ldm_kit.models.sampler_options import SamplerOptions

if TYPE_CHECKING:
    from conditioning.pictures import PictureCondition
    from ldm_kit.models.pipeline import Pipeline


def check_conditions(options: SamplerOptions, model: "Pipeline") -> None:
    """Check that there is one of several guidance scales for each condition, and that a noise level was trained.

    Raises:
        UserError: a model has another number of conditions than there are scales; or there is a noise level, but the
            model upscales no picture, or was trained on lower levels.
    """
    scales, count = options.guidance_scales, model.conditioner.drops
    if scales is not None and len(scales) != count:
        raise UserError(
            f"--guidance_scales has {len(scales)} scales, but this model has {count} "
            f"{'condition' if count == 1 else 'conditions'} that guidance leaves out; expected as many"
        )
    try:
        check_level(options.noise_level, model.picture)
    except ValueError as error:
        raise UserError(f"--{error}") from None


def check_level(level: int | None, picture: "PictureCondition | None") -> None:
    """Check that a model with the picture condition `picture` was trained on a noise level; raise ValueError if not."""
    if level is None:
        return
    if picture is None or not picture.takes_level:
        raise ValueError("noise_level is for models that upscale a picture, and this is none")
    if level > picture.most_level:
        raise ValueError(f"noise_level is {level}, but this model was trained on levels of 0 to {picture.most_level}")
