"""Call a diffusers U-Net, a `UNet2DConditionModel` or a `UNet2DModel`, with a condition.

`partial(apply_unet, unet)` is a function of (x_t, t, condition), as `diffusion.denoiser.NetworkDenoiser` takes it.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from ldm_kit.nets.guidance_embedding import embed_scale, takes_guidance_scale
from ldm_kit.nets.size_embedding import with_sizes
from ldm_kit.nets.unet import UNet, takes_level


class ConditionLike(Protocol):
    """Protocol of a condition: the tensors that a U-Net may use. `conditioning.Condition` satisfies it."""

    @property
    def tokens(self) -> Tensor | None:
        """Cross-attention context [B, L, D], L tokens of D channels, such as an encoded prompt; None: no tokens."""
        ...

    @property
    def mask(self) -> Tensor | None:
        """Attention mask of `tokens`, [B, L] bool, True = attend; None: attend to all tokens."""
        ...

    @property
    def vector(self) -> Tensor | None:
        """Vector [B, D], such as a class embedding, that is added to the time embedding; None: nothing is added."""
        ...

    @property
    def concat(self) -> Tensor | None:
        """Maps [B, C, h, w] that are concatenated to the U-Net's input along the channels; None: no maps."""
        ...

    @property
    def level(self) -> Tensor | None:
        """Noise level [B] of `concat`, which a U-Net that `takes_level` embeds as it does the timestep; None: none."""
        ...

    @property
    def sizes(self) -> Tensor | None:
        """Sizes and crops [B, 6] (`embed_sizes`), joined to `vector`; None: none."""
        ...


def apply_unet(
    unet: UNet, x: Tensor, t: Tensor, condition: ConditionLike | None = None, *, scale: Tensor | None = None
) -> Tensor:
    """Return a U-Net's output for a noisy input, computed in the dtype of its weights (or of an enclosing autocast).

    Args:
        unet: a `UNet2DConditionModel` (with cross-attention) or a `UNet2DModel` (without).
        x: noisy latents or pictures [B, C, h, w].
        t: integer timesteps [B].
        condition: a condition with B rows, or with one row for the whole batch; None: unconditional.
        scale: guidance scales [B], if the network takes them as input (`takes_guidance_scale`); None: scale 1, which
            means no guidance. For all other networks it must be None.

    Returns:
        The network's output [B, C', h, w].

    Raises:
        ValueError: the condition lacks a tensor that the network needs, or has one that the network cannot use; or
            `scale` is given to a network that takes none.
    """
    dtype = unet.conv_in.weight.dtype
    tensors = _expanded(condition, len(x), dtype)
    _check_condition(unet, tensors)
    _check_channels(unet, x, tensors["concat"])
    if tensors["concat"] is not None:
        x = torch.cat([x.to(dtype), tensors["concat"]], dim=1)
    added = tensors["level"] if takes_level(unet) else with_sizes(tensors["vector"], tensors["sizes"])
    added = added if added is None or takes_level(unet) else added.to(dtype)
    arguments: dict[str, Any] = {"class_labels": added, "return_dict": False}
    if isinstance(unet, UNet2DConditionModel):
        arguments |= {"encoder_hidden_states": tensors["tokens"], "encoder_attention_mask": tensors["mask"]}
    if takes_guidance_scale(unet):
        scale = torch.ones(1, device=x.device) if scale is None else scale
        arguments["timestep_cond"] = embed_scale(unet, scale.expand(len(x)))
    elif scale is not None:
        raise ValueError(f"this {type(unet).__name__} takes no guidance scale as input; expected scale None")
    return unet(x.to(dtype), t, **arguments)[0]


def _expanded(condition: ConditionLike | None, batch: int, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Return a condition's tensors by name (tokens, mask, vector, ...), each expanded to `batch` rows.

    All but mask, level and sizes are cast to `dtype`. A tensor that the condition lacks is None.
    """
    tensors: dict[str, Tensor | None] = {}
    for name in ("tokens", "mask", "vector", "concat", "level", "sizes"):
        value: Tensor | None = getattr(condition, name, None)
        if value is not None:
            value = value.expand(batch, *value.shape[1:])
            value = value if name in ("mask", "level", "sizes") else value.to(dtype)
        tensors[name] = value
    return tensors


def _check_condition(unet: UNet, tensors: Mapping[str, Tensor | None]) -> None:
    attends, level = isinstance(unet, UNet2DConditionModel), takes_level(unet)
    vector = unet.class_embedding is not None and not level
    given = {**tensors, "vector": tensors["vector"] if tensors["sizes"] is None else tensors["sizes"]}
    for name, needed in (("tokens", attends), ("vector", vector), ("level", level)):
        if needed != (given[name] is not None):
            verb = "needs" if needed else "cannot use"
            raise ValueError(f"this {type(unet).__name__} {verb} a condition's {name}; got {_present(tensors)}")


def _check_channels(unet: UNet, x: Tensor, concat: Tensor | None) -> None:
    given, needed = x.shape[1] + (0 if concat is None else concat.shape[1]), unet.config["in_channels"]
    if given != needed:
        maps = "no maps" if concat is None else f"maps of {concat.shape[1]}"
        raise ValueError(
            f"this {type(unet).__name__} takes {needed} channels; got an input of {x.shape[1]} and {maps} as condition"
        )


def _present(tensors: Mapping[str, Tensor | None]) -> str:
    return ", ".join(name for name, value in tensors.items() if value is not None) or "none"
