"""Build the U-Net that the config of a latent diffusion run describes."""

from collections.abc import Sequence
from typing import Any

import torch

from ldm_kit.methods.latent_config import LatentRun
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
    """
    picture = config.condition.picture
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
