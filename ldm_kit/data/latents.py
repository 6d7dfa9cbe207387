"""Latents computed once: posterior moments of every picture (and of its mirror image), bound to what made them.

A cache is a directory of safetensors shards. Each shard's header carries the fingerprint of the autoencoder and of the
pictures with their preprocessing, and a checksum; a cache that was made from anything else, or is damaged, is refused.
Small caches are held in memory and checked whenever they are opened. Of large ones only a batch's rows are ever read;
each shard is checked once, which is remembered (verified.json) until its size or time of change differs.
"""

import contextlib
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from ldm_kit.config import UserError
from ldm_kit.data import atomic
from ldm_kit.data.batches import chunks, flips
from ldm_kit.data.images import PictureSet, digest, to_unit
from ldm_kit.data.tensor_store import Pixels, Rows, Stored, locate

Moments = tuple[Tensor, Tensor]  # mean, logvar
Encode = Callable[[Tensor], Moments]  # pictures [B, C, R, R] -> [B, Z, h, w] each
SHARD = 16384  # pictures a shard
IN_MEMORY = 2 * 2**30  # bytes; what is larger stays on disk
VERIFIED = "verified.json"
FORMAT = "2"


@dataclass(frozen=True, eq=False)
class Latents:
    """Moments of N pictures: mean and logvar [N, V, Z, h, w], where V counts the views (plain, mirrored).

    They are tensors or, for large sets, are indexed as tensors are and read when they are.
    """

    mean: Rows
    logvar: Rows
    fingerprint: str  # of all that they depend on

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, h, w) of one latent."""
        z, h, w = self.mean.shape[2:]
        return z, h, w


@dataclass(frozen=True, eq=False)
class LatentBatches:
    """Cached latents with their conditions as a source of training batches."""

    latents: Latents
    inputs: Mapping[str, Tensor]  # [N, ...] each: what the conditioner prepared
    raw: Sequence[str | int]  # ... out of these captions or labels
    seed: int

    @property
    def fingerprint(self) -> str:
        """Of latents, and of captions or labels."""
        return digest([self.latents.fingerprint, *map(str, self.raw)])

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> dict[str, object]:
        """{"mean", "logvar": [B, Z, h, w] float32, "inputs": {...}, "position": [B]}; a mirrored view by coin."""
        position, index = torch.tensor(places).unbind(1)
        mirrored = self.latents.mean.shape[1] > 1
        view = flips(self.seed, position).long() if mirrored else torch.zeros_like(index)
        return {
            "mean": self.latents.mean[index, view].float(),
            "logvar": self.latents.logvar[index, view].float(),
            "inputs": {name: value[index] for name, value in self.inputs.items()},
            "position": position,
        }


def fingerprint(weights: nn.Module, pictures: PictureSet, flip: bool, settings: str = "") -> str:
    """Sha256 of all that latents depend on: an autoencoder's weights and settings, pictures, views, the format."""
    return digest([FORMAT, pictures.fingerprint, "flip" if flip else "plain", settings, weights_digest(weights)])


def weights_digest(weights: nn.Module) -> str:
    """Sha256 hex over all tensors of a module: names, types, shapes and bytes; the same wherever it is loaded."""
    state = hashlib.sha256()
    for name, value in sorted(weights.state_dict().items()):
        state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + _bytes(value))
    return state.hexdigest()


def cached(folder: Path, pictures: PictureSet, encode: Encode, key: str, *, flip: bool, batch: int = 64) -> Latents:
    """The latents in `folder`, after computing the shards that are not there yet.

    Args:
        folder: the cache's own directory.
        pictures: what to encode.
        encode: the first stage, called without gradient.
        key: what `fingerprint` says of this autoencoder and these pictures.
        flip: whether mirrored views are cached too.
        batch: pictures at a time.

    Raises:
        UserError: the folder holds latents of another autoencoder, other pictures or other preprocessing, or damaged
            ones, or cannot be written to.
    """
    parts = {
        folder / f"latents-{number:05d}.safetensors": range(start, min(start + SHARD, len(pictures)))
        for number, start in enumerate(range(0, len(pictures), SHARD))
    }
    found = [path for path in parts if path.exists()]
    for path in found:
        _about(path, key)
    with tqdm(total=len(pictures), desc="latents", leave=False, disable=len(found) == len(parts)) as bar:
        for path, indices in parts.items():
            if path not in found:
                encoded = _encoded(pictures, indices, encode, flip, batch)
                _write(path, _cat([_counted(moments, bar.update) for moments in encoded]), key)
    if sum(path.stat().st_size for path in parts) <= IN_MEMORY:
        return Latents(*_cat([_read(path, key) for path in parts]), key)
    _verify_once(folder, list(parts), key)
    mean, logvar = (Stored([locate(path, name) for path in parts]) for name in ("mean", "logvar"))
    return Latents(mean, logvar, key)


