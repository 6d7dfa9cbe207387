"""Expected reconstruction quality of a first stage, from how well a linear code of the same size reconstructs.

The linear code is principal components of patches. How far a trained autoencoder is above it was measured on the
folders of docs/results/plans.md; `python -m benchmarks.plans` fits the three numbers again.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import unfold

from ldm_kit.data.batches import spread
from ldm_kit.data.images import PictureSet, to_unit

PICTURES = 256  # pictures that the linear code is fitted to
PATCHES = 20_000  # most patches of it


@dataclass(frozen=True)
class PsnrModel:
    """PSNR = offset + slope x (PSNR of the linear code) + per_doubling x log2(pictures seen / 8,000)."""

    offset: float
    slope: float
    per_doubling: float
    error: float  # largest error when a folder was left out of the fit, in dB

    def range(self, linear: float, seen: int) -> tuple[float, float]:
        """Return the lowest and highest expected PSNR, in dB.

        Args:
            linear: PSNR of the linear code, in dB.
            seen: pictures that training sees, steps times batch size.
        """
        middle = self.offset + self.slope * linear + self.per_doubling * math.log2(seen / 8000)
        return middle - self.error, middle + self.error


MEASURED = PsnrModel(0.0, 1.0, 1.0, 3.0)


def linear_psnr(pictures: PictureSet, factor: int, channels: int = 4) -> float:
    """Return the PSNR, in dB, of the best linear code: the first principal components of patches.

    The components are fitted to half of the pictures and measured on the other half.

    Args:
        pictures: at least two pictures, of which at most 256 are used.
        factor: side of a patch, the reduction factor of the first stage.
        channels: components kept of each patch, the channels of a latent.
    """
    rows = spread(len(pictures), PICTURES)
    fitted, measured = (_patches(pictures, rows[half::2], factor) for half in (0, 1))
    mean = fitted.mean(0)
    components = torch.linalg.svd(_thinned(fitted) - mean, full_matrices=False).Vh[:channels]
    centred = measured - mean
    error = (centred - centred @ components.T @ components).square().mean()
    return float(10 * torch.log10(4 / error.clamp_min(1e-10)))  # pictures are in [-1, 1]


def _patches(pictures: PictureSet, rows: list[int], factor: int) -> Tensor:
    x = to_unit(pictures.pictures(rows))
    return unfold(x, factor, stride=factor).transpose(1, 2).flatten(0, 1)


def _thinned(patches: Tensor) -> Tensor:
    return patches[spread(len(patches), PATCHES)]
