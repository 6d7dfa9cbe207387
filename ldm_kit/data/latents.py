"""Cached latents: the posterior moments of every picture (and of its mirror image), computed once before training.

A cache is a folder of safetensors shards. The header of each shard has a checksum, and the fingerprint of all that the
latents depend on (the autoencoder, the pictures and their preprocessing); a cache with another fingerprint, or a
damaged one, is refused. Caches of at most IN_MEMORY bytes are loaded into memory, and checked whenever they are opened.
Larger caches stay on disk, and only the rows of a batch are read; each of their shards is checked once, and again when
the size or the time of change of its file differs.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldm_kit.data import peers
from ldm_kit.data.batches import chunks, flips
from ldm_kit.data.caption_rows import CaptionRows
from ldm_kit.data.images import InMemory, PictureSet, digest, to_unit
from ldm_kit.data.latent_shards import (
    Moments,
    check_key,
    read_replaced,
    read_shard,
    tensor_bytes,
    verify_once,
    write_shard,
)
from ldm_kit.data.readable import replacements, sources
from ldm_kit.data.tensor_store import PixelTable, StoredTable, TensorTable, locate
from ldm_kit.data.value_range import pixel_dtype, value_range_of
from ldm_kit.memory import Batch, BatchSize

Encode = Callable[[Tensor], Moments]  # pictures [B, C, R, R] in [-1, 1] -> mean and log-variance, [B, Z, h, w] each
SHARD = 16384  # pictures in a shard
IN_MEMORY = 2 * 2**30  # most bytes of a cache that is loaded into memory; a larger one stays on disk
PIXELS = 2**29  # most bytes of a set of pictures that is held decoded; a larger one is decoded on demand
FORMAT = "2"  # version of the cache's format, part of the fingerprint


@dataclass(frozen=True, eq=False)
class Latents:
    """Mean and log-variance of an autoencoder's posterior q(latent | picture) for N pictures.

    Both are tensors or, for large sets, tables that are read from disk and indexed like tensors. V is the number of
    views of each picture: 1 (as it is), or 2 (also mirrored).
    """

    mean: TensorTable  # [N, V, Z, h, w]: latents of Z channels, height h and width w
    logvar: TensorTable  # [N, V, Z, h, w]
    fingerprint: str  # hash of all that mean and log-variance depend on
    replaced: Mapping[int, int] = field(default_factory=dict)  # index of a broken picture -> that of its replacement
    groups: Sequence[Tensor] = ()  # indices of the latents of each shape; empty: all have one
    sizes: Tensor | None = None  # [N, 6] sizes and crops of the pictures (`Buckets.conditions`); None: not needed
    weights: Tensor | None = None  # [N, h, w] in [0, 1], by which the loss of each element counts; None: all count

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one latent: (channels, height, width); with several shapes, that of a square of about their area."""
        z, h, w = self.mean.shape[2:]
        return z, h, w


