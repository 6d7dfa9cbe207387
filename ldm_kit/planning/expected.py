"""Expected reconstruction quality of a first stage, from principal components of the pictures and the training steps.

What an autoencoder loses has two causes, whose mean squared errors are added: the pictures differ in more ways than its
latents hold, which the loss of 64 principal components measures; and it is not trained to its end. The four numbers of
`MEASURED` were fitted to the trainings of docs/results/plans.md (`python -m benchmarks.plans`).
"""

import math
from dataclasses import dataclass

import torch

from ldm_kit.data.batches import spread
from ldm_kit.data.images import PictureSet, to_unit

PICTURES, COMPONENTS, MEASURED_ON = 1500, 64, 8  # of 1,500 pictures, one in 8 is measured, the others are fitted


@dataclass(frozen=True)
class PsnrModel:
    """PSNR = -10 log10(10^(-limit / 10) + 10^(-trained / 10)), the sum of two mean squared errors.

    limit = offset + slope x (PSNR of the components - 25)
    trained = at_8000 + per_doubling x log2(pictures seen / 8,000)
    """

    offset: float  # dB
    slope: float
    at_8000: float  # dB
    per_doubling: float  # dB
    error: float  # largest error when a training was left out of the fit, in dB

    def psnr(self, components: float, seen: int) -> float:
        """Return the expected PSNR, in dB.

        Args:
            components: PSNR of the principal components, in dB, from `pca_psnr`.
            seen: pictures that training sees, steps times batch size.
        """
        limit = self.offset + self.slope * (components - 25)
        trained = self.at_8000 + self.per_doubling * math.log2(seen / 8000)
        return -10 * math.log10(10 ** (-limit / 10) + 10 ** (-trained / 10))

    def range(self, components: float, seen: int) -> tuple[float, float]:
        """Return the lowest and highest expected PSNR, in dB; see `psnr`."""
        middle = self.psnr(components, seen)
        return middle - self.error, middle + self.error


MEASURED = PsnrModel(32.55, 1.2, 36.22, 4.59, 4.9)


def pca_psnr(pictures: PictureSet, components: int = COMPONENTS) -> float:
    """Return the PSNR, in dB, of pictures from their first principal components.

    The components are those of seven eighths of the pictures, at most 1,500, and are measured on the others.

    Args:
        pictures: at least nine pictures.
        components: how many components are kept; fewer, if there are fewer pictures.
    """
    rows = spread(len(pictures), PICTURES)
    x = to_unit(pictures.pictures(rows)).flatten(1)
    measured = torch.arange(len(x)) % MEASURED_ON == 0
    mean = x[~measured].mean(0)
    fitted, rest = x[~measured] - mean, x[measured] - mean
    values, vectors = torch.linalg.eigh(fitted @ fitted.T)  # as many as pictures, which are fewer than pixels
    scales = values[-components:].clamp_min(1e-6).sqrt()
    directions = fitted.T @ vectors[:, -components:] / scales
    error = (rest - rest @ directions @ directions.T).square().mean()
    return float(10 * torch.log10(4 / error.clamp_min(1e-10)))  # pictures are in [-1, 1]
