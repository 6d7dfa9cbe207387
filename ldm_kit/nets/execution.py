"""How a network is executed: attention kernel, memory layout, precision of norms, compiled blocks, checkpointing.

Every network that is trained goes through `configure_network`, every network that is loaded through `prepare_loaded`.
These settings change results only by rounding, because sums are taken in another order. Results are equal bit for bit
only with the same memory layout and the same attention kernel.
"""

import importlib
import os
import warnings
from collections.abc import Iterator
from typing import Any, Literal, Protocol, TypeVar

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, XFormersAttnProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from ldm_kit.config import UserError
from ldm_kit.nets.norms import NormPrecision, set_norms
from ldm_kit.nets.shift_unet import ShiftUNet

AttentionKind = Literal["auto", "sdpa", "math", "xformers"]
DTYPES = {"no": torch.float32, "auto": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RECOMPILE_LIMIT = 64  # most compiled variants of a block; torch's default is 8, a U-Net has a dozen block shapes
LAYOUT_VARIABLE = "LDM_KIT_CHANNELS_LAST"
ALIGNMENT = 64  # bytes; torch aligns its own allocations to this

Network = TypeVar("Network", bound=nn.Module)


class ExecutionConfig(Protocol):
    """Protocol of the settings that say how a network is executed; the `train:` section of a run's config has them."""

    @property
    def precision(self) -> str:
        """Precision of autocast: no, bf16, fp16, or auto (bf16 where the device is fast in it, else no)."""
        ...

    @property
    def attention(self) -> AttentionKind:
        """Attention kernel: auto, sdpa, math or xformers (see `set_attention`)."""
        ...

    @property
    def channels_last(self) -> bool | None:
        """Whether tensors are channels-last in memory; None: `default_layout` decides."""
        ...

    @property
    def norms(self) -> NormPrecision:
        """Precision of GroupNorm and LayerNorm under autocast (see `set_norms`)."""
        ...

    @property
    def compile(self) -> bool:
        """Whether residual and transformer blocks are compiled by torch.compile."""
        ...

    @property
    def checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        ...


def configure_network(net: nn.Module, device: torch.device | str, config: ExecutionConfig) -> None:
    """Apply the execution settings of a run to a network that is about to be trained, in place.

    Call it before an optimiser or DDP takes the parameters. Calling it twice changes nothing. Activation checkpointing
    is turned on in the diffusers models inside `net` that support it; other modules keep their activations.

    Args:
        net: any module; it may hold several networks.
        device: where the network will be trained.
        config: the `train:` section of a run's config.
    """
    set_attention(net, device, config.attention, DTYPES[config.precision])
    set_layout(net, layout_for(device, config.channels_last))
    set_norms(net, device, config.norms)
    if config.checkpointing:
        for network in _checkpointed(net):
            network.enable_gradient_checkpointing()
    if config.compile:
        compile_blocks(net)


def prepare_loaded(net: Network, device: torch.device | str, config: ExecutionConfig | None = None) -> Network:
    """Prepare a network that was just loaded to run on `device` without gradients, in place; return the network.

    Sets attention kernel, memory layout and precision of norms, turns evaluation mode on and gradients off. Does not
    move the weights: call `net.to(device)` before or after.

    Args:
        net: the network.
        device: where the network will run.
        config: the `train:` section of the run that uses the network; None: kernel and norms "auto", and layout
            `default_layout`.
    """
    _align(net)
    if config is None:
        set_attention(net, device)
    else:
        set_attention(net, device, config.attention, DTYPES[config.precision])
    set_layout(net, layout_for(device, None if config is None else config.channels_last))
    set_norms(net, device, "auto" if config is None else config.norms)
    return net.eval().requires_grad_(False)


def default_layout(device: torch.device | str) -> torch.memory_format:
    """Return the memory layout of networks on `device` where a run's config does not set `train.channels_last`.

    The layout is channels-last on CPUs with AMX, where that is fast, and contiguous elsewhere: on an NVIDIA H100
    channels-last makes an autoencoder's steps in bf16 a quarter longer (docs/results/gpu.md). The environment variable
    `LDM_KIT_CHANNELS_LAST` (1: channels-last, 0: contiguous) overrides this default, for training and loading alike.

    Raises:
        UserError: the variable is set to something other than 0 or 1.
    """
    value = os.environ.get(LAYOUT_VARIABLE, "")
    if value not in ("", "0", "1"):
        raise UserError(f"the environment variable {LAYOUT_VARIABLE} is {value!r:.80}; expected 0 or 1")
    fast = torch.device(device).type == "cpu" and torch.cpu._is_amx_tile_supported()
    return layout_for(device, value == "1" if value else fast)


def layout_for(device: torch.device | str, channels_last: bool | None) -> torch.memory_format:
    """Return channels-last if `channels_last` is True, contiguous if False, and `default_layout(device)` if None."""
    if channels_last is None:
        return default_layout(device)
    return torch.channels_last if channels_last else torch.contiguous_format


def set_layout(net: nn.Module, layout: torch.memory_format) -> None:
    """Store the weights of `net` contiguous or channels-last ([B, h, w, C] in memory), in place.

    Activations follow the weights' layout, except that diffusers makes them contiguous after transformers with linear
    projections and before up-sampling of 64 or more samples; forward hooks restore channels-last there. The frozen
    U-Net of a `ShiftUNet` gets the same layout, although it is no submodule.
    """
    net.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    for module in [*net.modules()]:
        if isinstance(module, ShiftUNet):
            set_layout(module.base, layout)
        if isinstance(module, Transformer2DModel | Upsample2D):
            _remove_layout_hook(module)
            if layout is torch.channels_last:
                module.register_forward_hook(_restore_channels_last)


def _remove_layout_hook(module: nn.Module) -> None:
    for key in [key for key, hook in module._forward_hooks.items() if hook is _restore_channels_last]:
        del module._forward_hooks[key]


def _restore_channels_last(
    module: nn.Module, inputs: Any, output: Tensor | tuple[Tensor, ...]
) -> Tensor | tuple[Tensor, ...]:
    if isinstance(output, tuple):
        return (output[0].contiguous(memory_format=torch.channels_last), *output[1:])
    return output.contiguous(memory_format=torch.channels_last)


def _align(net: nn.Module) -> None:
    """Copy those weights of `net` that a mapped safetensors file holds at unaligned addresses into new, aligned memory.

    MKL's matrix products round differently for operands of different alignment (2e-7 on a Xeon with AMX).
    """
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone(memory_format=torch.preserve_format)


def _checkpointed(net: nn.Module) -> Iterator[ModelMixin]:
    """Yield the outermost diffusers models in `net` that support activation checkpointing."""
    if isinstance(net, ModelMixin) and net._supports_gradient_checkpointing:
        yield net
        return
    for child in net.children():
        yield from _checkpointed(child)


def compile_blocks(net: nn.Module) -> None:
    """Compile residual and transformer blocks of `net` by torch.compile, in place; parameter names and weights stay.

    Each block is compiled when it is first called with a new input shape.
    """
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
    for module in net.modules():
        if isinstance(module, ResnetBlock2D | BasicTransformerBlock):
            module.compile(dynamic=False)


def set_attention(
    net: nn.Module, device: torch.device | str, kind: AttentionKind = "auto", dtype: torch.dtype = torch.float32
) -> None:
    """Set the kernel of every diffusers `Attention` layer in `net`, in place.

    Args:
        net: any module.
        device: where the module will run.
        kind: "math": plain matrix products. "sdpa": torch's fused kernel. "auto": "math" on a CPU, where the fused
            kernel's backward pass is slow in bfloat16 (a quarter of a training step), else "sdpa". "xformers":
            xformers' kernel, if a trial shows that it works and agrees with "sdpa"; if not, a warning and "auto".
        dtype: dtype in which xformers' kernel is tried: the one in which the network computes under autocast.
    """
    attentions = [module for module in net.modules() if isinstance(module, Attention)]
    if kind == "xformers":
        sizes = sorted({module.inner_dim // module.heads for module in attentions})
        failures = (xformers_failure(torch.device(device), dtype, size) for size in sizes)
        if failure := next(filter(None, failures), None):
            warnings.warn(f"attention xformers cannot be used here ({failure}); torch's own is used", stacklevel=2)
            kind = "auto"
    if kind == "auto":
        kind = "math" if torch.device(device).type == "cpu" else "sdpa"
    processor = {"math": AttnProcessor, "sdpa": AttnProcessor2_0, "xformers": XFormersAttnProcessor}[kind]()
    for module in attentions:
        module.set_processor(processor)


def xformers_failure(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Try xformers' attention with a mask, forward and backward; return why it cannot be used, or None if it can.

    The trial is on `device` in `dtype`, with heads of `head_size` channels; results must agree with torch's fused
    kernel.
    """
    try:
        importlib.import_module("xformers.ops")
        results, expected = (
            _trial(processor(), device, dtype, head_size) for processor in (XFormersAttnProcessor, AttnProcessor2_0)
        )
    except (ImportError, OSError, NotImplementedError, RuntimeError, ValueError, AttributeError) as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    rtol, atol = (0.05, 0.02) if dtype.itemsize == 2 else (1e-3, 1e-4)
    equal = all(torch.allclose(a, b, rtol, atol) for a, b in zip(results, expected, strict=True))
    return None if equal else "its results are not torch's"


def _trial(processor: Any, device: torch.device, dtype: torch.dtype, head_size: int) -> list[Tensor]:
    """Return the output and the parameters' gradients, in float32, of one small cross-attention layer with a mask.

    The layer has two heads of `head_size` channels, weights in `dtype`, and diffusers' attention processor `processor`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attention = Attention(16, cross_attention_dim=16, heads=2, dim_head=head_size)
        x, tokens = torch.randn(2, 16, 16), torch.randn(2, 24, 16)
    attention.to(device, dtype).set_processor(processor)
    mask = torch.zeros(2, 1, 24, device=device, dtype=dtype)  # added to the scores
    mask[:, :, 20:] = -10000
    out = attention(x.to(device, dtype), tokens.to(device, dtype), attention_mask=mask)
    out.float().square().sum().backward()
    return [out.float().detach(), *(p.grad.float() for p in attention.parameters() if p.grad is not None)]
