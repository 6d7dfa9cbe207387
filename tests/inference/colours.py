"""A tiny network in the place of a feature network, and made-up pictures that it tells apart."""

from pathlib import Path

import torch
from PIL import Image

from ldm_kit.data.images import InMemory, Record, Split
from ldm_kit.models.feature_nets import Features


class Colours:
    """A network whose features are the mean and the deviation of each channel; remembers what it saw."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, pictures: torch.Tensor) -> Features:
        self.seen.append(pictures)
        x = pictures.float() / 255
        return Features(torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1))

    @property
    def pictures(self) -> torch.Tensor:
        return torch.cat(self.seen)


def noise(count: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Pictures of random colours, 8 px, with some noise."""
    draw = torch.Generator().manual_seed(seed)
    tone = torch.rand(count, 3, 1, 1, generator=draw) * 200 * scale
    return (tone + 50 * torch.rand(count, 3, 8, 8, generator=draw)).to(torch.uint8)


def split_of(pixels: torch.Tensor, fingerprint: str = "noise") -> Split:
    pictures = InMemory([Record(f"{i}", "", None) for i in range(len(pixels))], (), pixels, fingerprint)
    return Split(pictures, pictures, None)


def save(pixels: torch.Tensor, folder: Path) -> Path:
    folder.mkdir()
    for i, picture in enumerate(pixels):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{i:03d}.png")
    return folder
