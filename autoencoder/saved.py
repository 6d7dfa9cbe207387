"""Load autoencoders that `train_ae.py` or diffusers saved, from local safetensors files only."""

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel

from autoencoder.base import AutoencoderError, check_config

_NAMES = ("vae", "vqvae")  # names of the autoencoder's folder inside a diffusers pipeline's
CLASSES = MappingProxyType({"AutoencoderKL": AutoencoderKL, "VQModel": VQModel})


def load(folder: Path | str, *, whole: bool = False) -> AutoencoderKL | VQModel:
    """Load a saved autoencoder, without gradients and in evaluation mode.

    Args:
        folder: the autoencoder's own folder, or that of a training run or of a latent diffusion model that contains it.
        whole: whether tensors of which the autoencoder has no use are an error too.

    Raises:
        AutoencoderError: `folder` has no autoencoder, or one that is neither an AutoencoderKL nor a VQModel, or its
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


def _open(folder: Path, whole: bool) -> AutoencoderKL | VQModel:
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
