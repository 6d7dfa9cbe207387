"""The guidance scale as an input of diffusers' U-Net with cross-attention, embedded as diffusers' pipelines do it.

The U-Net (`UNet2DConditionModel` with `time_cond_proj_dim`) adds a linear map of the embedding to the sinusoids of the
timestep, as latent consistency models do (Luo et al. 2023, section 4.3).
"""

import math
from typing import Any, TypeGuard

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ldm_kit.config import UserError
from ldm_kit.diffusion.float64 import exact


def takes_guidance_scale(unet: Any) -> TypeGuard[UNet2DConditionModel]:
    """Return whether a U-Net takes the guidance scale as input."""
    return isinstance(unet, UNet2DConditionModel) and unet.config.get("time_cond_proj_dim") is not None


def guidance_embedding(scale: Tensor, width: int) -> Tensor:
    """Return sinusoids of the guidance scale w, as diffusers' pipelines give them to a U-Net as `timestep_cond`.

    With D = `width` and k = 0, ..., D/2 - 1 these are sin(1000 (w - 1) r_k), then cos(1000 (w - 1) r_k), with the rates
    r_k = 10000^(-k / (D/2 - 1)). At w = 1, no guidance, the angles are zero.

    Args:
        scale: guidance scales w [B], where 1 is no guidance.
        width: D, even and at least 4.

    Returns:
        The embedding, float32 [B, D].
    """
    half = width // 2
    rates = torch.exp(torch.arange(half, device=scale.device) * (-math.log(10_000) / (half - 1)))
    angles = (1000 * (exact(scale).double() - 1).float()).to(scale.device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def embed_scale(unet: UNet2DConditionModel, scale: Tensor) -> Tensor:
    """Return the embedding [B, D] of guidance scales [B] in the width D and the dtype that `unet` takes.

    D is `unet.config.time_cond_proj_dim`; the dtype is that of the weights.
    """
    config: Any = unet.config
    return guidance_embedding(scale, config.time_cond_proj_dim).to(unet.conv_in.weight)


def zero_guidance_scale(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Zero the linear map of the guidance scale's embedding, in place, and return `unet`.

    The U-Net's output is then the same at every scale. A U-Net that does not take the scale is left as it is.
    """
    projection: Any = unet.time_embedding.cond_proj
    if projection is not None:
        nn.init.zeros_(projection.weight)
    return unet


def check_no_guidance_scale(width: int | None) -> None:
    """Check the config of a U-Net without cross-attention, which cannot take the guidance scale as input.

    Raises:
        UserError: `width`, the number of sinusoids that would embed the guidance scale, is not None.
    """
    if width is not None:
        raise UserError(
            "guidance gives the scale to a U-Net with tokens, but this one has none; expected a condition of tokens, "
            "such as kind text, or kind class with form token"
        )
