"""Conditioners turn captions, class labels or pictures into a denoiser's condition (Rombach et al. 2022, 3.3).

Usage:
    conditioner = build(config, captions=captions, classes=classes)
    inputs = conditioner.prepare(captions)           # once, on the CPU; what a data cache stores
    condition = conditioner(**inputs)                # every step, differentiable
    null = conditioner.null_inputs()                 # inputs of the null condition, for `drop` and for guidance

Names are imported when first used, so that `import conditioning` itself needs neither torch nor diffusers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conditioning.base import Condition, Conditioner, ConditionerConfig, ConditioningError, Inputs, Progress, drop
    from conditioning.combined import CombinedConditioner
    from conditioning.combined_config import CombinedConfig
    from conditioning.derived import Column, Grey, SuperResolution
    from conditioning.factory import CONDITIONERS, ConditioningConfig, build, components, load, save
    from conditioning.image import ImageConditioner
    from conditioning.image_encoder import ImageEncoder
    from conditioning.image_projection import ImageConfig
    from conditioning.inpainting import Inpainting
    from conditioning.labels import ClassConditioner, ClassConfig, ClassEmbedder
    from conditioning.none import NoCondition, NoConfig
    from conditioning.pictures import PictureCondition
    from conditioning.pretrained import PretrainedConditioner, PretrainedTextConfig
    from conditioning.semantic import (
        SemanticConfig,
        SemanticEncoder,
        SemanticEncoderConfig,
        StridedEncoder,
        StridedEncoderConfig,
        build_semantic,
        condition_of,
    )
    from conditioning.text import TextConditioner, TextConfig

__all__ = [
    "CONDITIONERS",
    "ClassConditioner",
    "ClassConfig",
    "ClassEmbedder",
    "Column",
    "CombinedConditioner",
    "CombinedConfig",
    "Condition",
    "Conditioner",
    "ConditionerConfig",
    "ConditioningConfig",
    "ConditioningError",
    "Grey",
    "ImageConditioner",
    "ImageConfig",
    "ImageEncoder",
    "Inpainting",
    "Inputs",
    "NoCondition",
    "NoConfig",
    "PictureCondition",
    "PretrainedConditioner",
    "PretrainedTextConfig",
    "Progress",
    "SemanticConfig",
    "SemanticEncoder",
    "SemanticEncoderConfig",
    "StridedEncoder",
    "StridedEncoderConfig",
    "SuperResolution",
    "TextConditioner",
    "TextConfig",
    "build",
    "build_semantic",
    "components",
    "condition_of",
    "drop",
    "load",
    "save",
]

_NAMES = {
    "base": "Condition Conditioner ConditionerConfig ConditioningError Inputs Progress drop",
    "combined": "CombinedConditioner",
    "combined_config": "CombinedConfig",
    "derived": "Column Grey SuperResolution",
    "image": "ImageConditioner",
    "image_encoder": "ImageEncoder",
    "image_projection": "ImageConfig",
    "inpainting": "Inpainting",
    "pictures": "PictureCondition",
    "factory": "CONDITIONERS ConditioningConfig build components load save",
    "labels": "ClassConditioner ClassConfig ClassEmbedder",
    "none": "NoCondition NoConfig",
    "pretrained": "PretrainedConditioner PretrainedTextConfig",
    "semantic": "SemanticConfig SemanticEncoder SemanticEncoderConfig StridedEncoder StridedEncoderConfig "
    "build_semantic condition_of",
    "text": "TextConditioner TextConfig",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name, when it is first used, from the module that defines it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
