"""Metadata that says what made a picture: ldm_kit's release, the models' hashes, and the precision of sampling."""

import hashlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from ldm_kit.models.folder import model_folder
from ldm_kit.models.lora_paths import LoraPath
from ldm_kit.nets.execution import DTYPES
from ldm_kit.training.checkpoint import MANIFEST, sha256_all


def provenance(
    model: Path, precision: torch.dtype | None = None, lora: Sequence[LoraPath] = (), **guides: Path | None
) -> dict[str, str]:
    """Return metadata for a PNG: the models, release and precision that made the picture, without local paths.

    Args:
        model: a saved model's folder, or a run's.
        precision: dtype of autocast while sampling; None: no autocast.
        lora: LoRA files that were merged into the model.
        guides: folder of each guide by its flag's name, such as `classifier`; None: the guide was not used.

    Returns:
        `Software` (ldm_kit's release), `precision` (no, bf16 or fp16), and under "model" and each guide's name the
        sha256 (hex) of that model's manifest, if it has one. A manifest lists the sha256 of each file of a model. And
        `lora`, the sha256 and the scale of each LoRA file, if there are any.
    """
    models = {"model": model, **guides}
    hashes = {name: manifest_hash(folder) for name, folder in models.items() if folder is not None}
    names = {dtype: name for name, dtype in DTYPES.items()}
    version: str = import_module("ldm_kit").__version__  # an import of the public API from below would be a cycle
    precision_name = "no" if precision is None else names[precision]
    recorded = {name: digest for name, digest in hashes.items() if digest is not None}
    if lora:
        recorded["lora"] = ", ".join(f"{sha256_all([path.file])[0]}:{path.scale:g}" for path in lora)
    return {"Software": f"ldm_kit {version}", "precision": precision_name, **recorded}


def manifest_hash(model: Path) -> str | None:
    """Return the sha256 (hex) of a saved model's manifest.json, which lists the sha256 of each of its files.

    Args:
        model: a saved model's folder, or a run's.

    Returns:
        The digest, which identifies the model; None where the folder has no manifest.
    """
    path = model_folder(model) / MANIFEST
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
