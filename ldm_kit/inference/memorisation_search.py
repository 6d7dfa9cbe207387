"""Distances of samples and of held-out pictures to the nearest training pictures, by features and by pixels."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_kit.data.batches import chunks
from ldm_kit.data.images import PictureSet
from ldm_kit.data.levels import HIGHEST
from ldm_kit.data.peers import divided
from ldm_kit.inference.evaluate_reference import Reference
from ldm_kit.memory import BatchSize
from ldm_kit.metrics.memorisation import Memorisation, Nearest, nearest
from ldm_kit.models.feature_nets import FeatureNet
from ldm_kit.models.picture_features import picture_features

NEAREST = 3  # training pictures that are found for each sample
MOST_SIDE = 32  # larger pictures are shrunk to this side, in pixels, before their pixels are compared
PART = 2048  # training pictures whose pixels are in memory at once


def distances(
    samples: Tensor, reference: Reference, net: FeatureNet, size: BatchSize, *, mirrored: bool
) -> dict[str, Memorisation]:
    """Return the distances of samples and of held-out pictures to training pictures; several processes divide the work.

    Args:
        samples: uint8 [N, C, R, R].
        reference: training pictures, and held-out ones as `pictures`.
        net: the feature network.
        size: number of pictures at once; reduced when memory runs out.
        mirrored: whether mirrored training pictures are searched too.

    Returns:
        By space: "features", those of the network, and "pixels", whose distance is in 0..1.
    """
    train, heldout = reference.split.train, reference.pictures
    features = [picture_features(train, net, size)]
    if mirrored:
        features.append(_features(len(train), lambda rows: train.pictures(rows).flip(3), net, size))
    sampled = _features(len(samples), lambda rows: samples[list(rows)], net, size)
    taken = picture_features(heldout, net, size)
    held = torch.cat([_pixels(heldout.pictures(rows)) for rows in chunks(heldout, PART)])

    def near(queries: tuple[Tensor, Tensor], parts: Callable[[], Iterable[Tensor]]) -> Memorisation:
        nearest_ones, indices = _nearest(torch.cat(queries), parts)
        counts = [len(each) for each in queries]
        return Memorisation(*map(Nearest, nearest_ones.split(counts), (indices % len(train)).split(counts)))

    return {
        "features": near((sampled, taken), lambda: features),
        "pixels": near((_pixels(samples), held), lambda: _training_pixels(train, mirrored=mirrored)),
    }


def _features(count: int, pictures: Callable[[Sequence[int]], Tensor], net: FeatureNet, size: BatchSize) -> Tensor:
    """Return the features [N, D] of N pictures, of which `pictures` returns some by their numbers 0 to N - 1."""

    def own(rows: Sequence[int]) -> Tensor:
        return torch.cat([*size.batches(len(rows), lambda batch: net(pictures([rows[i] for i in batch])).features)])

    return divided(count, own)


def _nearest(queries: Tensor, parts: Callable[[], Iterable[Tensor]]) -> Nearest:
    """Find the neighbours of all queries in one pass over the training pictures; processes divide the queries."""

    def own(rows: Sequence[int]) -> Tensor:
        neighbours = nearest(queries[list(rows)], parts(), NEAREST)
        return torch.cat([neighbours.distances, neighbours.indices.double()], 1)  # float64 holds an index exactly

    both = divided(len(queries), own)
    return Nearest(both[:, :NEAREST], both[:, NEAREST:].long())


def _training_pixels(train: PictureSet, *, mirrored: bool) -> Iterator[Tensor]:
    """Yield the pixels of the training pictures in parts, [m, D], followed by those of mirrored pictures."""
    for flip in (False, True)[: 1 + mirrored]:
        for rows in chunks(train, PART):
            pictures = train.pictures(rows)
            yield _pixels(pictures.flip(3) if flip else pictures)


def _pixels(pictures: Tensor) -> Tensor:
    """Return pictures, levels [N, C, R, R], as rows [N, D] whose distance is a root mean square difference in 0..1."""
    x = pictures.float() / HIGHEST[pictures.dtype]
    if x.shape[-1] > MOST_SIDE:
        x = F.interpolate(x, (MOST_SIDE, MOST_SIDE), mode="area")
    return x.flatten(1) / x[0].numel() ** 0.5
