"""Pictures as pretrained networks see them: RGB, resized, and normalised as in the networks' training."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from conditioning.condition import ConditioningError


class Resized:
    """Resize pictures uint8 [B, 3, r, r] to a network's side, and normalise them by its mean and deviation.

    Args:
        side: pixels along each side of the network's input.
        mean: mean of each channel, for values in [0, 1].
        std: standard deviation of each channel.
        interpolation: "bilinear"; anything else is bicubic.
    """

    def __init__(self, side: int, mean: Sequence[float], std: Sequence[float], interpolation: str) -> None:
        self.side, self.mode = side, "bilinear" if interpolation == "bilinear" else "bicubic"
        self.mean, self.std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))

    @property
    def words(self) -> str:
        """Say for reports to what size pictures are resized, and how they are normalised."""
        mean, std = (", ".join(f"{v:.5g}" for v in x.flatten().tolist()) for x in (self.mean, self.std))
        return f"{self.mode}, antialiased, to {self.side} px, and normalised by mean {mean} and deviation {std}"

    def __call__(self, pictures: Tensor) -> Tensor:
        x = pictures.float() / 255
        if x.shape[-1] != self.side:
            x = F.interpolate(x, (self.side, self.side), mode=self.mode, antialias=True).clamp(0, 1)
        return (x - self.mean.to(x.device)) / self.std.to(x.device)


def to_rgb(pictures: Tensor) -> Tensor:
    """Return pictures uint8 [B, C, r, r] of 1, 3 or 4 channels as RGB; those with alpha are laid on white.

    Raises:
        ConditioningError: they have another number of channels.
    """
    match pictures.shape[1]:
        case 1:
            return pictures.expand(-1, 3, -1, -1)
        case 3:
            return pictures
        case 4:
            colours, alpha = pictures[:, :3].int(), pictures[:, 3:].int()
            return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)
        case n:
            raise ConditioningError(f"feature networks see pictures of 1, 3 or 4 channels, got {n}")
