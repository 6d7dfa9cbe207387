"""Shards of a latent cache: safetensors files with the moments (mean, log-variance) of an autoencoder's posterior.

The header of each file has a checksum of the moments, and a key: a hash of all that the moments depend on.
"""

import contextlib
import json
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import UserError
from ldm_kit.data import atomic, peers
from ldm_kit.data.tensor_store import locate

# Mean and log-variance of the autoencoder's posterior, [N, V, Z, h, w] each: N pictures in V views (1: as they are;
# 2: also mirrored), latents of Z channels, height h and width w.
Moments = tuple[Tensor, Tensor]
VERIFIED = "verified.json"  # file in the cache's folder that lists the shards already checked
CHUNK = 2**22  # bytes of a shard read at once while checking


def write_shard(path: Path, moments: Moments, key: str, replaced: Mapping[int, int] | None = None) -> None:
    """Write a shard (one file) of a cache of latents; a failed write leaves no partial file.

    Args:
        path: the shard's file.
        moments: mean and log-variance, [N, V, Z, h, w] each, of N pictures in V views (1: plain; 2: also mirrored);
            latents have Z channels.
        key: hash of all that the moments depend on (autoencoder, pictures, settings); it is written into the header.
        replaced: {index of a broken picture: index of the picture that was encoded in its place}; None: no picture is
            broken.

    Raises:
        UserError: the cache's folder cannot be written to.
    """
    metadata = {"fingerprint": key, "checksum": _checksum(moments)}
    if replaced:
        metadata["replaced"] = json.dumps(replaced)
    mean, logvar = moments
    try:
        atomic.write(path, save({"mean": mean, "logvar": logvar}, metadata=metadata))  # with the umask's permissions
    except OSError as error:
        raise UserError(f"cannot write the latents' cache {path.parent}: {error.strerror}") from None


def check_key(path: Path, key: str) -> str:
    """Check that the header of a shard of cached latents has the key `key`, and return the checksum in the header.

    The key is a hash of all that the latents depend on; the checksum is that of the latents' posterior moments.

    Raises:
        UserError: the header is damaged, or has another key.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from None
    if metadata.get("fingerprint") != key:
        raise UserError(
            f"the latents in {path.parent} are stale: another autoencoder, other pictures or other preprocessing made"
            " them; delete that folder and they are made anew"
        )
    return metadata.get("checksum", "")


def read_replaced(path: Path) -> dict[int, int]:
    """Read from a shard's (valid) header which pictures were broken, and which were encoded in their place.

    Returns:
        {index of a broken picture: index of the picture that was encoded in its place}.
    """
    with safe_open(path, framework="pt") as file:
        replaced = json.loads((file.metadata() or {}).get("replaced", "{}"))
    return {int(index): int(replacement) for index, replacement in replaced.items()}


def read_shard(path: Path, key: str) -> Moments:
    """Load the mean and log-variance in a shard, and check their checksum and the header's key.

    Both are [N, V, Z, h, w]: N pictures in V views (1: plain; 2: also mirrored), latents of Z channels.
    `key` is a hash of all that the latents depend on.

    Raises:
        UserError: the shard is damaged, or has another key.
    """
    checksum = check_key(path, key)
    try:
        with safe_open(path, framework="pt") as file:
            moments = file.get_tensor("mean"), file.get_tensor("logvar")
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from None
    _compare(path, checksum, _checksum(moments))
    return moments


def verify_once(folder: Path, paths: Sequence[Path], key: str) -> None:
    """Check the checksum of every shard (file of cached latents) that has changed since it was last checked.

    Each process on a machine checks a part of the shards, reading them chunk by chunk. The size, time of change and
    checksum of each checked shard are kept in the file verified.json in `folder`.

    Args:
        folder: the cache's folder.
        paths: the shards.
        key: hash of all that the latents depend on, which every shard must have in its header.

    Raises:
        UserError: a shard is damaged, or has another key.
    """
    group = peers.host()
    verified = peers.from_first(group, partial(_read_verified, folder))
    stamps: dict[str, list[Any]] = {}
    for path in paths:
        stat = path.stat()
        stamps[path.name] = [stat.st_size, stat.st_mtime_ns, check_key(path, key)]
    changed = [path for path in paths if verified.get(path.name) != stamps[path.name]]
    shares = peers.agreed(group, partial(_verify, folder, changed[group.rank :: group.size], stamps))
    if changed and group.rank == 0:
        _write_verified(folder, {**verified, **{name: stamps[name] for share in shares for name in share}})


def _verify(folder: Path, paths: Sequence[Path], stamps: Mapping[str, Sequence[Any]]) -> list[str]:
    """Check the checksums of the shards (files) `paths` in `folder`, and return the names of the shards.

    `stamps` is {shard's name: [size, time of change, expected checksum]}; a shard's entry is copied to verified.json as
    soon as the shard is checked.
    """
    for path in tqdm(paths, "checking latents", leave=False, disable=None):
        _compare(path, stamps[path.name][2], streamed_checksum(path))
        _write_verified(folder, {**_read_verified(folder), path.name: stamps[path.name]})
    return [path.name for path in paths]


def streamed_checksum(path: Path) -> str:
    """Return the CRC-32 (hex) of the tensors mean and logvar in a shard, read in chunks to save memory.

    Raises:
        UserError: the shard lacks the tensor mean or logvar.
    """
    state = 0
    for name in ("mean", "logvar"):
        try:
            tensor = locate(path, name)
        except KeyError:
            raise _damaged(path, f"it has no {name}") from None
        remaining = torch.Size(tensor.shape).numel() * tensor.dtype.itemsize
        with path.open("rb") as file:
            file.seek(tensor.offset)
            while remaining and (chunk := file.read(min(remaining, CHUNK))):
                state, remaining = zlib.crc32(chunk, state), remaining - len(chunk)
    return f"{state:08x}"


def tensor_bytes(value: Tensor) -> bytes:
    """Return the values of a tensor as bytes, in row-major order."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _checksum(moments: Moments) -> str:
    return f"{zlib.crc32(tensor_bytes(moments[1]), zlib.crc32(tensor_bytes(moments[0]))):08x}"


def _compare(path: Path, expected: str, checksum: str) -> None:
    if expected != checksum:
        raise _damaged(path, "its checksum differs")


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}); delete it and it is made anew")


def _read_verified(folder: Path) -> dict[str, Any]:
    try:
        verified = json.loads((folder / VERIFIED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return verified if isinstance(verified, dict) else {}


def _write_verified(folder: Path, verified: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # shards of a read-only cache are checked at every start
        atomic.write(folder / VERIFIED, json.dumps(verified).encode())
