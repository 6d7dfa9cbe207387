"""Load autoencoders that `train_ae.py` or diffusers saved, from local safetensors files only."""

import json
import math
from pathlib import Path
from types import MappingProxyType
from typing import Any

from autoencoder.base import AutoencoderError, Vae
from autoencoder.classes import KINDS, FirstStage

_NAMES = ("vae", "vqvae")  # names of the autoencoder's folder inside a diffusers pipeline's
CLASSES = MappingProxyType({kind.__name__: kind for kind in KINDS})


def load(folder: Path | str, *, whole: bool = False) -> FirstStage:
    """Load a saved autoencoder, without gradients and in evaluation mode.

    Args:
        folder: the autoencoder's own folder, or that of a training run or of a latent diffusion model that contains it.
        whole: whether tensors of which the autoencoder has no use are an error too.

    Raises:
        AutoencoderError: `folder` has no autoencoder, or one of a class that is not in `CLASSES`, or its
            weights are unreadable or incomplete.
    """
    return _open(find(Path(folder)), whole)


def find(folder: Path) -> Path:
    """Return the folder with the autoencoder's config.json: `folder` itself or, in a run or a model, one below it.

    Raises:
        AutoencoderError: there is none.
    """
    for candidate in (folder, folder / "model", *(f / name for f in (folder, folder / "model") for name in _NAMES)):
        if (candidate / "config.json").is_file():
            return candidate
    raise AutoencoderError(
        f"There is no autoencoder in {folder}: expected a folder with the config.json of train_ae.py or diffusers."
    )


def _open(folder: Path, whole: bool) -> FirstStage:
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError, RecursionError):
        raise AutoencoderError(f"{folder}/config.json is not readable JSON.") from None
    if not isinstance(name, str) or name not in CLASSES:
        raise AutoencoderError(f"{folder} holds a {name!s:.80}: expected one of {', '.join(CLASSES)}.")
    try:
        kind: Any = CLASSES[name]
        vae, report = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # of many unrelated classes: broken weights, unknown blocks, shapes
        message = " ".join(str(error).split())
        raise AutoencoderError(f"The autoencoder in {folder} cannot be opened: {message:.300}") from None
    if missing := sorted(report["missing_keys"]):
        raise AutoencoderError(
            f"The autoencoder in {folder} lacks {len(missing)} tensors, the first being {missing[0]}."
        )
    if whole and (unexpected := sorted(report["unexpected_keys"])):
        raise AutoencoderError(
            f"The autoencoder in {folder} has {len(unexpected)} tensors of no use: {', '.join(unexpected[:3])}."
        )
    return check_config(vae, f"{folder}/config.json").eval().requires_grad_(False)


def check_config(vae: Vae, where: str) -> Vae:
    """Check the channels and the normalisation of latents that an autoencoder's config states; return the autoencoder.

    The numbers of channels must be 1 or more. The normalisation (scaling_factor, shift_factor, latents_mean,
    latents_std) must be invertible.

    Raises:
        AutoencoderError: a value is invalid; the message names `where`, the origin of the config, and the key.
    """
    config: Any = vae.config
    channels = config.latent_channels
    for key in [key for key in ("in_channels", "out_channels", "latent_channels") if key in config]:
        if type(config.get(key)) is not int or config[key] < 1:
            raise AutoencoderError(f"{where}: {key} is {config.get(key)!r:.40}; expected a whole number of 1 or more.")
    if not _is_number(config.scaling_factor) or config.scaling_factor == 0:
        raise AutoencoderError(f"{where}: scaling_factor is {config.scaling_factor!r:.40}; expected a number but 0.")
    if not (config.get("shift_factor") is None or _is_number(config.shift_factor)):
        raise AutoencoderError(f"{where}: shift_factor is {config.shift_factor!r:.40}; expected a number, or null.")
    for key in ("latents_mean", "latents_std"):
        values = config.get(key)
        whole = values is None or (isinstance(values, list | tuple) and len(values) == channels)
        if not whole or not all(_is_number(value) and (value > 0 or key == "latents_mean") for value in values or ()):
            raise AutoencoderError(
                f"{where}: {key} is {values!r:.40}; expected {channels} numbers, deviations above 0."
            )
    return vae


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
