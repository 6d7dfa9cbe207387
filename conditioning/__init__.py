"""Anything to a `Condition` that a denoiser can attend to (Rombach et al. 2022, section 3.3).

conditioner = build(config, captions=captions, classes=classes)
inputs = conditioner.prepare(captions)                # once, on the CPU; what a data cache stores
condition = conditioner(**inputs)                     # every step, differentiable
null = conditioner.null_inputs()                      # what `drop` puts in and guidance compares with
"""

from conditioning.base import Condition, Conditioner, ConditioningError, Inputs, Progress, drop
from conditioning.factory import ConditioningConfig, build, load, save
from conditioning.labels import ClassConditioner, ClassConfig, ClassEmbedder
from conditioning.none import NoCondition, NoConfig
from conditioning.pretrained import PretrainedConditioner, PretrainedTextConfig
from conditioning.text import TextConditioner, TextConfig

__all__ = [
    "ClassConditioner",
    "ClassConfig",
    "ClassEmbedder",
    "Condition",
    "Conditioner",
    "ConditioningConfig",
    "ConditioningError",
    "Inputs",
    "NoCondition",
    "NoConfig",
    "PretrainedConditioner",
    "PretrainedTextConfig",
    "Progress",
    "TextConditioner",
    "TextConfig",
    "build",
    "drop",
    "load",
    "save",
]
