"""Grow a trained U-Net by a learned variance and further inputs, so that at first it predicts what it predicted before.

The old weights are kept. A new learned variance, the guidance scale, maps of a picture condition and its noise level
begin with weights of zero; attention to tokens of another width begins with new random weights.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm_kit.config import UserError
from ldm_kit.nets.unet import takes_level

_NAMED = 3  # most tensors that a message names
_KEYS = {  # diffusers' config key -> key of a run's config
    "block_out_channels": "widths",
    "layers_per_block": "layers_per_block",
    "down_block_types": "attention_levels (with resample)",
    "up_block_types": "attention_levels (with resample)",
    "norm_num_groups": "norm_num_groups",
    "attention_head_dim": "heads or head_size",
    "heads": "heads",
    "transformer_layers_per_block": "transformer_depth",
    "use_linear_projection": "linear_projection",
    "resnet_time_scale_shift": "time",
    "downsample_type": "resample",
    "upsample_type": "resample",
    "time_embedding_dim": "time_channels",
}
_GIVEN = (  # keys that the run decides; the others, such as norm_eps, stay those of the trained network
    *("sample_size", "in_channels", "out_channels", "dropout", "cross_attention_dim", "time_cond_proj_dim"),
    *("class_embed_type", "projection_class_embeddings_input_dim", "num_class_embeds"),
)
_OF_TOKENS = re.compile(r"\.attn2\.to_[kv]\.weight$")
OF_SCALE = "time_embedding.cond_proj.weight"  # of the guidance scale; begins at 0
_OF_LEVEL = "class_embedding.linear_"  # of a picture's noise level, or of a vector beside tokens
_LAST_OF_LEVEL = f"{_OF_LEVEL}2."  # begins at 0
_OF_INPUT = "conv_in.weight"  # whose further channels, of maps, begin at 0


def misfits(given: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Return a phrase on the tensors of two networks that do not fit, the first three by name; None: all fit.

    Args:
        given: shape of each tensor that there is, by name.
        expected: shape of each tensor that is expected, by name.
    """
    names = sorted(name for name in given.keys() | expected.keys() if given.get(name) != expected.get(name))
    if not names:
        return None
    texts = [
        f"{name} is {given.get(name, 'missing')} there, expected {expected.get(name, 'nothing')}"
        for name in names[:_NAMED]
    ]
    return "; ".join([*texts, *([f"and {len(names) - _NAMED} more tensors"] if len(names) > _NAMED else [])])


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a network's state_dict, by name."""
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def check_architecture(where: str, trained: Any, expected: Any) -> None:
    """Check that a trained U-Net has the class, levels and blocks of the network that a run's config describes.

    Args:
        where: the trained model as messages call it, such as "init runs/ldm".
        trained: the trained U-Net.
        expected: the U-Net that the config describes; it may be on the meta device.

    Raises:
        UserError: they differ; the message names the first difference and the config's key.
    """
    old, new = (type(network).__name__ for network in (trained, expected))
    if old != new:
        tokens = "UNet2DConditionModel" in (old, new)
        key = "condition, which says whether there are tokens" if tokens else "unet.equal_heads"
        raise UserError(f"{where} has a {old}, but this run's config asks for a {new}; expected another {key}")
    check_config(where, trained, expected, {key: f"unet.{name}" for key, name in _KEYS.items()})
    vector = "a vector (of classes, text, an image or sizes)"
    for what, takes in (("the noise level of a picture", takes_level), (vector, _takes_vector)):
        if takes(trained) and not takes(expected):
            raise UserError(f"{where} takes {what}, but this run's condition gives none")


def _takes_vector(unet: Any) -> bool:
    return unet.class_embedding is not None and not takes_level(unet)


def check_config(where: str, trained: Any, expected: Any, keys: Mapping[str, str]) -> None:
    """Check that a trained network has the config of the one that a run's config describes.

    Args:
        where: the trained model as messages call it, such as "init runs/ldm".
        trained: the trained network, of diffusers.
        expected: the network that the config describes; it may be on the meta device.
        keys: key of diffusers' config -> key of the run's config, in the order of the checks.

    Raises:
        UserError: a value differs; the message names the first one that does.
    """
    for key, name in keys.items():
        old, new = (_plain(network, key) for network in (trained, expected))
        if old != new:
            raise UserError(
                f"{where}: its {type(trained).__name__} has {key} {_text(old)}, but this run's {name} gives "
                f"{_text(new)}; expected the same"
            )


def _plain(network: Any, key: str) -> Any:
    """Return a config's value as diffusers uses it: one number for all levels where they are equal, else a tuple."""
    value, levels = network.config.get(key), len(network.config["block_out_channels"])
    value = tuple(value) if isinstance(value, list | tuple) else value
    if key == "time_embedding_dim":
        return value or 4 * network.config["block_out_channels"][0]
    if key == "vq_embed_dim":
        return value or network.config["latent_channels"]
    if key == "block_out_channels" or not isinstance(value, tuple) or {*map(type, value)} != {int}:
        return value
    return value[0] if len({*value}) == 1 and len(value) == levels else value


def _text(value: Any) -> str:
    return str([*value]) if isinstance(value, tuple) else str(value)


