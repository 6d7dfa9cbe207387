"""Where each weight of ours stands in a checkpoint of openai/guided-diffusion, and what its shapes tell.

Their networks are lists of blocks without names: `layers` blocks a level and one that halves on the way down, one more
a level on the way up, the last of which also doubles. Ours (diffusers') are nested by level.
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
    """How attention is cut, which no shape tells: by the channels of a head, or by the number of heads."""

    size: int = 64
    count: int | None = None  # in place of `size`
    new_order: bool = False  # qkv lies [3, heads, channels] (use_new_attention_order), not [heads, 3, channels]

    def of(self, width: int) -> int:
        """Number of heads at a width; raises UserError where it cannot be cut."""
        if width % (self.size if self.count is None else self.count):
            cut = f"heads of {self.size} channels" if self.count is None else f"{self.count} heads"
            raise UserError(f"attention over {width} channels cannot be cut into {cut}; expected another number")
        return width // self.size if self.count is None else self.count


@dataclass(frozen=True)
class Layout:
    """What the shapes of a checkpoint tell."""

    widths: tuple[int, ...]  # of each level, the first at the picture's resolution
    attention: tuple[bool, ...]  # at each level
    layers: int  # residual blocks a level on the way down
    time: int  # channels of the sinusoids
    scale_shift: bool  # of the norms by the time; else it is added
    resnet: bool  # levels are resampled by residual blocks; else by convolutions

    @property
    def factor(self) -> int:
        """How many times smaller the middle's side is than the picture's."""
        return 2 ** (len(self.widths) - 1)

    def head_sizes(self, heads: Heads) -> list[int]:
        """Channels of a head wherever there is attention, the different ones; raises UserError as `Heads.of`."""
        attended = (*compress(self.widths, self.attention), self.widths[-1])
        return sorted({width // heads.of(width) for width in attended})


def denoiser_layout(state: State) -> Layout:
    """Of a denoiser; raises UserError for other weights."""
    levels = 1 + sum(bool(_DOUBLES.fullmatch(name)) for name in state)
    return _layout(state, "output_blocks", levels)


def classifier_layout(state: State, levels: int) -> Layout:
    """Of a classifier, which has but the way down; raises UserError for other weights."""
    return _layout(state, "input_blocks", levels)


def _layout(state: State, where: str, levels: int) -> Layout:
    """`where`: the list of blocks to count, of which each level has `layers` and one more."""
    if not {"time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight"} <= state.keys():
        raise UserError(
            "these are no weights of a guided-diffusion network: expected time_embed, input_blocks and middle_block"
        )
    count = len({name.split(".")[1] for name in state if name.startswith(f"{where}.")})
    layers = count // levels - 1
    firsts = [f"input_blocks.{1 + level * (layers + 1)}" for level in range(levels)]
    widths = tuple(shape_of(state, f"{first}.0.out_layers.3.weight")[0] for first in firsts if layers > 0)
    if layers < 1 or count % levels or widths[-1] != state["middle_block.0.in_layers.0.weight"].numel():
        raise UserError(f"{count} {where} are not {levels} levels of equal length; are weights or image size wrong?")
    return Layout(
        widths,
        tuple(f"{first}.1.qkv.weight" in state for first in firsts),
        layers,
        shape_of(state, "time_embed.0.weight")[1],
        shape_of(state, "input_blocks.1.0.emb_layers.1.weight")[0] == 2 * widths[0],
        levels == 1 or f"input_blocks.{layers + 1}.0.in_layers.0.weight" in state,
    )


def shape_of(state: State, name: str) -> tuple[int, ...]:
    """Of a weight with two dimensions or more; raises UserError where there is none."""
    if name not in state or state[name].ndim < 2:
        raise UserError(f"the weights have no usable {name}; is the file whole?")
    return tuple(state[name].shape)


def their_name(ours: str, layout: Layout) -> str:
    """What one of our weights is called in their checkpoints."""
    if ours == _POSITION:
        return "out.2.positional_embedding"
    found = _BLOCK.fullmatch(ours)
    if found is None:
        module, kind = ours.rsplit(".", 1)
        return f"{_PLAIN[module]}.{kind}"
    way, level, part, index, leaf, kind = found.groups()
    place = _PLACES[way](layout, int(level or 0), part, int(index))
    if leaf == "conv":  # of a plain resampler
        return f"{place}.{'op' if way == 'down_blocks' else 'conv'}.{kind}"
    return f"{place}.{_LEAVES[leaf]}.{kind}"


def _down(layout: Layout, level: int, part: str, index: int) -> str:
    index = layout.layers if part == "downsamplers" else index
    return f"input_blocks.{1 + (layout.layers + 1) * level + index}.{int(part == 'attentions')}"


def _middle(layout: Layout, level: int, part: str, index: int) -> str:
    return f"middle_block.{1 if part == 'attentions' else 2 * index}"


def _up(layout: Layout, level: int, part: str, index: int) -> str:
    if part == "upsamplers":
        return f"output_blocks.{(layout.layers + 1) * (level + 1) - 1}.{1 + layout.attention[-1 - level]}"
    return f"output_blocks.{(layout.layers + 1) * level + index}.{int(part == 'attentions')}"


_PLACES: Mapping[str, Callable[[Layout, int, str, int], str]] = {
    "down_blocks": _down,
    "mid_block": _middle,
    "up_blocks": _up,
}


def our_tensor(ours: str, value: Tensor, heads: Heads) -> Tensor:
    """Their weight as one of ours: q, k and v apart, linear maps for convolutions over a sequence."""
    if ours == _POSITION:
        return value.T
    if value.ndim == 3:  # [out, in, 1]
        value = value.squeeze(2)
    leaf = ours.rsplit(".", 2)[-2]
    if leaf not in ("to_q", "to_k", "to_v"):
        return value
    width = len(value) // 3
    count = 1 if heads.new_order or ours.startswith("pool.") else heads.of(width)
    parts = value[: 3 * width].unflatten(0, (count, 3, width // count))
    return parts[:, "qkv".index(leaf[-1])].flatten(0, 1)
