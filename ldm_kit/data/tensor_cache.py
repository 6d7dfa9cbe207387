"""What a frozen encoder says of captions, computed once: tensors on disk, named by all that they depend on."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ldm_kit.data import atomic


def key_of(*parts: Any) -> str:
    """Sha256 hex of plain values (numbers, strings, lists and mappings of them)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cached(folder: Path, key: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that `make` gives, from `folder` if they were made before under this key; damaged ones are remade."""
    path = folder / f"{key[:32]}.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        made = {name: value.contiguous() for name, value in make().items()}
    atomic.write(path, save(made))
    return made
