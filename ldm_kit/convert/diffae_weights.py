"""Conversion of weights of phizaz/diffae: its state dict to state dicts and settings of ldm_kit's networks.

A `.ckpt` holds two copies of the weights, `model.*` and, averaged, `ema_model.*`; `strip_prefix(state_dict,
"ema_model.")` takes the averaged copy. In a copy, `encoder.*` is the encoder and `latent_net.*` the network of the
prior, if there is one. All other names are the U-Net's: ADM's names, but every residual block has a second
projection, that of the code, beside that of the time embedding. Settings are inferred from the tensors' shapes.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm_kit.config import UserError
from ldm_kit.convert.guided_diffusion_layout import (
    Heads,
    Layout,
    State,
    convert_tensor,
    denoiser_layout,
    original_name,
    shape_of,
)
from ldm_kit.nets.mlp_skip import SkipMLP
from ldm_kit.nets.semantic_unet import SemanticUNet

Settings = dict[str, Any]
Converted = tuple[dict[str, Tensor], Settings]
_Position = tuple[str, int, int]  # (input_blocks or middle_block, block, layer in the block)
ONE_HEAD = Heads(count=1)
_SINGLE_CONV = {"in_layers.0": "norm", "in_layers.2": "conv", "skip_connection": "skip"}
_ENDS = {"input_blocks.0.0": "conv_in", "out.0": "norm", "out.3": "out"}
_ATTENTION = {"group_norm": "norm", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "to_out.0": "proj_out"}
_PRIOR = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}


def strip_prefix(state_dict: State, prefix: str) -> dict[str, Tensor]:
    """Return the weights whose names begin with `prefix`, such as `ema_model.`, which is removed from the names.

    Raises:
        UserError: no name begins with the prefix.
    """
    entries = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    if not entries:
        raise UserError(
            f"no weight of this checkpoint begins with {prefix!r}; the first is {next(iter(state_dict), None)!r}"
        )
    return entries


def unet_from(state_dict: State, *, image_size: int) -> Converted:
    """Convert the U-Net of DiffAE; return its state dict and the settings for `SemanticUNet(**settings)`.

    Args:
        state_dict: `strip_prefix(checkpoint, "ema_model.")`; the encoder and the latent net in it are ignored.
        image_size: side of the training pictures in pixels.

    Raises:
        UserError: `state_dict` lacks a weight of this network, has an unknown one, or has one of a wrong shape.
    """
    own = {
        name.replace("time_embed.time_embed.", "time_embed.", 1): value
        for name, value in state_dict.items()
        if not name.startswith(("encoder.", "latent_net."))
    }
    layout = denoiser_layout(own)
    settings = {
        "sample_size": image_size,
        "channels": shape_of(own, "input_blocks.0.0.weight")[1],
        "out_channels": shape_of(own, "out.2.weight")[0],
        "z_width": shape_of(own, "input_blocks.1.0.cond_emb_layers.1.weight")[1],
        "widths": layout.widths,
        "attention": layout.attention,
        "layers": layout.layers,
        "time_width": shape_of(own, "time_embed.0.weight")[0],
    }
    return convert_state_dict(
        own, lambda: SemanticUNet(**settings), lambda name: _unet_name(name, layout), ONE_HEAD
    ), settings


def original_name_with_code(name: str, layout: Layout, projection: str) -> str:
    """Return a weight's name in DiffAE's or PDAE's checkpoints, whose residual blocks project both time and code.

    Args:
        name: the weight's name in ldm_kit's network.
        layout: settings of the network, inferred from its checkpoint.
        projection: original name of a block's code projection, such as `cond_emb_layers`.
    """
    plain = re.sub(r"time_emb_proj\.(time|semantic)", "time_emb_proj", name)
    original = original_name(plain, layout)
    return original.replace("emb_layers", projection) if ".semantic." in name else original


def encoder_from(state_dict: State, *, layers: int = 2) -> Converted:
    """Convert DiffAE's encoder; return its state dict and the settings for `SemanticEncoder(**settings)`.

    Args:
        state_dict: `strip_prefix(checkpoint, "ema_model.")`; other networks in it are ignored.
        layers: residual blocks of each level. The shapes do not tell their number, as the blocks that downsample look
            like the others.

    Raises:
        UserError: the weights are another network's, or the number of blocks does not divide into levels of `layers`.
    """
    own = strip_prefix(state_dict, "encoder.")
    positions = sorted({position for position in map(_position, own) if position is not None})
    count = 1 + max((block for half, block, _ in positions if half == "input_blocks"), default=0)
    firsts = [f"input_blocks.{1 + level * (layers + 1)}" for level in range(count // (layers + 1))]
    if not firsts or count % (layers + 1):
        raise UserError(f"an encoder of {count} blocks has no levels of {layers} blocks each; expected another number")
    settings = {
        "channels": shape_of(own, "input_blocks.0.0.weight")[1],
        "z_width": shape_of(own, "out.3.weight")[0],
        "widths": tuple(shape_of(own, f"{first}.0.in_layers.2.weight")[0] for first in firsts),
        "attention": tuple(f"{first}.1.qkv.weight" in own for first in firsts),
        "layers": layers,
    }
    positions.remove(("input_blocks", 0, 0))
    modules = {position: f"body.{i}" for i, position in enumerate(positions)}  # input blocks, then the middle
    tensors = [_encoder_tensors(name, value, modules) for name, value in own.items()]
    return {name: value for converted in tensors for name, value in converted.items()}, settings


def prior_from(state_dict: State) -> Converted:
    """Convert the network of a prior (DiffAE's latent net); return its state dict and the settings for `SkipMLP`.

    Args:
        state_dict: the latent net's weights, with no prefix before their names; PDAE's latent nets have the same names.

    Raises:
        UserError: `state_dict` lacks a weight of this network, has an unknown one, or has one of a wrong shape.
    """
    last = max((int(m[1]) for m in (re.match(r"layers\.(\d+)\.", name) for name in state_dict) if m), default=0)
    unused = (f"layers.{last}.linear_emb", f"layers.{last}.cond_layers")  # in some versions; no version uses them
    own = {n: v for n, v in state_dict.items() if ".cond_layers." not in n and not n.startswith(unused)}
    settings = {
        "z_width": shape_of(own, "time_embed.2.weight")[0],
        "hidden": shape_of(own, "layers.0.linear.weight")[0],
        "layers": last + 1,
        "time_channels": shape_of(own, "time_embed.0.weight")[1],
    }
    return convert_state_dict(
        own, lambda: SkipMLP(**settings), lambda name: _prior_name(name, last), ONE_HEAD
    ), settings


def convert_state_dict(
    state_dict: State, build: Callable[[], nn.Module], source_of: Callable[[str], str], heads: Heads
) -> dict[str, Tensor]:
    """Return the state dict of one of ldm_kit's networks, converted from the original network's state dict.

    Args:
        state_dict: the original weights.
        build: returns ldm_kit's network; called on the meta device, for its names and shapes alone.
        source_of: returns a weight's original name, given its name in ldm_kit's network.
        heads: how attention is divided into heads.

    Raises:
        UserError: `state_dict` lacks a weight of this network, has an unknown one, or has one of a wrong shape.
    """
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build().state_dict().items()}
    sources = {name: source_of(name) for name in shapes}
    for source in sources.values():
        if source not in state_dict:
            raise UserError(f"the weights lack {source}; is it a checkpoint of this kind?")
    if unexpected := sorted(state_dict.keys() - set(sources.values())):
        raise UserError(f"the weights have {len(unexpected)} tensors too many, such as {unexpected[0]}")
    tensors = {
        name: convert_tensor(name, state_dict[source], heads).float().contiguous() for name, source in sources.items()
    }
    for name, value in tensors.items():
        if value.shape != shapes[name]:
            raise UserError(
                f"{sources[name]} is {tuple(state_dict[sources[name]].shape)}, which does not fit the network"
            )
    return tensors


def attention_tensors(prefix: str, layer: str, value: Tensor, heads: Heads) -> dict[str, Tensor]:
    """Convert one weight of ADM's attention to one weight of diffusers' (qkv: to three); return {} for any other layer.

    Args:
        prefix: the attention module's name in ldm_kit's network.
        layer: the weight's original name within the module, such as `qkv.weight`.
        value: the weight.
        heads: how attention is divided into heads.
    """
    module, _, kind = layer.rpartition(".")
    names = [f"{prefix}.{own}.{kind}" for own, original in _ATTENTION.items() if original == module]
    return {name: convert_tensor(name, value, heads).float().contiguous() for name in names}


def _encoder_tensors(name: str, value: Tensor, modules: Mapping[_Position, str]) -> dict[str, Tensor]:
    """Convert one weight of DiffAE's encoder to the weights of ldm_kit's: one, or three for an attention's qkv.

    Args:
        name: the weight's original name.
        value: the weight.
        modules: position of a module in the original network -> its name in ldm_kit's.

    Raises:
        UserError: the encoder has no weight of this name.
    """
    module, _, kind = name.rpartition(".")
    if module in _ENDS:
        return {f"{_ENDS[module]}.{kind}": value.float().flatten(1) if name == "out.3.weight" else value.float()}
    position = _position(name)
    if position is not None and position in modules:
        layer = name.split(".", 3 if position[0] == "input_blocks" else 2)[-1]
        single = _SINGLE_CONV.get(layer.rpartition(".")[0])
        if single is not None:
            return {f"{modules[position]}.{single}.{kind}": value.float()}
        if tensors := attention_tensors(modules[position], layer, value, ONE_HEAD):
            return tensors
    raise UserError(f"unexpected weight {name!r} {list(value.shape)}; is it an encoder of this kind?")


def _position(name: str) -> _Position | None:
    """Return the position of an encoder weight: ("input_blocks" or "middle_block", block, layer in the block).

    `name` is the weight's original name. None: the weight is of a layer after the blocks.
    """
    if match := re.match(r"input_blocks\.(\d+)\.(\d+)\.", name):
        return "input_blocks", int(match[1]), int(match[2])
    if match := re.match(r"middle_block\.(\d+)\.", name):
        return "middle_block", int(match[1]), 0
    return None


def _prior_name(name: str, last: int) -> str:
    """Return DiffAE's name of the weight `name` of ldm_kit's `SkipMLP`; `last` is the index of DiffAE's last layer."""
    module, kind = name.rsplit(".", 1)
    if module == "out":
        return f"layers.{last}.linear.{kind}"
    if module in _PRIOR:
        return f"{_PRIOR[module]}.{kind}"
    return name.replace("stack.", "layers.").replace(".scale.", ".linear_emb.")


def _unet_name(name: str, layout: Layout) -> str:
    """Return DiffAE's name of the weight `name` of ldm_kit's `SemanticUNet`; `layout` has the network's settings."""
    plain = name.removeprefix("unet.").replace("time_embedding.embedding.", "time_embedding.")
    return original_name_with_code(plain, layout, "cond_emb_layers")
