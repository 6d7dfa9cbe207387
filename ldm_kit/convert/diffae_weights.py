"""Weights of phizaz/diffae as ours: pure functions from original parameter names to a state dict and settings.

A `.ckpt` holds `state_dict` with `model.*` and `ema_model.*`: take one with `under(state, "ema_model.")`. In it the
U-Net's names are ADM's with a second projection in every block, `encoder.*` is the encoder, and `latent_net.*` the
prior, if there is one. Settings are the constructor's arguments, read from the shapes.
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
    denoiser_layout,
    our_tensor,
    shape_of,
    their_name,
)
from ldm_kit.nets.mlp_skip import SkipMLP
from ldm_kit.nets.semantic_unet import SemanticUNet

Settings = dict[str, Any]
Converted = tuple[dict[str, Tensor], Settings]
_Place = tuple[str, int, int]
ONE_HEAD = Heads(count=1)
_SINGLE = {"in_layers.0": "norm", "in_layers.2": "conv", "skip_connection": "skip"}
_ENDS = {"input_blocks.0.0": "conv_in", "out.0": "norm", "out.3": "out"}
_ATTENTION = {"group_norm": "norm", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "to_out.0": "proj_out"}
_PRIOR = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}


def _published(
    base: int, multiples: tuple[int, ...], more: int, attention: int, side: int, prior: int
) -> dict[str, dict[str, Any]]:
    """Constructor arguments; the encoder has one level more, `more` times `base` wide."""
    widths = tuple(base * m for m in multiples)
    deeper = (*widths, base * more)
    attends, deeper_attends = (tuple(i == attention for i in range(len(w))) for w in (widths, deeper))
    return {
        "unet": {"sample_size": side, "widths": widths, "attention": attends, "dropout": 0.1},
        "encoder": {"widths": deeper, "attention": deeper_attends},
        "prior": {"layers": prior},
    }


PUBLISHED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "celeba64": _published(64, (1, 2, 4, 8), 8, 2, 64, 10),
    "ffhq128": _published(128, (1, 1, 2, 3, 4), 4, 3, 128, 10),
    "horse128": _published(128, (1, 1, 2, 3, 4), 4, 3, 128, 20),
    "bedroom128": _published(128, (1, 1, 2, 3, 4), 4, 3, 128, 20),
    "ffhq256": _published(128, (1, 1, 2, 2, 4, 4), 4, 4, 256, 10),
}
"""The papers' models: "unet" (`SemanticUNet`), "encoder" (`SemanticEncoder`), "prior" (`SkipMLP`) -> arguments."""


def under(state: State, prefix: str) -> dict[str, Tensor]:
    """What stands under a prefix, such as `ema_model.`, without it. Raises UserError where there is nothing."""
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not found:
        raise UserError(
            f"no weight of this checkpoint begins with {prefix!r}; the first is {next(iter(state), None)!r}"
        )
    return found


def unet_from(state: State, *, image_size: int) -> Converted:
    """An autoencoder's decoder, for `SemanticUNet(**settings)`.

    Args:
        state: `under(checkpoint, "ema_model.")`; encoder and latent net in it are passed over.
        image_size: side of the pictures that it was trained on.

    Raises:
        UserError: these are other weights, or some are missing or too many.
    """
    own = {n.replace("time_embed.time_embed.", "time_embed.", 1): v for n, v in state.items() if not _beside(n)}
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
    return taken(own, lambda: SemanticUNet(**settings), lambda name: _unet_name(name, layout), ONE_HEAD), settings


def with_code(ours: str, layout: Layout, projection: str) -> str:
    """`their_name` in a network whose blocks also have a projection of a code, called `projection` there."""
    plain = re.sub(r"time_emb_proj\.(time|semantic)", "time_emb_proj", ours)
    theirs = their_name(plain, layout)
    return theirs.replace("emb_layers", projection) if ".semantic." in ours else theirs


def encoder_from(state: State, *, layers: int = 2) -> Converted:
    """An autoencoder's encoder, for `conditioning.semantic.SemanticEncoder(**settings)`; errors as for `unet_from`.

    `layers`: blocks of each level, which no shape tells, as those that halve look like the others.
    """
    own = under(state, "encoder.")
    places = sorted({place for place in map(_place, own) if place is not None})
    count = 1 + max((block for half, block, _ in places if half == "input_blocks"), default=0)
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
    places.remove(("input_blocks", 0, 0))
    order = {place: f"body.{i}" for i, place in enumerate(places)}  # input blocks, then the middle, as they run
    found = [_encoder_part(name, value, order) for name, value in own.items()]
    return {name: value for part in found for name, value in part.items()}, settings


