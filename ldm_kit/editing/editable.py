"""Which diffusion models reprompt, img2img and inpaint edit with."""

from ldm_kit.models.pipeline import Pipeline


def is_editable(pipeline: Pipeline) -> bool:
    """Return whether these commands edit with a model: pictures of 8 bits, without an image to vary, or sizes."""
    return not other_kind(pipeline)


def other_kind(pipeline: Pipeline) -> str:
    """Return what kind of model it is that these commands do not edit with; "" if they do."""
    if pipeline.value_range is not None:
        return f"of values in {pipeline.value_range}, which only sample.py writes"
    if pipeline.takes_sizes:
        return "conditioned on sizes of pictures, which only sample.py gives it"
    reader = pipeline.conditioner.image_conditioner
    return "" if reader is None else "conditioned on the embedding of an image, which only sample.py gives it"
