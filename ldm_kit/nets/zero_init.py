"""Zero initialisation of the last layers of a U-Net's residual branches, as ADM and LDM have it."""

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn


@torch.no_grad()
def zero_init_like_adm(unet: nn.Module) -> None:
    """Zero the last layer of every residual branch and `conv_out`, in place, as ADM and LDM do but diffusers does not.

    The last layers are the second convolution of each residual block and the output projection of each transformer or
    plain attention layer. Each branch then starts as the identity, and the network's first output is zero.
    """
    for module in unet.modules():
        match module:
            case ResnetBlock2D():
                _zero(module.conv2)
            case Transformer2DModel():
                _zero(module.proj_out)
            case Attention() if module.residual_connection:  # plain, not a transformer's
                _zero(module.to_out[0])  # pyright: ignore[reportOptionalSubscript]
            case UNet2DModel() | UNet2DConditionModel():
                _zero(module.conv_out)


def _zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