@dataclass(frozen=True, eq=False)
class LatentBatches:
    """Training batches of N cached latents with captions or classes, as the tensors that the conditioner takes."""

    latents: Latents
    inputs: Mapping[str, Tensor]  # inputs of the conditioner by name, [N, ...] each; [M, ...] for M `captions`
    raw: Sequence[str | int]  # the captions or labels from which `inputs` were made
    seed: int  # seed of the random choice between the plain and the mirrored view
    pictures: TensorTable | None = None  # pictures [N, V, C, R, R] in [-1, 1] that condition the samples; None: none do
    key: str = ""  # hash that identifies `pictures`
    captions: CaptionRows | None = None  # rows of `inputs` of pictures with several captions; None: each has one

    @property
    def fingerprint(self) -> str:
        """Hash that identifies the training data: latents, and captions or labels."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        of_pictures = [self.key] if self.key else []
        several = () if self.captions is None else self.captions.texts()
        return digest(chain([self.latents.fingerprint], of_pictures, map(str, self.raw), several))

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, samples: Sequence[tuple[int, int]], /) -> dict[str, object]:
        """Return the batch of B samples, each given as (position in training, index of a picture).

        The position is the number of samples that training has seen before this one; a hash of it chooses between the
        plain and the mirrored view.

        Returns:
            {"mean", "logvar": mean and log-variance of the latents' posterior, float32 [B, Z, h, w] each (Z channels),
            "inputs": the conditioner's inputs {name: [B, ...]}, "position": int64 [B]}; "sizes" [B, 6] and "weight"
            [B, 1, h, w] if the latents have them, and "picture" [B, C, R, R] if there are `pictures`, of the same view.
        """
        position, index = torch.tensor(samples).unbind(1)
        has_mirrored = self.latents.mean.shape[1] > 1
        view = flips(self.seed, position).long() if has_mirrored else torch.zeros_like(index)
        mean, logvar = self.latents.mean[index, view].float(), self.latents.logvar[index, view].float()
        batch = {"mean": mean, "logvar": logvar, "inputs": self.inputs_at(index, position), "position": position}
        if self.latents.sizes is not None:
            batch["sizes"] = self.latents.sizes[sources(index, self.latents.replaced)]
        if self.latents.weights is not None:
            weight = self.latents.weights[index][:, None].float()
            batch["weight"] = torch.where(view.view(-1, 1, 1, 1).bool(), weight.flip(3), weight)
        if self.pictures is None:
            return batch
        return {**batch, "picture": self.pictures[sources(index, self.latents.replaced), view].float()}

    @property
    def groups(self) -> Sequence[Tensor]:
        """Indices of the pictures of each shape, of which a batch holds one; empty: all have one shape."""
        return self.latents.groups

    def inputs_at(self, index: Tensor, position: Tensor) -> dict[str, Tensor]:
        """Return the conditioner's inputs, {name: [B, ...]}, for the pictures with indices `index` [B].

        Of a picture with several captions, the seed and `position` [B], the number of samples that training has seen
        before, draw one. A broken picture has the inputs of the picture that replaces it. Which one does is known only
        after the pictures were read, so the latents of the batch must be read first.
        """
        shown = sources(index, self.latents.replaced)
        shown = shown if self.captions is None else self.captions.drawn(shown, position)
        return {name: value[shown] for name, value in self.inputs.items()}


def fingerprint(weights: nn.Module, pictures: PictureSet, flip: bool, settings: str = "") -> str:
    """Return the sha256 (hex) of all that the latents of pictures depend on, as the key of their cache (`cached`).

    Args:
        weights: the autoencoder, whose weights are hashed.
        pictures: the pictures that are encoded.
        flip: whether mirrored views are encoded too.
        settings: further settings of the autoencoder, as text.
    """
    return digest([FORMAT, pictures.fingerprint, "flip" if flip else "plain", settings, weights_digest(weights)])


def weights_digest(weights: nn.Module) -> str:
    """Return the sha256 (hex) of a module's state_dict: names, dtypes, shapes and values; devices do not matter."""
    state = hashlib.sha256()
    for name, value in sorted(weights.state_dict().items()):
        state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + tensor_bytes(value))
    return state.hexdigest()


