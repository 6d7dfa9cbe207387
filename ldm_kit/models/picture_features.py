"""Features of a set of pictures by a pretrained network, cached on disk."""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import cache_dir
from ldm_kit.data.images import PictureSet
from ldm_kit.data.peers import divided
from ldm_kit.data.tensor_cache import cached_by_all, key_of
from ldm_kit.memory import BatchSize
from ldm_kit.models.feature_nets import FeatureNet

CODE_VERSION = 2  # raise it whenever features change: cached ones are then not read


def picture_features(pictures: PictureSet, net: FeatureNet, size: BatchSize) -> Tensor:
    """Return the features float32 [M, D] of M pictures, from the cache if these pictures were seen before.

    They are cached by the pictures' contents, the network's weights and how pictures are resized for it. Several
    processes compute a share each.

    Args:
        pictures: the picture set.
        net: the feature network.
        size: number of pictures in a batch; reduced when memory runs out.
    """
    key = key_of("features", CODE_VERSION, pictures.fingerprint, net.name, net.sha256, net.resize)

    def own(rows: Sequence[int]) -> Tensor:
        bar = tqdm(total=len(rows), desc="reference features", unit="picture", leave=False)

        def batch(indices: range) -> Tensor:
            features = net(pictures.pictures([rows[i] for i in indices])).features
            bar.update(indices.stop - bar.n)
            return features

        with bar:
            return torch.cat([*size.batches(len(rows), batch)])

    def compute() -> dict[str, Tensor]:
        return {"features": divided(len(pictures), own)}

    return cached_by_all(cache_dir() / "features", key, compute)["features"]
