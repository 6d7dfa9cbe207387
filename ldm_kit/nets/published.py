"""U-Nets by name: those of the latent-diffusion paper and of Stable Diffusion, and small ones for 32-64 pixels.

The published ones are read from their configs (CompVis/latent-diffusion, CompVis/stable-diffusion,
Stability-AI/generative-models); tests compare their parameter counts with the papers'.
"""

from collections.abc import Mapping
from typing import Any


def _unet(base: int, multiples: tuple[int, ...], attention: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """A configuration with widths `base * multiples` and attention at the given levels."""
    shape = {"widths": tuple(base * m for m in multiples), "layers": 2, "groups": 32}
    return {**shape, "attention": tuple(level in attention for level in range(len(multiples))), **more}


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # ours: 6.6 M (tokens 64 wide), 39.5 M and 24.2 M (tokens 128 wide); 8 channels in each norm group
    "nano": _unet(64, (1, 2, 2), (1, 2), heads=4, layers=1, groups=8),
    "micro": _unet(128, (1, 2, 2), (1, 2), heads=4, groups=16),
    "pixel32": _unet(64, (1, 2, 4), (1, 2), heads=4, groups=8),
    # Rombach et al. 2022, with the sizes of the latents and tokens that they were trained on
    "ldm4-unconditional": _unet(224, (1, 2, 3, 4), (1, 2, 3), head_size=32),  # 3x64x64: 274 M
    "ldm4-imagenet": _unet(192, (1, 2, 3, 5), (1, 2, 3), heads=1),  # 3x64x64, 512: cin256-v2, 401 M
    "ldm8-imagenet": _unet(256, (1, 2, 4), (0, 1, 2), head_size=32),  # 4x32x32, 512: 395 M
    "ldm4-text": _unet(192, (1, 2, 3, 5), (1, 2, 3), head_size=32),  # 3x64x64, 640: text2img256, 404 M
    "ldm8-text": _unet(320, (1, 2, 4, 4), (0, 1, 2), heads=8),  # 4x32x32, 1280: the U-Net of the 1.45 B model, 872 M
    "ldm4-layout": _unet(128, (1, 2, 3, 4), (1, 2, 3), head_size=32, transformer_depth=3),  # 3x64x64, 512
    # Stable Diffusion
    "sd1": _unet(320, (1, 2, 4, 4), (0, 1, 2), heads=8),  # 4x64x64, 768: 860 M
    "sd2": _unet(320, (1, 2, 4, 4), (0, 1, 2), head_size=64, linear_projection=True),  # 4x64x64, 1024: 866 M
}
