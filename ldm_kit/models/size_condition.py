"""The condition of models that take the sizes and the crop of a picture (SDXL's micro-conditions), from the options."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from conditioning.condition import Condition
from ldm_kit.config import UserError

if TYPE_CHECKING:
    from ldm_kit.models.options import ResolvedOptions
    from ldm_kit.models.pipeline import Pipeline


def with_size_condition(
    pipeline: "Pipeline", options: "ResolvedOptions", maps: Condition | None, count: int
) -> Condition | None:
    """Return the maps of `count` samples (None: none) with their sizes and crop, if the model takes these.

    The defaults are those of diffusers' StableDiffusionXLPipeline: an original of the sample's size, and no crop.
    """
    if not pipeline.takes_sizes:
        return maps
    size = options.size(pipeline)
    numbers = [*(options.original_size or size), *(options.crop or (0, 0)), *size]
    sizes = torch.tensor([numbers] * count, dtype=torch.float32, device=pipeline.device)
    return replace(Condition() if maps is None else maps, sizes=sizes)


def check_same_sizes(guide: "Pipeline", model: "Pipeline") -> None:
    """Check that a guide model and the model both take sizes as condition, or neither; raises UserError if not."""
    if guide.takes_sizes != model.takes_sizes:
        which = "the guide model" if guide.takes_sizes else "the model"
        raise UserError(f"only {which} is conditioned on sizes of pictures; expected both or neither")
