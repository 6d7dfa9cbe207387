"""How a U-Net computes, never what: attention kernel, memory layout, compiled blocks, activations kept or not."""

import importlib
import warnings
from typing import Any, Literal, Protocol

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, XFormersAttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

AttentionKind = Literal["auto", "sdpa", "math", "xformers"]
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = 64  # compiled variants of a block; torch gives up after 8, and a U-Net has a dozen shapes of residual blocks


class ExecutionConfig(Protocol):
    """What a run's config says of how its networks compute."""

    @property
    def precision(self) -> str: ...
    @property
    def attention(self) -> AttentionKind: ...
    @property
    def compile(self) -> bool: ...
    @property
    def checkpointing(self) -> bool: ...
    def layout(self, device: torch.device) -> torch.memory_format:
        """Of weights and activations."""
        ...


def configure_network(net: nn.Module, device: torch.device, manner: ExecutionConfig) -> None:
    """Make a network that is about to be trained compute as its run's config says, in place.

    Checkpointing reaches networks of diffusers' blocks; a short encoder keeps its activations.
    """
    set_attention(net, device, manner.attention, DTYPES[manner.precision])
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


def set_attention(
    unet: nn.Module, device: torch.device | str, kind: AttentionKind = "auto", dtype: torch.dtype = torch.float32
) -> None:
    """Set the kernel of every attention in place: torch's fused one ("sdpa"), three matrix products ("math"), xformers.

    "auto" is math on a CPU, where the backward of the fused kernel is slow in bfloat16 (a quarter of a training step
    here), and sdpa elsewhere. "xformers" is tried first, in `dtype`; where it fails or computes something else, a
    warning says so and "auto" is taken.
    """
    attentions = [module for module in unet.modules() if isinstance(module, Attention)]
    if kind == "xformers":
        sizes = sorted({module.inner_dim // module.heads for module in attentions})
        if why := next(filter(None, (why_not_xformers(torch.device(device), dtype, size) for size in sizes)), None):
            warnings.warn(f"attention xformers cannot be used here ({why}); torch's own is used", stacklevel=2)
            kind = "auto"
    if kind == "auto":
        kind = "math" if torch.device(device).type == "cpu" else "sdpa"
    made = {"math": AttnProcessor, "sdpa": AttnProcessor2_0, "xformers": XFormersAttnProcessor}[kind]()
    for module in attentions:
        module.set_processor(made)


def why_not_xformers(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """What speaks against xformers' attention, found by trying it with a mask, forward and back; None: nothing does."""
    try:
        importlib.import_module("xformers.ops")
        theirs, torchs = (
            _tried(made(), device, dtype, head_size) for made in (XFormersAttnProcessor, AttnProcessor2_0)
        )
    except (ImportError, OSError, NotImplementedError, RuntimeError, ValueError, AttributeError) as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    rtol, atol = (0.05, 0.02) if dtype.itemsize == 2 else (1e-3, 1e-4)
    same = all(torch.allclose(a, b, rtol, atol) for a, b in zip(theirs, torchs, strict=True))
    return None if same else "its results are not torch's"


def _tried(processor: Any, device: torch.device, dtype: torch.dtype, head_size: int) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attention = Attention(16, cross_attention_dim=16, heads=2, dim_head=head_size)
        x, tokens = torch.randn(2, 16, 16), torch.randn(2, 24, 16)
    attention.to(device, dtype).set_processor(processor)
    hidden = torch.zeros(2, 1, 24, device=device, dtype=dtype)
    hidden[:, :, 20:] = -10000
    out = attention(x.to(device, dtype), tokens.to(device, dtype), attention_mask=hidden)
    out.float().square().sum().backward()
    return [out.float().detach(), *(p.grad.float() for p in attention.parameters() if p.grad is not None)]


def cast_weights(unet: nn.Module, dtype: torch.dtype) -> None:
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
