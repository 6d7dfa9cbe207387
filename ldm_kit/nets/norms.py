"""Precision of normalisation layers under autocast.

Autocast on CUDA computes GroupNorm and LayerNorm in float32 and returns float32, so that SiLU behind them is float32
too; autocast on a CPU keeps the 16-bit dtype of their input. Kernels of both devices take mean and variance in float32
in any case. What float32 outputs cost is memory: of kl-f8, the tensors that are kept for the backward pass grow by two
thirds (`python -m benchmarks.gpu.kept`).
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, layer_norm

from ldm_kit.nets.shift_unet import ShiftUNet

NormPrecision = Literal["auto", "float32"]
_HALVES = (torch.bfloat16, torch.float16)


class HalfGroupNorm(nn.GroupNorm):
    """GroupNorm whose output has the dtype of a 16-bit input, under autocast as well."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input [B, C, ...], in its dtype if that is 16-bit."""
        if input.dtype not in _HALVES:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            weight, bias = _cast(self.weight, input), _cast(self.bias, input)
            return group_norm(input, self.num_groups, weight, bias, self.eps)


class HalfLayerNorm(nn.LayerNorm):
    """LayerNorm whose output has the dtype of a 16-bit input, under autocast as well."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, in its dtype if that is 16-bit."""
        if input.dtype not in _HALVES:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            weight, bias = _cast(self.weight, input), _cast(self.bias, input)
            return layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class FullGroupNorm(nn.GroupNorm):
    """GroupNorm in float32, whatever the dtype of its input, with a float32 output."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input [B, C, ...], in float32."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


class FullLayerNorm(nn.LayerNorm):
    """LayerNorm in float32, whatever the dtype of its input, with a float32 output."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, in float32."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


_LAYERS = {
    "auto": {nn.GroupNorm: HalfGroupNorm, nn.LayerNorm: HalfLayerNorm},
    "float32": {nn.GroupNorm: FullGroupNorm, nn.LayerNorm: FullLayerNorm},
}
_PLAIN = {layer: plain for layers in _LAYERS.values() for plain, layer in layers.items()}


def set_norms(net: nn.Module, device: torch.device | str, precision: NormPrecision = "auto") -> None:
    """Set the precision of every GroupNorm and LayerNorm in `net` under autocast, in place; weights and names stay.

    Layers of subclasses of these two are left as they are. Without autocast nothing changes. The frozen U-Net of a
    `ShiftUNet` is set too, although it is no submodule.

    Args:
        net: any module.
        device: where the module will run.
        precision: "auto": the output has the dtype of a 16-bit input. "float32": as CUDA's autocast has it. Where the
            device's autocast does that itself, the layer stays torch's.
    """
    own = "float32" if torch.device(device).type == "cuda" else "auto"  # what autocast itself does
    layers = {} if precision == own else _LAYERS[precision]
    for module in net.modules():
        if isinstance(module, ShiftUNet):
            set_norms(module.base, device, precision)
        plain = _PLAIN.get(type(module), type(module))
        if plain in _LAYERS["auto"]:
            module.__class__ = layers.get(plain, plain)


def _cast(weight: Tensor | None, like: Tensor) -> Tensor | None:
    return None if weight is None else weight.to(like.dtype)
