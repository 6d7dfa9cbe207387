"""Cache of computed tensors (encoded captions, semantic codes), in files named by a hash of all that they depend on."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ldm_kit.data import atomic, peers


def key_of(*values: Any) -> str:
    """Return the sha256, in hex, of plain values: numbers, strings, lists and mappings of them."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def cached(folder: Path, key: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors stored under a key; if there are none, or the file is damaged, compute and store them.

    Of the processes on a machine that share work, the first computes, and the others wait for it.

    Args:
        folder: the cache's folder.
        key: `key_of` all that the tensors depend on.
        compute: returns the tensors by name.
    """
    path = folder / f"{key[:32]}.safetensors"
    made: list[dict[str, Tensor]] = []  # on the first process alone; the others wait, and read

    def make() -> None:
        made.append(_load(path) or _store(path, compute()))

    peers.from_first(peers.host(), make)
    return made[0] if made else load_file(path)


def _load(path: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def _store(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    atomic.write(path, save(tensors))
    return tensors
