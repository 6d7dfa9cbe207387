"""A semantic model in closed form: z is an affine map of a picture's 4 x 4 means, x_T what these leave out."""

import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from ldm_kit.data.images import to_bytes, to_unit


class Fake:
    """Exactly invertible, with codes far from mean 0 and deviation 1."""

    resolution, channels, z_width = 16, 3, 48

    def __init__(self, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.std = torch.rand(48, generator=draw) + 0.5
        self.mean = torch.randn(48, generator=draw) * 3
        self.asked = []

    def encode(self, pictures, batch=64):
        assert pictures.dtype == torch.uint8
        return adaptive_avg_pool2d(to_unit(pictures), 4).flatten(1) * self.std + self.mean

    def invert(self, pictures, z, steps=250, batch=32, *, progress=None):
        self.asked.append(("invert", steps))
        if progress is not None:
            progress(steps, steps)
        return to_unit(pictures) - self._coarse(z)

    def decode(self, z, x_T, steps=100, batch=32, stop=0.0, *, trajectory=None, progress=None):
        self.asked.append(("decode", steps))
        return to_bytes(self._coarse(z) + x_T)

    def noise(self, seeds):
        return torch.zeros(len(seeds), 3, 16, 16)

    def _coarse(self, z):
        means = ((z - self.mean) / self.std).view(-1, 3, 4, 4)
        return interpolate(means, scale_factor=4, mode="nearest")
