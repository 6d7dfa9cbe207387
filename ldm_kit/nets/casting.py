"""Networks in a lower precision for sampling: which weights are cast, and whether autocast is still needed."""

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import nn

from ldm_kit.nets.unet import takes_level


def cast_weights(net: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of `net` to `dtype`, in place, to sample faster.

    On a CPU only linear layers and convolutions are cast, and the network must still be called under autocast. The
    outputs equal those of autocast alone, which would take a tenth of each call to cast these weights again.
    On an accelerator all weights are cast, as by diffusers' `torch_dtype`, and the network is called without autocast
    (see `is_cast`): autocast would compute norms in float32 and so move twice the bytes.
    """
    if next(net.parameters()).device.type != "cpu":
        nn.Module.to(net, dtype)  # diffusers' own `to` warns that it does not know what this does
        if isinstance(net, UNet2DModel) and takes_level(net) and net.class_embedding is not None:
            net.class_embedding.float()  # to which diffusers gives float32; `is_cast` is False then
        return
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)


def is_cast(net: nn.Module, dtype: torch.dtype | None) -> bool:
    """Return whether all weights of `net` have the dtype `dtype`, so that sampling in `dtype` needs no autocast.

    The result is False if `dtype` is None.
    """
    return dtype is not None and all(weight.dtype is dtype for weight in net.parameters())
