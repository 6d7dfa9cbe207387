"""Cache of computed tensors (encoded captions, semantic codes): files named by a hash of all that tensors depend on."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ldm_kit.data import atomic, peers

_log = logging.getLogger("ldm_kit.data")


def key_of(*values: Any) -> str:
    """Return the sha256 (hex) of plain values (numbers, strings, lists, mappings), for use as a key of `cached`."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def cached(folder: Path, key: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors stored under `key`, by name; compute and store them if there are none or the file is damaged.

    Of the processes of a run on one machine, the first computes the tensors, and the others wait and read them. Where
    the folder cannot be written to, a warning says so, and every process computes the tensors.

    Args:
        folder: the cache's folder.
        key: `key_of` of all that the tensors depend on.
        compute: function that computes the tensors, and returns them by name.
    """
    path = folder / f"{key[:32]}.safetensors"
    return peers.first_alone(lambda: _load(path) or _store(path, compute()))


def cached_by_all(folder: Path, key: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors stored under `key` as `cached` does, but let all processes of a run compute missing ones.

    Args:
        folder: the cache's folder.
        key: `key_of` of all that the tensors depend on.
        compute: function that computes the tensors, and returns the same ones, by name, on every process; it may share
            the work (`peers.divided`).
    """
    path = folder / f"{key[:32]}.safetensors"
    stored = _load(path)
    if all(peers.agreed(peers.everyone(), lambda: stored is not None)):
        assert stored is not None
        return stored
    tensors = compute()
    peers.from_first(peers.host(), lambda: _store(path, tensors) and None)
    return dict(tensors)


def _load(path: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def _store(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    try:
        atomic.write(path, save(tensors))
    except OSError as error:
        reason = error.strerror or error
        _log.warning("cannot keep tensors in %s (%s); they will be computed again", path.parent, reason)
    return tensors
