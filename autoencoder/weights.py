"""Read pretrained weights from a file or an installed Python package; no code in a file is run."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from autoencoder.base import AutoencoderError

SETTING = "perceptual.weights"  # key of a run's config that names weights


def read_weights(weights: str, setting: str = SETTING) -> Mapping[str, Tensor]:
    """Read a state dict; no code in the file is run.

    Args:
        weights: path of a .safetensors or .pth file; or "package:<name>", for the only such file in a Python package.
        setting: the key or flag that named the weights, for messages.

    Raises:
        AutoencoderError: there is no such file or package, or the file cannot be read.
    """
    name = weights.removeprefix("package:")
    path = _in_package(name, setting) if weights.startswith("package:") else Path(weights).expanduser()
    if not path.is_file():
        raise AutoencoderError(f"{setting} names {weights!r}, but there is no such file.")
    from safetensors.torch import load_file

    try:
        return load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # of many unrelated classes: torn files, other formats, pickled code
        first = str(error).partition("\n")[0].partition(". ")[0]
        raise AutoencoderError(f"The weights in {path} cannot be read, no code in them is run: {first:.200}") from None


def _in_package(name: str, setting: str) -> Path:
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        pip = name.replace("_", "-")
        raise AutoencoderError(f"{setting} asks for the Python package {name}: install it (pip install {pip}).")
    root = Path(spec.submodule_search_locations[0])
    files = sorted(p for end in ("pth", "safetensors") for p in root.rglob(f"*.{end}"))
    if len(files) != 1:
        raise AutoencoderError(f"The package {name} holds {len(files)} weight files where one was expected.")
    return files[0]
