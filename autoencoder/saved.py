"""Loading autoencoders that `train_ae.py` or diffusers wrote. Only safetensors, only local files."""

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel

from autoencoder.base import AutoencoderError

CLASSES = MappingProxyType({"AutoencoderKL": AutoencoderKL, "VQModel": VQModel})


def load(folder: Path | str) -> AutoencoderKL | VQModel:
    """Load a frozen autoencoder from its own folder, or from the folder of a run or of a whole model.

    Raises:
        AutoencoderError: there is none, it is of another class, or its weights cannot be read or are incomplete.
    """
    folder = Path(folder)
    for candidate in (folder, folder / "model", folder / "vae", folder / "vqvae", folder / "model" / "vae"):
        if (candidate / "config.json").is_file():
            return _open(candidate)
    raise AutoencoderError(
        f"There is no autoencoder in {folder}: expected a folder with the config.json of train_ae.py or diffusers."
    )


def _open(folder: Path) -> AutoencoderKL | VQModel:
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError):
        raise AutoencoderError(f"{folder}/config.json is not readable JSON.") from None
    if name not in CLASSES:
        raise AutoencoderError(f"{folder} holds a {name}: expected one of {', '.join(CLASSES)}.")
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
    return vae.eval().requires_grad_(False)