def cached(folder: Path, pictures: PictureSet, encode: Encode, key: str, *, flip: bool, batch: Batch = 64) -> Latents:
    """Return the latents of pictures from a cache folder, after encoding those that are missing there.

    A file of the folder, a shard, has the latents of SHARD (16384) pictures. The processes of a run divide missing
    shards among them.

    Args:
        folder: folder that holds this cache alone.
        pictures: the pictures to encode.
        encode: maps pictures [B, C, R, R] in [-1, 1] (C channels, R x R pixels) to mean and log-variance of their
            posteriors, [B, Z, h, w] each (Z channels); it is called without gradients, once for each view.
        key: hash of the autoencoder that `encode` uses, the pictures and `flip`, as `fingerprint` returns it.
        flip: whether mirrored views are encoded too.
        batch: most pictures in one call of `encode`; halved when memory runs out.

    Raises:
        UserError: the folder holds latents with another key, or damaged ones, or cannot be written to.
    """
    shards = {
        folder / f"latents-{number:05d}.safetensors": range(start, min(start + SHARD, len(pictures)))
        for number, start in enumerate(range(0, len(pictures), SHARD))
    }
    size = BatchSize.of(batch)
    for path in shards:
        if path.exists():
            check_key(path, key)
    with tqdm(total=len(pictures), desc="latents", leave=False, disable=all(map(Path.exists, shards))) as bar:

        def make(name: str) -> None:
            path = folder / name
            moments = _concatenated(_encoded(pictures, shards[path], encode, flip, size), bar.update)
            replaced = {i: j for i, j in replacements(pictures).items() if i in shards[path]}
            write_shard(path, moments, key, replaced)

        peers.make_missing(lambda: [path.name for path in shards if not path.exists()], make)
    if sum(path.stat().st_size for path in shards) <= IN_MEMORY:
        return Latents(*_concatenated(read_shard(path, key) for path in shards), key, _replaced(shards))
    verify_once(folder, list(shards), key)
    mean, logvar = (StoredTable([locate(path, name) for path in shards]) for name in ("mean", "logvar"))
    return Latents(mean, logvar, key, _replaced(shards))


def _replaced(shards: Iterable[Path]) -> dict[int, int]:
    return dict(chain.from_iterable(read_replaced(path).items() for path in shards))


def _encoded(pictures: PictureSet, indices: range, encode: Encode, flip: bool, size: BatchSize) -> Iterator[Moments]:
    @torch.no_grad()
    def moments(batch: range) -> Moments:
        x = to_unit(pictures.pictures(indices[batch.start : batch.stop]))
        views = [encode(view) for view in ([x, x.flip(3)] if flip else [x])]
        mean, logvar = (torch.stack(values, dim=1).to(torch.float16).cpu() for values in zip(*views, strict=True))
        return mean, logvar

    return size.batches(len(indices), moments)


def _concatenated(batches: Iterable[Moments], progress: Callable[[int], object] = lambda count: None) -> Moments:
    """Concatenate batches of (mean, log-variance); call `progress` with the number of pictures in each batch."""
    means, logvars = [], []
    for mean, logvar in batches:
        means.append(mean)
        logvars.append(logvar)
        progress(len(mean))
    return torch.cat(means), torch.cat(logvars)


def pixels(
    pictures: PictureSet,
    *,
    flip: bool = False,
    batch: int = 1024,
    most: int | None = None,
    size: tuple[int, int] | None = None,
) -> Latents:
    """Return pictures as their own latents, for diffusion in pixel space.

    The mean is the picture in [-1, 1], the log-variance -30 (almost no noise). A set is decoded into memory, as
    levels, if it has at most PIXELS (2^29) bytes and at most `most` pictures; larger sets are decoded on demand.

    Args:
        pictures: the picture set.
        flip: whether each picture has a second, mirrored view.
        batch: number of pictures decoded at once.
        most: most pictures of a set that is decoded into memory; None: any number.
        size: height and width of the pictures; None: they are squares.
    """
    count = len(pictures) * pictures.channels * pictures.resolution**2 * pixel_dtype(pictures).itemsize
    held = pictures
    if not isinstance(pictures, InMemory) and count <= PIXELS and (most is None or len(pictures) <= most):
        decoded = torch.cat([pictures.pictures(indices) for indices in chunks(pictures, batch)])
        own = value_range_of(pictures)
        held = InMemory(pictures.records, pictures.classes, decoded, pictures.fingerprint, own)
    table = PixelTable(held, flip, size)
    key = f"{pictures.fingerprint} flip" if flip else pictures.fingerprint
    return Latents(table, torch.tensor(-30.0).expand(*table.shape), key, replacements(pictures))
