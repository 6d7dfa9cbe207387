"""Networks in a lower precision for sampling: which weights are cast, and whether autocast is still needed."""

import torch
from torch import nn


def cast_weights(net: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of `net` to `dtype`, in place, for sampling.

    On a CPU these are the weights of linear layers and convolutions, and the network is called under autocast. Its
    outputs do not change: autocast would cast the same weights anew in every call, which takes a tenth of the time of a
    call. On an accelerator they are all weights, as where diffusers loads a network with `torch_dtype`: autocast would
    compute norms in float32, and so move twice the bytes. Such a network `is_cast`, and is called without autocast.
    """
    if next(net.parameters()).device.type != "cpu":
        nn.Module.to(net, dtype)  # diffusers' own `to` warns that it does not know what this does
        return
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)


def is_cast(net: nn.Module, dtype: torch.dtype | None) -> bool:
    """Return whether all weights of `net` have this dtype, so that it needs no autocast to compute in it."""
    return dtype is not None and all(weight.dtype is dtype for weight in net.parameters())