def _cat(parts: Sequence[Moments]) -> Moments:
    mean, logvar = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return mean, logvar


def _counted(moments: Moments, count: Callable[[int], object]) -> Moments:
    count(len(moments[0]))
    return moments


def _write(path: Path, moments: Moments, key: str) -> None:
    """Under a name of this process's own first; who else fills the same cache writes the same."""
    mean, logvar = moments
    about = {"fingerprint": key, "checksum": _checksum(moments)}
    try:
        atomic.write(path, save({"mean": mean, "logvar": logvar}, metadata=about))  # with the umask's mode
    except OSError as error:
        raise UserError(f"cannot write the latents' cache {path.parent}: {error.strerror}") from None


def _about(path: Path, key: str) -> str:
    """The checksum in a shard's header; raises UserError unless it belongs to `key`."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and it is made anew") from None
    if about.get("fingerprint") != key:
        raise UserError(
            f"the latents in {path.parent} are stale: another autoencoder, other pictures or other preprocessing made"
            " them; delete that folder and they are made anew"
        )
    return about.get("checksum", "")


def _read(path: Path, key: str) -> Moments:
    checksum = _about(path, key)
    try:
        with safe_open(path, framework="pt") as file:
            moments = file.get_tensor("mean"), file.get_tensor("logvar")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and it is made anew") from None
    _compare(path, checksum, _checksum(moments))
    return moments


def _compare(path: Path, expected: str, found: str) -> None:
    if expected != found:
        raise UserError(f"{path} is damaged (its checksum differs); delete it and it is made anew")


def _verify_once(folder: Path, paths: Sequence[Path], key: str) -> None:
    """Check the contents of every shard that has not been checked since it last changed, a chunk at a time."""
    known = _verified(folder)
    for path in tqdm(paths, "checking latents", leave=False, disable=None):
        stat = path.stat()
        checksum = _about(path, key)
        stamp = [stat.st_size, stat.st_mtime_ns, checksum]
        if known.get(path.name) != stamp:
            _compare(path, checksum, _streamed_checksum(path))
            known[path.name] = stamp
            _remember(folder, known)


def _verified(folder: Path) -> dict[str, Any]:
    try:
        known = json.loads((folder / VERIFIED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(folder: Path, known: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a cache that may only be read is checked at every start
        atomic.write(folder / VERIFIED, json.dumps(known).encode())


def _streamed_checksum(path: Path) -> str:
    """What `_checksum` says of a shard's moments, without holding them."""
    state = 0
    for name in ("mean", "logvar"):
        try:
            piece = locate(path, name)
        except KeyError:
            raise UserError(f"{path} is damaged (it has no {name}); delete it and it is made anew") from None
        left = torch.Size(piece.shape).numel() * piece.dtype.itemsize
        with path.open("rb") as file:
            file.seek(piece.offset)
            while left and (chunk := file.read(min(left, 2**22))):
                state, left = zlib.crc32(chunk, state), left - len(chunk)
    return f"{state:08x}"


def _checksum(moments: Moments) -> str:
    return f"{zlib.crc32(_bytes(moments[1]), zlib.crc32(_bytes(moments[0]))):08x}"


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@torch.no_grad()
def _encoded(pictures: PictureSet, indices: range, encode: Encode, flip: bool, batch: int) -> Iterator[Moments]:
    for start in range(indices.start, indices.stop, batch):
        x = to_unit(pictures.pictures(range(start, min(start + batch, indices.stop))))
        views = [encode(view) for view in ([x, x.flip(3)] if flip else [x])]
        mean, logvar = (torch.stack(moments, dim=1).to(torch.float16).cpu() for moments in zip(*views, strict=True))
        yield mean, logvar


def pixels(pictures: PictureSet, *, flip: bool = False, batch: int = 1024) -> Latents:
    """Pictures (and their mirror images) as their own latents: first stage = identity, with a point posterior.

    Sets that would not fit IN_MEMORY as float32 are decoded whenever they are asked for.
    """
    lazy = Pixels(pictures, flip)
    key = f"{pictures.fingerprint} flip" if flip else pictures.fingerprint
    small = torch.Size(lazy.shape).numel() * 4 <= IN_MEMORY
    mean = torch.cat([lazy[torch.tensor(part)] for part in chunks(pictures, batch)]) if small else lazy
    return Latents(mean, torch.tensor(-30.0).expand(*lazy.shape), key)
