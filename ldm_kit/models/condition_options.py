"""Check the sampling options that belong to a model's conditions: guidance scales, noise level, sizes."""

from typing import TYPE_CHECKING

from ldm_kit.config import UserError

if TYPE_CHECKING:
    from conditioning.pictures import PictureCondition
    from ldm_kit.models.options import SamplingOptions
    from ldm_kit.models.pipeline import Pipeline


def check_conditions(options: "SamplingOptions", model: "Pipeline") -> None:
    """Check several guidance scales, a noise level and sizes against what a model is conditioned on.

    Raises:
        UserError: a model has another number of conditions than there are scales; or there is a noise level, but the
            model upscales no picture, or was trained on lower levels; or there are sizes, but the model takes none.
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
    idle = next((name for name in ("original_size", "crop") if getattr(options, name) is not None), None)
    if idle is not None and not model.takes_sizes:
        raise UserError(f"--{idle} is for models conditioned on sizes of pictures, and this is none")


def check_level(level: int | None, picture: "PictureCondition | None") -> None:
    """Check that a model with the picture condition `picture` was trained on a noise level; raise ValueError if not."""
    if level is None:
        return
    if picture is None or not picture.takes_level:
        raise ValueError("noise_level is for models that upscale a picture, and this is none")
    if level > picture.most_level:
        raise ValueError(f"noise_level is {level}, but this model was trained on levels of 0 to {picture.most_level}")
