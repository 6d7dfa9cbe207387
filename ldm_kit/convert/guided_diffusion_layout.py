"""Layout of the checkpoints of openai/guided-diffusion: its parameter names, and settings inferred from shapes.

Its networks are lists of blocks without names. In the down path, a level is `layers` residual blocks and one block that
downsamples; in the up path, `layers` + 1 blocks, the last of which also upsamples. The level with the smallest features
does not downsample, the level with the largest does not upsample. ldm_kit's networks are nested by level.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import compress

from torch import Tensor

from ldm_kit.config import UserError

State = Mapping[str, Tensor]

_PLAIN = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "norm_out": "out.0",  # this and what follows are the classifier's
    "pool.to_q": "out.2.qkv_proj",
    "pool.to_k": "out.2.qkv_proj",
    "pool.to_v": "out.2.qkv_proj",
    "pool.to_out": "out.2.c_proj",
}
_LEAVES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
    "to_q": "qkv",
    "to_k": "qkv",
    "to_v": "qkv",
    "to_out.0": "proj_out",
}
_BLOCK = re.compile(r"(down_blocks|mid_block|up_blocks)\.(?:(\d+)\.)?([a-z]+)\.(\d+)\.(.+)\.(weight|bias)")
_DOUBLES = re.compile(r"output_blocks\.\d+\.[12]\.(in_layers\.0|conv)\.weight")
_POSITION = "pool.position"


@dataclass(frozen=True)
class Heads:
    """How the channels of an attention are divided into heads, which the shapes of the weights do not tell."""

    size: int = 64  # channels of a head
    count: int | None = None  # number of heads, whatever their size; None: heads have `size` channels
    new_order: bool = False  # qkv is [3, heads, channels] (use_new_attention_order); else [heads, 3, channels]

    def number(self, width: int) -> int:
        """Return the number of heads of an attention over `width` channels.

        Raises:
            UserError: `width` is not a multiple of `count` or, if that is None, of `size`.
        """
        if width % (self.size if self.count is None else self.count):
            cut = f"heads of {self.size} channels" if self.count is None else f"{self.count} heads"
            raise UserError(f"attention over {width} channels cannot be cut into {cut}; expected another number")
        return width // self.size if self.count is None else self.count


@dataclass(frozen=True)
class Layout:
    """Settings of a network, inferred from the shapes in its checkpoint."""

    widths: tuple[int, ...]  # channels of each level, the first at the picture's resolution
    attention: tuple[bool, ...]  # whether each level has attention
    layers: int  # residual blocks of each level in the down path
    time: int  # channels of the sinusoidal time embedding
    scale_shift: bool  # the time embedding scales and shifts the norms; else it is added to the features
    resnet: bool  # residual blocks change the resolution between levels; else plain convolutions do

    @property
    def factor(self) -> int:
        """Side of the pictures divided by the side of the middle block's features."""
        return 2 ** (len(self.widths) - 1)

    def head_sizes(self, heads: Heads) -> list[int]:
        """Return the sizes (channels) that heads have in the network's attention layers, each size once, sorted.

        Raises:
            UserError: the channels of a level with attention cannot be divided into such heads, see `Heads.number`.
        """
        attended = (*compress(self.widths, self.attention), self.widths[-1])
        return sorted({width // heads.number(width) for width in attended})


def denoiser_layout(state_dict: State) -> Layout:
    """Infer the settings of a denoiser from its state dict; raises UserError for another network's weights."""
    levels = 1 + sum(bool(_DOUBLES.fullmatch(name)) for name in state_dict)
    return _layout(state_dict, "output_blocks", levels)


def classifier_layout(state_dict: State, levels: int) -> Layout:
    """Infer the settings of a classifier from its state dict; the network has a down path only, of `levels` levels.

    Raises:
        UserError: the weights are another network's, or their blocks do not divide into `levels` equal levels.
    """
    return _layout(state_dict, "input_blocks", levels)


def _layout(state_dict: State, where: str, levels: int) -> Layout:
    """Infer a network's settings from the shapes of its weights.

    The network has `levels` resolutions with equally many blocks each, so that the number of blocks says how many a
    level has. `where` is the list of blocks that is counted: input_blocks, or output_blocks of a decoder alone.

    Raises:
        UserError: the list cannot be divided so, or the weights are not of a guided-diffusion network.
    """
    if not {"time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight"} <= state_dict.keys():
        raise UserError(
            "these are no weights of a guided-diffusion network: expected time_embed, input_blocks and middle_block"
        )
    count = len({name.split(".")[1] for name in state_dict if name.startswith(f"{where}.")})
    layers = count // levels - 1
    firsts = [f"input_blocks.{1 + level * (layers + 1)}" for level in range(levels)]
    widths = tuple(shape_of(state_dict, f"{first}.0.out_layers.3.weight")[0] for first in firsts if layers > 0)
    if layers < 1 or count % levels or widths[-1] != state_dict["middle_block.0.in_layers.0.weight"].numel():
        raise UserError(f"{count} {where} are not {levels} levels of equal length; are weights or image size wrong?")
    return Layout(
        widths,
        tuple(f"{first}.1.qkv.weight" in state_dict for first in firsts),
        layers,
        shape_of(state_dict, "time_embed.0.weight")[1],
        shape_of(state_dict, "input_blocks.1.0.emb_layers.1.weight")[0] == 2 * widths[0],
        levels == 1 or f"input_blocks.{layers + 1}.0.in_layers.0.weight" in state_dict,
    )


def shape_of(state_dict: State, name: str) -> tuple[int, ...]:
    """Return the shape of the weight `name`; raises UserError if it is missing or has fewer than two dimensions."""
    if name not in state_dict or state_dict[name].ndim < 2:
        raise UserError(f"the weights have no usable {name}; is the file whole?")
    return tuple(state_dict[name].shape)


def original_name(name: str, layout: Layout) -> str:
    """Return a weight's name in openai/guided-diffusion's checkpoints.

    `name` is the weight's name in ldm_kit's network, `layout` has the network's settings.
    """
    if name == _POSITION:
        return "out.2.positional_embedding"
    match = _BLOCK.fullmatch(name)
    if match is None:
        module, kind = name.rsplit(".", 1)
        return f"{_PLAIN[module]}.{kind}"
    path, level, group, index, leaf, kind = match.groups()
    block = _BLOCK_NAMES[path](layout, int(level or 0), group, int(index))
    if leaf == "conv":  # a convolution that resamples
        return f"{block}.{'op' if path == 'down_blocks' else 'conv'}.{kind}"
    return f"{block}.{_LEAVES[leaf]}.{kind}"


def _down(layout: Layout, level: int, group: str, index: int) -> str:
    index = layout.layers if group == "downsamplers" else index
    return f"input_blocks.{1 + (layout.layers + 1) * level + index}.{int(group == 'attentions')}"


def _middle(layout: Layout, level: int, group: str, index: int) -> str:
    return f"middle_block.{1 if group == 'attentions' else 2 * index}"


def _up(layout: Layout, level: int, group: str, index: int) -> str:
    if group == "upsamplers":
        return f"output_blocks.{(layout.layers + 1) * (level + 1) - 1}.{1 + layout.attention[-1 - level]}"
    return f"output_blocks.{(layout.layers + 1) * level + index}.{int(group == 'attentions')}"


_BLOCK_NAMES: Mapping[str, Callable[[Layout, int, str, int], str]] = {
    "down_blocks": _down,
    "mid_block": _middle,
    "up_blocks": _up,
}


def convert_tensor(name: str, value: Tensor, heads: Heads) -> Tensor:
    """Return the weight `name` of ldm_kit's network, converted from the original weight `value`.

    If `name` is a weight of queries, keys or values, `value` is the one original weight of all three (qkv), and the
    third that belongs to `name` is returned; `heads` says how qkv is divided. A 1D convolution of kernel size 1 becomes
    a linear map.
    """
    if name == _POSITION:
        return value.T
    if value.ndim == 3:  # [out, in, 1]
        value = value.squeeze(2)
    leaf = name.rsplit(".", 2)[-2]
    if leaf not in ("to_q", "to_k", "to_v"):
        return value
    width = len(value) // 3
    count = 1 if heads.new_order or name.startswith("pool.") else heads.number(width)
    split = value[: 3 * width].unflatten(0, (count, 3, width // count))
    return split[:, "qkv".index(leaf[-1])].flatten(0, 1)
