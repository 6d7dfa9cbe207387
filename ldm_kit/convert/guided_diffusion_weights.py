"""Weights of openai/guided-diffusion (ADM) as ours: pure functions from a state dict to a state dict and settings.

What the shapes tell is read from them: widths, layers, levels with attention, how time enters, how levels are
resampled, a learned variance. What they cannot tell is asked for: the attention heads, and the side of the pictures.
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
    denoiser_layout,
    our_tensor,
    shape_of,
    their_name,
)
from ldm_kit.nets.adm import AdmUNet
from ldm_kit.nets.half_unet import HalfUNet

Settings = dict[str, Any]
Converted = tuple[dict[str, Tensor], Settings]
GROUPS, TIMES = 32, 1000  # of every norm, and in training
_TABLE = "label_emb.weight"


def unet_from(state: State, *, image_size: int, heads: Heads | None = None) -> Converted:
    """A denoiser's weights and settings for `unet_of`; the table of classes is not among them (`classes_from`).

    Args:
        state: as `torch.load` gives it, in any floating dtype; the result is float32.
        image_size: side of the pictures that it was trained on.
        heads: of every attention; 64 channels each where left out.

    Raises:
        UserError: these are other weights, some are missing or too many, or the picture cannot be halved that often.
    """
    heads = heads or Heads()
    layout = denoiser_layout(state)
    if image_size < layout.factor or image_size % layout.factor:
        raise UserError(
            f"a picture of side {image_size} cannot be halved {len(layout.widths) - 1} times as this network does; "
            f"expected a multiple of {layout.factor}"
        )
    settings = {
        "sample_size": image_size,
        **_channels(state),
        **_settings(layout, heads),
        "class_embed_type": "identity" if _TABLE in state else None,
    }
    rest = {name: value for name, value in state.items() if name != _TABLE}
    return _converted(rest, lambda: unet_of(settings), layout, heads, _learned_time(rest, layout)), settings


def unet_of(settings: Settings) -> UNet2DModel:
    """The network that `unet_from` has weights for, not yet loaded: diffusers' own class wherever that can be."""
    return AdmUNet(**settings) if "heads" in settings else UNet2DModel(**settings)


def classes_from(state: State) -> Tensor | None:
    """The vectors [K, D] that a class-conditional denoiser adds to its time embedding; there is none for no class."""
    table = state.get(_TABLE)
    return None if table is None else table.float()


def classifier_from(state: State, *, image_size: int, heads: Heads | None = None) -> Converted:
    """A noisy classifier's weights and settings for `HalfUNet`, its classes named "0", "1" and so on.

    Args and errors as for `unet_from`; the network must end in attention pooling, as the published ones do.
    """
    heads = heads or Heads()
    if "out.2.positional_embedding" not in state:
        raise UserError("this is no noisy classifier with attention pooling: it has no out.2.positional_embedding")
    side = max(1, math.isqrt(shape_of(state, "out.2.positional_embedding")[1] - 1))
    levels = 1 + round(math.log2(max(1.0, image_size / side)))
    if side * 2 ** (levels - 1) != image_size:
        raise UserError(f"pictures of side {image_size} cannot be halved to side {side}, which this classifier pools")
    layout = classifier_layout(state, levels)
    if not (layout.scale_shift and layout.resnet):
        raise UserError("this classifier adds the time, or halves by convolutions; expected AdaGN and residual blocks")
    if len(sizes := layout.head_sizes(heads)) > 1:
        raise UserError(f"a classifier cannot have heads of {sizes} channels; expected one size")
    settings = {
        "sample_size": image_size,
        "in_channels": shape_of(state, "input_blocks.0.0.weight")[1],
        "classes": [str(k) for k in range(shape_of(state, "out.2.c_proj.weight")[0])],
        "widths": layout.widths,
        "attention": layout.attention,
        "layers": layout.layers,
        "head_size": sizes[0],
        "groups": GROUPS,
        "time_width": layout.time,
    }
    return _converted(state, lambda: HalfUNet(**settings), layout, heads, {}), settings


