"""Size and crop of a picture as inputs of a U-Net (Podell et al. 2024, SDXL, section 2.2): sinusoids of six numbers.

They are joined to a condition's vector, which an MLP maps to the time embedding's width and adds to it, as SDXL's
`add_embedding` does; here diffusers calls the MLP `class_embedding`.
"""

from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor

_SINUSOIDS = 256  # for each number, as SDXL's addition_time_embed_dim
SIZE_WIDTH = 6 * _SINUSOIDS


def embed_sizes(sizes: Tensor) -> Tensor:
    """Return sinusoids of B pictures' sizes: float32 [B, SIZE_WIDTH].

    Args:
        sizes: [B, 6]: height and width of the original, top and left of the crop, height and width of the picture, in
            pixels.
    """
    flat = get_timestep_embedding(sizes.flatten().float(), _SINUSOIDS, flip_sin_to_cos=True, downscale_freq_shift=0)
    return flat.reshape(len(sizes), SIZE_WIDTH)


def takes_sizes(unet: Any, vector_width: int | None) -> bool:
    """Return whether a U-Net takes sizes beside a vector [B, `vector_width`] (None: no vector)."""
    width = unet.config.get("projection_class_embeddings_input_dim")
    return width is not None and width == (vector_width or 0) + SIZE_WIDTH


def with_sizes(vector: Tensor | None, sizes: Tensor | None) -> Tensor | None:
    """Return a condition's vector [B, D] with the sinusoids of sizes [B, 6] after it; None: there is neither."""
    if sizes is None:
        return vector
    embedded = embed_sizes(sizes)
    return embedded if vector is None else torch.cat([vector, embedded.to(vector.dtype)], dim=1)
