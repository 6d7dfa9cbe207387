"""Conversion of weights of openai/guided-diffusion (ADM): its state dict to one of ldm_kit, and a network's settings.

Widths, layers, levels with attention, the kind of time embedding, the kind of resampling and a learned variance are
inferred from the shapes. No shape tells the attention heads and the side of the pictures, which are arguments.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from ldm_kit.config import UserError
from ldm_kit.convert.guided_diffusion_layout import (
    Heads,
    Layout,
    State,
    classifier_layout,
    convert_tensor,
    denoiser_layout,
    original_name,
    shape_of,
)
from ldm_kit.nets.adm import AdmUNet
from ldm_kit.nets.half_unet import HalfUNet

Settings = dict[str, Any]
Converted = tuple[dict[str, Tensor], Settings]
GROUPS, NUM_TIMESTEPS = 32, 1000  # groups of every GroupNorm; timesteps in training
_TABLE = "label_emb.weight"


def unet_from(state_dict: State, *, image_size: int, heads: Heads | None = None) -> Converted:
    """Convert a denoiser's weights; return a state dict, and the settings for `build_adm_unet(settings)`.

    The class embeddings are left out; `class_table` returns them.

    Args:
        state_dict: as `torch.load` returns it, in any floating dtype; the converted weights are float32.
        image_size: side of the training pictures in pixels.
        heads: how every attention is divided into heads; None: heads of 64 channels.

    Raises:
        UserError: `state_dict` lacks a weight of this network, has an unknown one, or has one of a wrong shape; or
            `image_size` cannot be halved as often as the network halves its pictures.
    """
    heads = heads or Heads()
    layout = denoiser_layout(state_dict)
    if image_size < layout.factor or image_size % layout.factor:
        raise UserError(
            f"a picture of side {image_size} cannot be halved {len(layout.widths) - 1} times as this network does; "
            f"expected a multiple of {layout.factor}"
        )
    settings = {
        "sample_size": image_size,
        **_channels(state_dict),
        **_settings(layout, heads),
        "class_embed_type": "identity" if _TABLE in state_dict else None,
    }
    rest = {name: value for name, value in state_dict.items() if name != _TABLE}
    return _converted(rest, lambda: build_adm_unet(settings), layout, heads, _learned_time(rest, layout)), settings


def build_adm_unet(settings: Settings) -> UNet2DModel:
    """Build the network for weights of `unet_from`: diffusers' `UNet2DModel`, or `AdmUNet` if `settings` has `heads`.

    `AdmUNet` has the same number of heads at each level, where diffusers' class has heads of the same size.
    """
    return AdmUNet(**settings) if "heads" in settings else UNet2DModel(**settings)


def class_table(state_dict: State) -> Tensor | None:
    """Return a denoiser's class embeddings [K, D], which are added to its time embedding; None if it has no classes."""
    table = state_dict.get(_TABLE)
    return None if table is None else table.float()


def classifier_from(state_dict: State, *, image_size: int, heads: Heads | None = None) -> Converted:
    """Convert a noisy classifier's weights; return a state dict, and the settings for `HalfUNet(**settings)`.

    The classes are named "0", "1" and so on. The network must end in attention pooling, as the published ones do.

    Args:
        state_dict: as `torch.load` returns it, in any floating dtype; the converted weights are float32.
        image_size: side of the training pictures in pixels.
        heads: how every attention is divided into heads; None: heads of 64 channels.

    Raises:
        UserError: `state_dict` lacks a weight of this network, has an unknown one, or has one of a wrong shape; or
            `image_size` cannot be halved as often as the network halves its pictures.
    """
    heads = heads or Heads()
    if "out.2.positional_embedding" not in state_dict:
        raise UserError("this is no noisy classifier with attention pooling: it has no out.2.positional_embedding")
    side = max(1, math.isqrt(shape_of(state_dict, "out.2.positional_embedding")[1] - 1))
    levels = 1 + round(math.log2(max(1.0, image_size / side)))
    if side * 2 ** (levels - 1) != image_size:
        raise UserError(f"pictures of side {image_size} cannot be halved to side {side}, which this classifier pools")
    layout = classifier_layout(state_dict, levels)
    if not (layout.scale_shift and layout.resnet):
        raise UserError("this classifier adds the time, or halves by convolutions; expected AdaGN and residual blocks")
    if len(sizes := layout.head_sizes(heads)) > 1:
        raise UserError(f"a classifier cannot have heads of {sizes} channels; expected one size")
    settings = {
        "sample_size": image_size,
        "in_channels": shape_of(state_dict, "input_blocks.0.0.weight")[1],
        "classes": [str(k) for k in range(shape_of(state_dict, "out.2.c_proj.weight")[0])],
        "widths": layout.widths,
        "attention": layout.attention,
        "layers": layout.layers,
        "head_size": sizes[0],
        "groups": GROUPS,
        "time_width": layout.time,
    }
    return _converted(state_dict, lambda: HalfUNet(**settings), layout, heads, {}), settings


