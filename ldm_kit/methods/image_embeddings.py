"""Embeddings of a set of pictures by the frozen image encoder of a conditioner, computed once and cached on disk."""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from conditioning.base import Conditioner, Inputs
from ldm_kit.config import cache_dir
from ldm_kit.data import peers
from ldm_kit.data.images import PictureSet
from ldm_kit.data.peers import divided
from ldm_kit.data.readable import replacements, sources
from ldm_kit.data.tensor_cache import cached_by_all, key_of
from ldm_kit.memory import MOST_SAMPLES, BatchSize

CODE_VERSION = 1  # raise it whenever embeddings change: cached ones are then not read


def embeddings_of(conditioner: Conditioner, pictures: PictureSet) -> tuple[Tensor, Tensor]:
    """Return the embeddings of M pictures, float32 [M, D] or float16 [M, L, D], from the cache if it has them.

    Also return the index [M] of the picture that each was computed from.

    They are cached by the pictures' contents and the encoder's settings and weights. Several processes compute a share
    each. A picture that cannot be read has the embedding of the picture that replaces it.

    Args:
        conditioner: a conditioner that reads pictures, alone or one of several.
        pictures: the picture set.
    """
    reader = conditioner.image_conditioner
    assert reader is not None
    reader.in_batches = BatchSize(MOST_SAMPLES).batches
    key = key_of("embeddings", CODE_VERSION, pictures.fingerprint, reader.frozen_encoder)

    def own(rows: Sequence[int]) -> Tensor:
        chunks = [rows[start : start + MOST_SAMPLES] for start in range(0, len(rows), MOST_SAMPLES)]
        shown = tqdm(chunks, desc="image embeddings", leave=False)
        parts = [reader.embedded(reader.embed(pictures.pictures(chunk)))["embedding"] for chunk in shown]
        return torch.cat(parts) if parts else reader.prepare([])["embedding"]

    def compute() -> dict[str, Tensor]:
        embedding = divided(len(pictures), own)
        shares = peers.agreed(peers.everyone(), lambda: dict(replacements(pictures)))
        replaced = {broken: index for share in shares for broken, index in share.items()}
        return {"embedding": embedding, "shown": sources(torch.arange(len(embedding)), replaced)}

    tensors = cached_by_all(cache_dir() / "embeddings", key, compute)
    return tensors["embedding"], tensors["shown"]


def picture_embeddings(conditioner: Conditioner, pictures: PictureSet) -> Inputs:
    """Return the inputs, [M, ...] each, that a conditioner makes of the embeddings of M pictures."""
    return conditioner.embedded(embeddings_of(conditioner, pictures)[0])
