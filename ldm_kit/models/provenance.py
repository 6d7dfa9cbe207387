"""What made a picture: the kit's release, the model by its hash, and the precision that it was computed in."""

import hashlib
from importlib import import_module
from pathlib import Path

import torch

from ldm_kit.models.folder import model_folder
from ldm_kit.nets.execution import DTYPES
from ldm_kit.training.checkpoint import MANIFEST


def provenance(model: Path, precision: torch.dtype | None = None, **guides: Path | None) -> dict[str, str]:
    """Return the text for a PNG that says what made it, without a path.

    Args:
        model: a saved model's folder, or a run's.
        precision: of autocast while sampling; None: float32 throughout.
        guides: folders of the models that guided, by the name of their flag; None: there was none.

    Returns:
        `Software`, `precision` (no, bf16 or fp16), and for each model that has a manifest the sha256 of that file, in
        which those of all its files stand.
    """
    models = {"model": model, **guides}
    hashes = {name: manifest_hash(folder) for name, folder in models.items() if folder is not None}
    names = {dtype: name for name, dtype in DTYPES.items()}
    version: str = import_module("ldm_kit").__version__  # an import of the public API from below would be a cycle
    precision_name = "no" if precision is None else names[precision]
    recorded = {name: digest for name, digest in hashes.items() if digest is not None}
    return {"Software": f"ldm_kit {version}", "precision": precision_name, **recorded}


def manifest_hash(model: Path) -> str | None:
    """Return the sha256 of the manifest of a saved model's folder, or a run's; None where there is none."""
    path = model_folder(model) / MANIFEST
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
