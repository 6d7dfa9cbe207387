"""How a U-Net computes, never what: attention kernel, memory layout, compiled blocks, activations kept or not."""

from typing import Any, Literal, Protocol

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

AttentionKind = Literal["auto", "sdpa", "math"]
SHAPES = 64  # compiled variants of a block; torch gives up after 8, and a U-Net has a dozen shapes of residual blocks


class Manner(Protocol):
    """What a run's config says of how its networks compute."""

    @property
    def compile(self) -> bool: ...
    @property
    def checkpointing(self) -> bool: ...
    def layout(self, device: torch.device) -> torch.memory_format:
        """Of weights and activations."""
        ...


def suit(net: nn.Module, device: torch.device, manner: Manner) -> None:
    """Make a network that is about to be trained compute as its run's config says, in place.

    Checkpointing reaches networks of diffusers' blocks; a short encoder keeps its activations.
    """
    choose_attention(net, device)
    if manner.layout(device) is torch.channels_last:
        channels_last(net)
    if manner.checkpointing and getattr(net, "_supports_gradient_checkpointing", False):
        net.enable_gradient_checkpointing()  # pyright: ignore[reportCallIssue]
    if manner.compile:
        compile_blocks(net)


def compile_blocks(net: nn.Module) -> None:
    """Have torch compile residual and transformer blocks, each shape when it is first met; names and weights stay."""
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    for module in net.modules():
        if isinstance(module, ResnetBlock2D | BasicTransformerBlock):
            module.compile(dynamic=False)


def choose_attention(unet: nn.Module, device: torch.device | str, kind: AttentionKind = "auto") -> None:
    """Set the kernel of every attention in place: torch's fused one ("sdpa") or three matrix products ("math").

    "auto" is math on a CPU, where the backward of the fused kernel is slow in bfloat16 (a quarter of a training step
    here), and sdpa elsewhere.
    """
    if kind == "auto":
        kind = "math" if torch.device(device).type == "cpu" else "sdpa"
    processor = AttnProcessor() if kind == "math" else AttnProcessor2_0()
    for module in unet.modules():
        if isinstance(module, Attention):
            module.set_processor(processor)  # pyright: ignore[reportArgumentType]


def rounded(unet: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights of linear maps and convolutions in `dtype`, in place, for drawing under autocast to it.

    Autocast rounds the same weights to the same values, but anew in every call: a tenth of a call here.
    """
    for module in unet.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)


def channels_last(unet: nn.Module) -> None:
    """Keep weights and activations [B, h, w, C] in memory, which tensor cores want.

    diffusers undoes it after transformers with linear projections and before up-sampling of 64 pictures or more;
    hooks put it back.
    """
    unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for module in unet.modules():
        if isinstance(module, Transformer2DModel | Upsample2D):
            module.register_forward_hook(_last)


def _last(module: nn.Module, inputs: Any, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    if isinstance(output, tuple):
        return (output[0].contiguous(memory_format=torch.channels_last), *output[1:])
    return output.contiguous(memory_format=torch.channels_last)
