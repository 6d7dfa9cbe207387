"""Pixels of decoded images: channels, bits and background, and the scaled and cropped picture of a given size."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's image mode by number of channels
_WHITE = (255, 255, 255)


def fitted(
    image: Image.Image,
    resolution: int | tuple[int, int],
    channels: int,
    background: tuple[int, int, int] = _WHITE,
) -> Tensor:
    """Scale (Lanczos) and centre-crop a decoded image to a given size, uint8 [channels, height, width].

    Args:
        image: the image.
        resolution: pixels along each side of a square picture; or height and width.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        background: colour (red, green, blue), 0..255, under transparent pixels, unless `channels` is 4.
    """
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    flat = _to_mode(image, channels, background)
    scaled = ImageOps.fit(flat, (width, height), Image.Resampling.LANCZOS)
    pixels = np.array(scaled, dtype=np.uint8).reshape(height, width, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def alpha_of(image: Image.Image, resolution: int | tuple[int, int]) -> Tensor:
    """Return a decoded image's alpha (0 transparent, 255 opaque), scaled and cropped as by `fitted`: uint8 [1, H, W].

    It is scaled with non-negative weights (bilinear, antialiased): 0 where all that is averaged is transparent.
    """
    layer = image.convert("RGBA").getchannel("A")
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    scaled = ImageOps.fit(layer, (width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(scaled, dtype=np.uint8))[None]


def _to_mode(image: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """Convert an image to 1 (L), 3 (RGB) or 4 (RGBA) channels; for 1 and 3, lay it over the background colour."""
    if not image.has_transparency_data:
        return image.convert("RGB").convert(MODES[channels])
    layer = image.convert("RGBA")
    if channels == 4:
        return layer
    canvas = Image.new("RGBA", layer.size, (*background, 255))
    canvas.alpha_composite(layer)
    return canvas.convert("RGB").convert(MODES[channels])


def eight_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit grey (Pillow's modes I;16 and I) to 8 bits, scaled by 255 / 65535; return others unchanged.

    Raises:
        ValueError: pixels are floats, or lie outside 0..65535.
    """
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError("pixels of more than 16 bits have no agreed scale; save the picture with 8 or 16 bits")
    return Image.fromarray(np.round(values.astype(np.float32) / 257).astype(np.uint8))


def plain(image: Image.Image) -> Image.Image:
    """Convert an image with a palette, in CMYK or another mode to RGB, or to RGBA if it has transparency."""
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return image
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