def grown_config(trained: Any, expected: Any) -> dict[str, Any]:
    """Return the config of a trained U-Net with inputs, outputs and dropout as those of the network `expected`."""
    given = {key: expected.config.get(key) for key in _GIVEN if key in trained.config}
    return {**public_config(trained), **given}


def public_config(network: Any) -> dict[str, Any]:
    """Return the constructor arguments of a diffusers network, as JSON values, without release and paths."""
    values = {key: value for key, value in network.config.items() if not key.startswith("_")}
    return {key: [*value] if isinstance(value, tuple) else value for key, value in values.items()}


def check_growth(where: str, trained: Any, expected: Any, *, learned: bool = False, maps: int = 0) -> None:
    """Check that `grow` can turn a trained U-Net into the network that a run needs, without reading more.

    Args:
        where: the trained model as messages call it, such as "init runs/ldm".
        trained: the trained U-Net.
        expected: the U-Net that the run's config describes; it may be on the meta device.
        learned: whether half of the output channels of `expected` are of a learned variance.
        maps: how many of the input channels of `expected` are maps of a picture condition.

    Raises:
        UserError: levels or blocks differ, or tensors are missing, too many or of another shape; the message names the
            first.
    """
    check_architecture(where, trained, expected)
    with torch.device("meta"):
        new = type(trained).from_config(grown_config(trained, expected))
    old, needed = shapes(trained), shapes(new)
    grows = {name for name in needed if _grows(name, old.get(name), needed[name], learned, maps)}
    rest = [{name: shape for name, shape in some.items() if name not in grows} for some in (old, needed)]
    if (phrase := misfits(*rest)) is not None:
        raise UserError(f"{where} does not fit this run's unet: {phrase}")


def _grows(name: str, old: Sequence[int] | None, new: Sequence[int], learned: bool, maps: int) -> bool:
    """Return whether `grow` covers that a tensor of shape `old` (None: missing) becomes one of shape `new`.

    `learned`: whether half of the new output channels are of a learned variance; `maps`: how many of the new input
    channels are maps.
    """
    if name == OF_SCALE or name.startswith(_OF_LEVEL):
        return old is None
    if old is None or [*old] == [*new]:
        return False
    if name == _OF_INPUT:
        return [*new] == [old[0], old[1] + maps, *old[2:]]
    if name in ("conv_out.weight", "conv_out.bias"):
        return learned and new[0] == 2 * old[0] and [*new[1:]] == [*old[1:]]
    return _OF_TOKENS.search(name) is not None and new[0] == old[0]


@torch.no_grad()
def grow(where: str, trained: Any, expected: Any, *, learned: bool = False, maps: int = 0) -> tuple[Any, list[str]]:
    """Return a new U-Net with the weights of a trained one, and a sentence for the log on each kind of growth.

    Args:
        where: the trained model as messages call it, such as "init runs/ldm".
        trained: the trained U-Net, which stays as it is.
        expected: the U-Net that the run's config describes; it may be on the meta device.
        learned: whether half of the output channels of `expected` are of a learned variance.
        maps: how many of the input channels of `expected` are maps of a picture condition.

    Raises:
        UserError: the networks do not fit, see `check_growth`.
    """
    check_growth(where, trained, expected, learned=learned, maps=maps)
    new: Any = type(trained).from_config(grown_config(trained, expected))
    old, weights = trained.state_dict(), new.state_dict()
    for name, value in weights.items():
        if name not in old:
            value.mul_(0 if name == OF_SCALE or name.startswith(_LAST_OF_LEVEL) else 1)
        elif name == _OF_INPUT and value.shape != old[name].shape:
            value.zero_()[:, : old[name].shape[1]].copy_(old[name])
        elif value.shape == old[name].shape:
            value.copy_(old[name])
        elif not _OF_TOKENS.search(name):  # whose new weights stay random
            value.zero_()[: len(old[name])].copy_(old[name])
    return new, _sentences(where, old, weights)


def _sentences(where: str, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> list[str]:
    """Return a sentence on each kind of growth between two state_dicts."""
    sentences, outputs = [], [len(weights["conv_out.bias"]) for weights in (old, new)]
    if outputs[0] != outputs[1]:
        sentences.append(
            f"{where}: conv_out grows from {outputs[0]} to {outputs[1]} channels, for the variance; those are 0"
        )
    inputs = [weights[_OF_INPUT].shape[1] for weights in (old, new)]
    if inputs[0] != inputs[1]:
        sentences.append(
            f"{where}: conv_in grows from {inputs[0]} to {inputs[1]} channels, for the maps of pictures; those are 0"
        )
    if any(name.startswith(_OF_LEVEL) and name not in old for name in new):
        sentences.append(f"{where}: class_embedding, of a noise level or a vector, is new; its last layer is 0")
    if OF_SCALE in new and OF_SCALE not in old:
        sentences.append(f"{where}: the guidance scale is a new input; its weights are 0")
    tokens = [name for name in new if _OF_TOKENS.search(name) and new[name].shape != old[name].shape]
    if tokens:
        widths = [weights[tokens[0]].shape[1] for weights in (old, new)]
        sentences.append(
            f"{where}: tokens are {widths[1]} channels wide, not {widths[0]}: the {len(tokens)} weights attn2.to_k and "
            "attn2.to_v of cross-attention are new and random"
        )
    return sentences
