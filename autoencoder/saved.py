"""Loading autoencoders that `train_ae.py` or diffusers wrote. Only safetensors, only local files."""

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel

from autoencoder.base import AutoencoderError, check_config

_NAMES = ("vae", "vqvae")  # of the component in a whole model
CLASSES = MappingProxyType({"AutoencoderKL": AutoencoderKL, "VQModel": VQModel})


def load(folder: Path | str) -> AutoencoderKL | VQModel:
    """Load a frozen autoencoder from its own folder, or from the folder of a run or of a whole model.

    Raises:
        AutoencoderError: there is none, it is of another class, or its weights cannot be read or are incomplete.
    """
    return _open(find(Path(folder)))


def find(folder: Path) -> Path:
    """Return the folder that holds an autoencoder's config and weights, as `load` takes it.

    Raises:
        AutoencoderError: there is none.
    """
    for candidate in (folder, folder / "model", *(f / name for f in (folder, folder / "model") for name in _NAMES)):
        if (candidate / "config.json").is_file():
            return candidate
    raise AutoencoderError(
        f"There is no autoencoder in {folder}: expected a folder with the config.json of train_ae.py or diffusers."
    )


def _open(folder: Path) -> AutoencoderKL | VQModel:
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
    return check_config(vae, f"{folder}/config.json").eval().requires_grad_(False)
