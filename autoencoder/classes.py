"""Classes of first stages: one protocol over what diffusers calls encoding and decoding in each of them.

AutoencoderKL and VQModel are trained by this package. AutoencoderTiny (Bohan 2023, "TAESD") and AutoencoderDC (Chen et
al. 2024, "Deep Compression Autoencoder") are used as they are. A further class needs one entry in `KINDS`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor

from autoencoder.quantiser import quantise

FirstStage = AutoencoderKL | VQModel | AutoencoderTiny | AutoencoderDC


class Kind(NamedTuple):
    """How a class of autoencoders encodes and decodes. Latents are raw: without the normalisation of the config."""

    moments: Callable[[Any, Tensor], tuple[Tensor, Tensor | None]]
    """Function of the model and pictures [B, C, H, W] in [-1, 1] to mean and log-variance of latents [B, Z, h, w].

    The log-variance is None where latents are deterministic.
    """

    picture: Callable[[Any, Tensor], Tensor]
    """Function of the model and latents [B, Z, h, w] to pictures [B, C, H, W] in about [-1, 1]."""

    levels: str
    """Key of the config whose value has an entry for each resolution of the encoder."""


def render(vae: VQModel, latents: Tensor) -> Tensor:
    """Decode latents [B, Z, h, w] that are quantised already to pictures [B, C, H, W].

    VQModel.decode would quantise them again, and hold the distances of all latents to all codes in memory.
    """
    config: Any = vae.config
    latents = latents.to(vae.dtype)
    spatial = latents if config.norm_type == "spatial" else None
    return full(vae.decoder(vae.post_quant_conv(latents), spatial))


def full(x: Tensor) -> Tensor:
    """Return a tensor in float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _kl_moments(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    distribution = vae.encode(x).latent_dist
    return distribution.mean, distribution.logvar


def _decoded(vae: Any, z: Tensor) -> Tensor:
    return vae.decode(z.to(vae.dtype)).sample


def _quantised(vae: Any, z: Tensor) -> Tensor:
    return render(vae, quantise(z, vae.quantize.embedding.weight).latents)


KINDS: Mapping[type, Kind] = {
    AutoencoderKL: Kind(_kl_moments, _decoded, "block_out_channels"),
    VQModel: Kind(lambda vae, x: (vae.encode(x).latents, None), _quantised, "block_out_channels"),
    AutoencoderTiny: Kind(lambda vae, x: (vae.encode(x).latents, None), _decoded, "encoder_block_out_channels"),
    AutoencoderDC: Kind(lambda vae, x: (vae.encode(x).latent, None), _decoded, "encoder_block_out_channels"),
}
"""Each class of first stages that can be opened."""


def kind_of(vae: object) -> Kind | None:
    """Return how an autoencoder encodes and decodes; None: it is of no class in `KINDS`."""
    return next((kind for cls, kind in KINDS.items() if isinstance(vae, cls)), None)