def _channels(state_dict: State) -> Settings:
    channels, out = shape_of(state_dict, "input_blocks.0.0.weight")[1], shape_of(state_dict, "out.2.weight")[0]
    if channels not in (1, 3, 4) or out not in (channels, 2 * channels):
        raise UserError(
            f"the network takes {channels} channels and gives {out}, as one for super-resolution does; expected "
            "pictures of 1, 3 or 4 channels in, and as many or twice as many out"
        )
    return {"in_channels": channels, "out_channels": out}


def _settings(layout: Layout, heads: Heads) -> Settings:
    plain = "Resnet{0}sampleBlock2D" if layout.resnet else "{0}Block2D"
    kinds = ["Attn{0}Block2D" if attention else plain for attention in layout.attention]
    sizes, resample = layout.head_sizes(heads), "resnet" if layout.resnet else "conv"
    learned = {"time_embedding_type": "learned", "num_train_timesteps": NUM_TIMESTEPS}
    return {
        "block_out_channels": layout.widths,
        "layers_per_block": layout.layers,
        "down_block_types": tuple(kind.format("Down") for kind in kinds),
        "up_block_types": tuple(kind.format("Up") for kind in reversed(kinds)),
        "norm_num_groups": GROUPS,
        "attn_norm_num_groups": GROUPS,
        "resnet_time_scale_shift": "scale_shift" if layout.scale_shift else "default",
        "downsample_type": resample,
        "upsample_type": resample,
        "time_embedding_dim": 4 * layout.time,
        **({"attention_head_dim": sizes[0]} if len(sizes) == 1 else {"heads": heads.count}),
        **({} if layout.time == layout.widths[0] else learned),
    }


def _learned_time(state_dict: State, layout: Layout) -> dict[str, Tensor]:
    """Return the weights of a learned time embedding that equals the original embedding of sinusoids.

    diffusers computes as many sinusoids as the first level has channels. If the network of `layout` has that number,
    the result is empty. diffusers takes any other number only as a table over all timesteps. The table and the linear
    map after it are chosen so that their product equals the sinusoids times the original linear map. The matrix [1000,
    D] of sinusoids has a numerical rank below D / 2 for ADM's D = 256, so that nothing is lost where the first level
    has D / 2 channels (ADM's 512 px network).

    Raises:
        UserError: the first level has fewer channels than the rank of the matrix of sinusoids.
    """
    if layout.time == layout.widths[0]:
        return {}
    weight, half = state_dict["time_embed.0.weight"].double(), layout.time // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(NUM_TIMESTEPS, dtype=torch.float64)[:, None] * rates
    u, size, v = torch.linalg.svd(torch.cat([angles.cos(), angles.sin()], dim=1), full_matrices=False)
    rank = min(layout.widths[0], len(size))
    if len(size) > rank and size[rank] > 1e-6 * size[0]:
        raise UserError(
            f"time enters as {layout.time} sinusoids, too many for a first level {layout.widths[0]} channels wide"
        )
    table, linear = weight.new_zeros(NUM_TIMESTEPS, layout.widths[0]), weight.new_zeros(len(weight), layout.widths[0])
    table[:, :rank] = u[:, :rank] * math.sqrt(NUM_TIMESTEPS)
    linear[:, :rank] = weight @ (v[:rank] * size[:rank, None]).T / math.sqrt(NUM_TIMESTEPS)
    return {"time_proj.weight": table.float(), "time_embedding.linear_1.weight": linear.float()}


def _converted(
    state_dict: State, build: Callable[[], nn.Module], layout: Layout, heads: Heads, ready: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Convert the weights of one of ADM's networks; return the state dict of ldm_kit's network.

    Args:
        state_dict: the original weights.
        build: returns ldm_kit's network; called on the meta device, for its names and shapes alone.
        layout: the network's settings, inferred from `state_dict`.
        heads: how attention is divided into heads.
        ready: weights of ldm_kit's network that are taken as they are; all others are converted from `state_dict`.

    Raises:
        UserError: `state_dict` lacks a weight of this network, has an unknown one, or has one of a wrong shape.
    """
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build().state_dict().items()}
    sources = {name: original_name(name, layout) for name in shapes if name != "time_proj.weight"}
    if missing := set(sources.values()) - state_dict.keys():
        raise UserError(f"the weights lack {len(missing)} tensors: {_first(missing)}")
    if unexpected := state_dict.keys() - set(sources.values()):
        raise UserError(f"the weights have {len(unexpected)} tensors too many: {_first(unexpected)}")
    for name, source in sources.items():
        size = math.prod(shapes[name]) * (3 if "qkv" in source else 1)
        if state_dict[source].numel() != size and name not in ready:
            raise UserError(
                f"{source} is {tuple(state_dict[source].shape)}, which does not fit the rest of the network"
            )
    tensors = {
        name: convert_tensor(name, state_dict[source], heads).float() for name, source in sources.items()
    } | dict(ready)
    return {name: value.reshape(shapes[name]).contiguous().clone() for name, value in tensors.items()}


def _first(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")
