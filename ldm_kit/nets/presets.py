"""U-Net presets by name: the networks of LDM, Stable Diffusion and ADM, and small ones for 32 to 64 pixels.

The published ones follow their authors' configs (CompVis/latent-diffusion, CompVis/stable-diffusion,
Stability-AI/generative-models, openai/guided-diffusion). Tests compare their parameter counts, heads and outputs with
the original networks. One difference is known: adm512 embeds the time with 128 sinusoids, the original with 256,
because diffusers uses as many as the first level has channels.
"""

from collections.abc import Mapping
from typing import Any


def _unet(base: int, multiples: tuple[int, ...], attention: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Return the fields of a `UNetConfig` with widths `base` * `multiples` and attention at the levels `attention`.

    Level 0 works at the input's resolution. `more` are further fields; by default each level has 2 residual blocks, and
    each GroupNorm has 32 groups.
    """
    shape = {"widths": tuple(base * m for m in multiples), "layers_per_block": 2, "norm_num_groups": 32}
    return {**shape, "attention_levels": tuple(level in attention for level in range(len(multiples))), **more}


def _adm(base: int, multiples: tuple[int, ...], attention: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Return the fields of a `UNetConfig` with ADM's blocks, from the arguments of `_unet`.

    The time embedding scales and shifts norms, residual blocks resample, and attention heads have 64 channels unless
    `more` has `heads`.
    """
    heads = {} if "heads" in more else {"head_size": 64}
    return _unet(base, multiples, attention, **{"time": "scale_shift", "resample": "resnet", **heads, **more})


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # ldm_kit's own: 6.6 M parameters (tokens 64 wide), 39.5 M and 24.2 M (tokens 128 wide); 8 channels per norm group
    "nano": _unet(64, (1, 2, 2), (1, 2), heads=4, layers_per_block=1, norm_num_groups=8),
    "micro": _unet(128, (1, 2, 2), (1, 2), heads=4, norm_num_groups=16),
    "pixel32": _unet(64, (1, 2, 4), (1, 2), heads=4, norm_num_groups=8),
    # Rombach et al. 2022; beside each: shape of the training latents, width of the tokens, parameters
    "ldm4-unconditional": _unet(224, (1, 2, 3, 4), (1, 2, 3), head_size=32),  # 3x64x64: 274 M
    "ldm4-imagenet": _unet(192, (1, 2, 3, 5), (1, 2, 3), heads=1),  # 3x64x64, 512: cin256-v2, 401 M
    "ldm8-imagenet": _unet(256, (1, 2, 4), (0, 1, 2), head_size=32),  # 4x32x32, 512: 395 M
    "ldm4-text": _unet(192, (1, 2, 3, 5), (1, 2, 3), head_size=32),  # 3x64x64, 640: text2img256, 404 M
    "ldm8-text": _unet(320, (1, 2, 4, 4), (0, 1, 2), heads=8),  # 4x32x32, 1280: the U-Net of the 1.45 B model, 872 M
    "ldm4-layout": _unet(128, (1, 2, 3, 4), (1, 2, 3), head_size=32, transformer_depth=3),  # 3x64x64, 512
    # ADM, Dhariwal & Nichol 2021, table 11: pictures of ImageNet, classes as a vector, learned variance
    "adm64": _adm(192, (1, 2, 3, 4), (1, 2, 3), layers_per_block=3, dropout=0.1),  # 3x64x64: 296 M
    "adm128": _adm(256, (1, 1, 2, 3, 4), (2, 3, 4), heads=4, equal_heads=True),  # 3x128x128: 422 M
    "adm256": _adm(256, (1, 1, 2, 2, 4, 4), (3, 4, 5)),  # 3x256x256: 554 M
    "adm512": _adm(128, (1, 2, 2, 4, 4, 8, 8), (4, 5, 6), time_channels=1024),  # 3x512x512: 559 M
    # Stable Diffusion
    "sd1": _unet(320, (1, 2, 4, 4), (0, 1, 2), heads=8),  # 4x64x64, 768: 860 M
    "sd2": _unet(320, (1, 2, 4, 4), (0, 1, 2), head_size=64, linear_projection=True),  # 4x64x64, 1024: 866 M
}