def _channels(state: State) -> Settings:
    inside, out = shape_of(state, "input_blocks.0.0.weight")[1], shape_of(state, "out.2.weight")[0]
    if inside not in (1, 3, 4) or out not in (inside, 2 * inside):
        raise UserError(
            f"the network takes {inside} channels and gives {out}, as one for super-resolution does; expected pictures "
            "of 1, 3 or 4 channels in, and as many or twice as many out"
        )
    return {"in_channels": inside, "out_channels": out}


def _settings(layout: Layout, heads: Heads) -> Settings:
    bare = "Resnet{0}sampleBlock2D" if layout.resnet else "{0}Block2D"
    kinds = ["Attn{0}Block2D" if attention else bare for attention in layout.attention]
    sizes, sample = layout.head_sizes(heads), "resnet" if layout.resnet else "conv"
    learned = {"time_embedding_type": "learned", "num_train_timesteps": TIMES}
    return {
        "block_out_channels": layout.widths,
        "layers_per_block": layout.layers,
        "down_block_types": tuple(kind.format("Down") for kind in kinds),
        "up_block_types": tuple(kind.format("Up") for kind in reversed(kinds)),
        "norm_num_groups": GROUPS,
        "attn_norm_num_groups": GROUPS,
        "resnet_time_scale_shift": "scale_shift" if layout.scale_shift else "default",
        "downsample_type": sample,
        "upsample_type": sample,
        "time_embedding_dim": 4 * layout.time,
        **({"attention_head_dim": sizes[0]} if len(sizes) == 1 else {"heads": heads.count}),
        **({} if layout.time == layout.widths[0] else learned),
    }


def _learned_time(state: State, layout: Layout) -> dict[str, Tensor]:
    """Sinusoids wider or narrower than the first level, which diffusers has only as a table of all times.

    The table times its linear map is the sinusoids times theirs. The matrix [1000, D] of sinusoids has a numerical rank
    below D / 2 for ADM's D = 256, so that nothing is lost where the first level is half as wide (its 512 px network).
    """
    if layout.time == layout.widths[0]:
        return {}
    weight, half = state["time_embed.0.weight"].double(), layout.time // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(TIMES, dtype=torch.float64)[:, None] * rates
    u, size, v = torch.linalg.svd(torch.cat([angles.cos(), angles.sin()], dim=1), full_matrices=False)
    rank = min(layout.widths[0], len(size))
    if len(size) > rank and size[rank] > 1e-6 * size[0]:
        raise UserError(
            f"time enters as {layout.time} sinusoids, too many for a first level {layout.widths[0]} channels wide"
        )
    table, linear = weight.new_zeros(TIMES, layout.widths[0]), weight.new_zeros(len(weight), layout.widths[0])
    table[:, :rank] = u[:, :rank] * math.sqrt(TIMES)
    linear[:, :rank] = weight @ (v[:rank] * size[:rank, None]).T / math.sqrt(TIMES)
    return {"time_proj.weight": table.float(), "time_embedding.linear_1.weight": linear.float()}


def _converted(
    state: State, build: Callable[[], nn.Module], layout: Layout, heads: Heads, ready: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Every weight that the network wants, found in `state` or `ready`; raises UserError unless they match exactly."""
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in build().state_dict().items()}
    sources = {ours: their_name(ours, layout) for ours in wanted if ours != "time_proj.weight"}
    if lost := set(sources.values()) - state.keys():
        raise UserError(f"the weights lack {len(lost)} tensors: {_first(lost)}")
    if more := state.keys() - set(sources.values()):
        raise UserError(f"the weights have {len(more)} tensors too many: {_first(more)}")
    for ours, theirs in sources.items():
        if state[theirs].numel() != math.prod(wanted[ours]) * (3 if "qkv" in theirs else 1) and ours not in ready:
            raise UserError(f"{theirs} is {tuple(state[theirs].shape)}, which does not fit the rest of the network")
    found = {ours: our_tensor(ours, state[theirs], heads).float() for ours, theirs in sources.items()} | dict(ready)
    return {ours: value.reshape(wanted[ours]).contiguous().clone() for ours, value in found.items()}


def _first(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")