def prior_from(state: State) -> Converted:
    """A latent net (DiffAE's `under(state, "latent_net.")`, or PDAE's), for `SkipMLP(**settings)`; errors likewise."""
    last = max((int(m[1]) for m in (re.match(r"layers\.(\d+)\.", name) for name in state) if m), default=0)
    unused = (f"layers.{last}.linear_emb", f"layers.{last}.cond_layers")  # some versions make them, none uses them
    own = {n: v for n, v in state.items() if ".cond_layers." not in n and not n.startswith(unused)}
    settings = {
        "z_width": shape_of(own, "time_embed.2.weight")[0],
        "hidden": shape_of(own, "layers.0.linear.weight")[0],
        "layers": last + 1,
        "time_channels": shape_of(own, "time_embed.0.weight")[1],
    }
    return taken(own, lambda: SkipMLP(**settings), lambda name: _prior_name(name, last), ONE_HEAD), settings


def classifier_from(state: State) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A classifier's checkpoint as (state of `nn.Linear`, its codes' mean [Z], their std [Z]); the averaged weights.

    Raises UserError where there is no such classifier, or no statistics.
    """
    if missing := [name for name in ("conds_mean", "conds_std") if name not in state]:
        raise UserError(f"this classifier's checkpoint has no {missing[0]!r}; expected the statistics of its codes")
    return under(state, "ema_classifier."), state["conds_mean"].flatten(), state["conds_std"].flatten()


def taken(
    state: State, build: Callable[[], nn.Module], theirs: Callable[[str], str], heads: Heads
) -> dict[str, Tensor]:
    """Every weight that a network of ours wants, out of a state where it is called `theirs(name)`.

    Raises UserError unless both have the same weights in the same shapes.
    """
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in build().state_dict().items()}
    sources = {ours: theirs(ours) for ours in wanted}
    for lost in sources.values():
        if lost not in state:
            raise UserError(f"the weights lack {lost}; is it a checkpoint of this kind?")
    if more := sorted(state.keys() - set(sources.values())):
        raise UserError(f"the weights have {len(more)} tensors too many, such as {more[0]}")
    found = {ours: our_tensor(ours, state[name], heads).float().contiguous() for ours, name in sources.items()}
    for ours, value in found.items():
        if value.shape != wanted[ours]:
            raise UserError(f"{sources[ours]} is {tuple(state[sources[ours]].shape)}, which does not fit the network")
    return found


def attention_part(start: str, layer: str, value: Tensor, heads: Heads) -> dict[str, Tensor]:
    """A weight of ADM's attention, called `qkv.weight` and the like, as one or three of ours; empty for others."""
    module, _, kind = layer.rpartition(".")
    names = [f"{start}.{ours}.{kind}" for ours, theirs in _ATTENTION.items() if theirs == module]
    return {name: our_tensor(name, value, heads).float().contiguous() for name in names}


def _encoder_part(name: str, value: Tensor, order: Mapping[_Place, str]) -> dict[str, Tensor]:
    module, _, kind = name.rpartition(".")
    if module in _ENDS:
        return {f"{_ENDS[module]}.{kind}": value.float().flatten(1) if name == "out.3.weight" else value.float()}
    place = _place(name)
    if place is not None and place in order:
        layer = name.split(".", 3 if place[0] == "input_blocks" else 2)[-1]
        single = _SINGLE.get(layer.rpartition(".")[0])
        if single is not None:
            return {f"{order[place]}.{single}.{kind}": value.float()}
        if found := attention_part(order[place], layer, value, ONE_HEAD):
            return found
    raise UserError(f"cannot place the weight {name!r} {list(value.shape)}; is it an encoder of this kind?")


def _place(name: str) -> _Place | None:
    """(half, block, layer) of a name; None for the head."""
    if match := re.match(r"input_blocks\.(\d+)\.(\d+)\.", name):
        return "input_blocks", int(match[1]), int(match[2])
    if match := re.match(r"middle_block\.(\d+)\.", name):
        return "middle_block", int(match[1]), 0
    return None


def _prior_name(ours: str, last: int) -> str:
    module, kind = ours.rsplit(".", 1)
    if module == "out":
        return f"layers.{last}.linear.{kind}"
    if module in _PRIOR:
        return f"{_PRIOR[module]}.{kind}"
    return ours.replace("stack.", "layers.").replace(".scale.", ".linear_emb.")


def _unet_name(ours: str, layout: Layout) -> str:
    plain = ours.removeprefix("unet.").replace("time_embedding.embedding.", "time_embedding.")
    return with_code(plain, layout, "cond_emb_layers")


def _beside(name: str) -> bool:
    return name.startswith(("encoder.", "latent_net."))
