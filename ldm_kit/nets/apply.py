"""One call for both of diffusers' U-Net classes; `partial(apply_unet, unet)` is the network of a `NetworkDenoiser`."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from ldm_kit.nets.unet import UNet


class ConditionLike(Protocol):
    """What a U-Net uses of a condition; `conditioning.Condition` is one."""

    @property
    def tokens(self) -> Tensor | None:
        """Cross-attention context [B, L, D]."""
        ...

    @property
    def mask(self) -> Tensor | None:
        """[B, L] bool, True = attend; None: attend to all."""
        ...

    @property
    def vector(self) -> Tensor | None:
        """[B, D] added to the time embedding."""
        ...

    @property
    def concat(self) -> Tensor | None:
        """[B, C, h, w] concatenated to the input."""
        ...


def apply_unet(unet: UNet, x: Tensor, t: Tensor, condition: ConditionLike | None = None) -> Tensor:
    """Either U-Net on x [B, C, h, w] at integer times t [B]; a condition of one row serves the whole batch.

    It computes in the dtype of the U-Net's weights (or of an autocast around it) and returns that.
    """
    dtype = unet.conv_in.weight.dtype
    parts = _parts(condition, len(x), dtype)
    _refuse(unet, parts)
    if parts["concat"] is not None:
        x = torch.cat([x.to(dtype), parts["concat"]], dim=1)
    named: dict[str, Any] = {"class_labels": parts["vector"], "return_dict": False}
    if isinstance(unet, UNet2DConditionModel):
        named |= {"encoder_hidden_states": parts["tokens"], "encoder_attention_mask": parts["mask"]}
    return unet(x.to(dtype), t, **named)[0]


def _parts(condition: ConditionLike | None, batch: int, dtype: torch.dtype) -> dict[str, Tensor | None]:
    parts: dict[str, Tensor | None] = {}
    for name in ("tokens", "mask", "vector", "concat"):
        value: Tensor | None = getattr(condition, name, None)
        if value is not None:
            value = value.expand(batch, *value.shape[1:])
            value = value if name == "mask" else value.to(dtype)
        parts[name] = value
    return parts


def _refuse(unet: UNet, parts: Mapping[str, Tensor | None]) -> None:
    crossed = isinstance(unet, UNet2DConditionModel)
    for name, wanted in (("tokens", crossed), ("vector", unet.class_embedding is not None)):
        if wanted != (parts[name] is not None):
            must = "needs" if wanted else "has no use for"
            raise ValueError(f"this {type(unet).__name__} {must} a condition's {name}; got parts {_present(parts)}")


def _present(parts: Mapping[str, Tensor | None]) -> str:
    return ", ".join(name for name, value in parts.items() if value is not None) or "none"
