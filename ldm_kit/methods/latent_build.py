"""Build the U-Net that the config of a latent diffusion run describes."""

from collections.abc import Sequence
from typing import Any

import torch

from ldm_kit.config import UserError
from ldm_kit.methods.latent_config import LatentRun
from ldm_kit.nets.size_embedding import SIZE_WIDTH
from ldm_kit.nets.unet import build_unet


def expected_network(
    config: LatentRun, shape: Sequence[int], width: int | None, vector_width: int | None, *, pixels: int
) -> Any:
    """Return, on the meta device, the U-Net that a config describes; the arguments are those of `build_network`."""
    with torch.device("meta"):
        return build_network(config, shape, width, vector_width, pixels=pixels)


def build_network(
    config: LatentRun, shape: Sequence[int], width: int | None, vector_width: int | None, *, pixels: int
) -> Any:
    """Build the U-Net that a config describes.

    Args:
        config: the run's config.
        shape: channels and side of a latent.
        width: channels of the tokens; None: there are none.
        vector_width: channels of the vector; None: there is none.
        pixels: channels of a picture, of which a picture condition makes maps.

    Raises:
        UserError: sizes are a condition, but the network has no tokens.
    """
    picture = config.condition.picture
    if config.size_condition:
        if width is None:
            raise UserError("size_condition needs a network with tokens; expected captions, or classes of form token")
        vector_width = (vector_width or 0) + SIZE_WIDTH
    return build_unet(
        config.unet,
        sample_size=shape[1],
        channels=shape[0] + maps_of(config, shape[0], pixels),
        out_channels=2 * shape[0] if config.variance == "learned_range" else shape[0],
        cross_width=width,
        vector_width=vector_width,
        guidance_width=None if config.guidance is None else config.guidance.width,
        level=picture is not None and picture.takes_level,
    )


def maps_of(config: LatentRun, channels: int, pixels: int) -> int:
    """Return the channels of the maps that a run's picture condition adds to the network's input; 0: it has none.

    Args:
        config: the run's config.
        channels: channels of a latent.
        pixels: channels of a picture.
    """
    picture = config.condition.picture
    return 0 if picture is None else picture.channels(pixels, channels if config.autoencoder else None)
