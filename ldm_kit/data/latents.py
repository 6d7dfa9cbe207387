"""Latents computed once: posterior moments of every picture (and of its mirror image), bound to what made them.

A cache is a directory of safetensors shards. Each shard's header carries the fingerprint of the autoencoder's weights
and of the pictures with their preprocessing; a cache that was made from anything else is refused.
"""

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from ldm_kit.config import UserError
from ldm_kit.data.batches import chunks, flips
from ldm_kit.data.images import PictureSet, to_unit

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]  # pictures [B, C, R, R] -> mean, logvar [B, Z, h, w]
SHARD = 16384  # pictures a shard
FORMAT = "1"


@dataclass(frozen=True, eq=False)
class Latents:
    """Moments of N pictures: mean and logvar [N, V, Z, h, w], where V counts the views (plain, mirrored)."""

    mean: Tensor
    logvar: Tensor

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
    seed: int

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


def fingerprint(weights: nn.Module | None, pictures: PictureSet, flip: bool) -> str:
    """Sha256 of all that latents depend on: the autoencoder's weights, the pictures, their views, the format."""
    digest = hashlib.sha256(f"{FORMAT} {pictures.fingerprint} {'flip' if flip else 'plain'}".encode())
    for name, value in sorted((weights.state_dict() if weights is not None else {}).items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def cached(folder: Path, pictures: PictureSet, encode: Encode, key: str, *, flip: bool, batch: int = 64) -> Latents:
    """The latents in `folder`, computed into it first if it is empty.

    Args:
        folder: the cache's own directory.
        pictures: what to encode.
        encode: the first stage, called without gradient.
        key: what `fingerprint` says of this autoencoder and these pictures.
        flip: whether mirrored views are cached too.
        batch: pictures at a time.

    Raises:
        UserError: the folder holds latents of another autoencoder, other pictures or other preprocessing.
    """
    if not list(folder.glob("*.safetensors")):
        fill(folder, pictures, encode, key, flip=flip, batch=batch)
    return open_cache(folder, key)


def fill(folder: Path, pictures: PictureSet, encode: Encode, key: str, *, flip: bool, batch: int = 64) -> None:
    """Compute and write all shards, each under a temporary name first."""
    folder.mkdir(parents=True, exist_ok=True)
    total = -(-len(pictures) // SHARD)
    with tqdm(total=len(pictures), desc="latents", unit="picture", leave=False) as bar:
        for shard in range(total):
            indices = range(shard * SHARD, min((shard + 1) * SHARD, len(pictures)))
            parts = list(_encoded(pictures, indices, encode, flip, batch, bar))
            tensors = {name: torch.cat([p[i] for p in parts]) for i, name in enumerate(("mean", "logvar"))}
            draft = folder / f".{uuid.uuid4().hex}.tmp"
            save_file(tensors, draft, metadata={"fingerprint": key, "shards": str(total)})
            os.replace(draft, folder / f"latents-{shard:05d}.safetensors")


def open_cache(folder: Path, key: str) -> Latents:
    """Read all shards into memory after checking what they were made from."""
    paths = sorted(folder.glob("latents-*.safetensors"))
    shards = [_read(path, key, len(paths)) for path in paths]
    return Latents(*(torch.cat(parts) for parts in zip(*shards, strict=True)))


def _read(path: Path, key: str, found: int) -> tuple[Tensor, Tensor]:
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        if about.get("fingerprint") != key:
            raise UserError(
                f"the latents in {path.parent} are stale: another autoencoder, other pictures or other preprocessing made "
                "them; delete that folder and they are made anew"
            )
        if int(about["shards"]) != found:
            raise UserError(
                f"the latents in {path.parent} are incomplete: {found} of {about['shards']} shards; delete it"
            )
        return file.get_tensor("mean"), file.get_tensor("logvar")


@torch.no_grad()
def _encoded(
    pictures: PictureSet, indices: range, encode: Encode, flip: bool, batch: int, bar: "tqdm[None]"
) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(indices.start, indices.stop, batch):
        x = to_unit(pictures.pictures(range(start, min(start + batch, indices.stop))))
        views = [encode(view) for view in ([x, x.flip(3)] if flip else [x])]
        mean, logvar = (torch.stack(moments, dim=1).to(torch.float16).cpu() for moments in zip(*views, strict=True))
        bar.update(len(x))
        yield mean, logvar


def pixels(pictures: PictureSet, batch: int = 1024) -> Latents:
    """Pictures as their own latents (first stage = identity), with a point posterior."""
    mean = torch.cat([to_unit(pictures.pictures(part)) for part in chunks(pictures, batch)])[:, None]
    return Latents(mean, torch.full_like(mean, -30.0))
