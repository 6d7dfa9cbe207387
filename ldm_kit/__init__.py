"""ldm_kit: train, condition, sample and edit your own latent diffusion models.

Every public name is imported on its first use, so that `import ldm_kit` alone loads neither torch nor diffusers.
docs/api.md says what each name is for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm_kit._api import load
    from ldm_kit.config import Config, UserError
    from ldm_kit.data.factors import FactorSet, known_factors
    from ldm_kit.data.images import PictureSet, Record, Split
    from ldm_kit.data.tensors import from_tensor
    from ldm_kit.diffusion.denoiser import Clipped, Denoiser, NetworkDenoiser, Thresholded
    from ldm_kit.diffusion.guidance import (
        Autoguidance,
        ClassifierFree,
        ClassifierGradient,
        ClassifierGuided,
        Interval,
        Rescaled,
    )
    from ldm_kit.diffusion.prediction import Prediction
    from ldm_kit.diffusion.samplers import State
    from ldm_kit.diffusion.schedule import Schedule, ScheduleConfig
    from ldm_kit.inference.evaluate import evaluate
    from ldm_kit.methods.base import Method
    from ldm_kit.methods.run_config import RunConfig
    from ldm_kit.methods.train import train
    from ldm_kit.models.cascade import Cascade
    from ldm_kit.models.classifier import NoisyClassifier
    from ldm_kit.models.options import ResolvedOptions, SamplingOptions
    from ldm_kit.models.pipeline import Pipeline
    from ldm_kit.models.semantic import SemanticModel
    from ldm_kit.solvers.samplers import sample
    from ldm_kit.solvers.table import SAMPLERS, NamedSampler

__version__ = "0.2.0"

__all__ = [
    "SAMPLERS",
    "Autoguidance",
    "Cascade",
    "ClassifierFree",
    "ClassifierGradient",
    "ClassifierGuided",
    "Clipped",
    "Config",
    "Denoiser",
    "FactorSet",
    "Interval",
    "Method",
    "NamedSampler",
    "NetworkDenoiser",
    "NoisyClassifier",
    "PictureSet",
    "Pipeline",
    "Prediction",
    "Record",
    "Rescaled",
    "ResolvedOptions",
    "RunConfig",
    "SamplingOptions",
    "Schedule",
    "ScheduleConfig",
    "SemanticModel",
    "Split",
    "State",
    "Thresholded",
    "UserError",
    "evaluate",
    "from_tensor",
    "known_factors",
    "load",
    "sample",
    "train",
]

_MODULES = {
    "ldm_kit._api": ["load"],
    "ldm_kit.config": ["Config", "UserError"],
    "ldm_kit.data.factors": ["FactorSet", "known_factors"],
    "ldm_kit.data.images": ["PictureSet", "Record", "Split"],
    "ldm_kit.data.tensors": ["from_tensor"],
    "ldm_kit.diffusion.denoiser": ["Clipped", "Denoiser", "NetworkDenoiser", "Thresholded"],
    "ldm_kit.diffusion.guidance": [
        "Autoguidance",
        "ClassifierFree",
        "ClassifierGradient",
        "ClassifierGuided",
        "Interval",
        "Rescaled",
    ],
    "ldm_kit.diffusion.prediction": ["Prediction"],
    "ldm_kit.diffusion.samplers": ["State"],
    "ldm_kit.diffusion.schedule": ["Schedule", "ScheduleConfig"],
    "ldm_kit.inference.evaluate": ["evaluate"],
    "ldm_kit.methods.base": ["Method"],
    "ldm_kit.methods.run_config": ["RunConfig"],
    "ldm_kit.methods.train": ["train"],
    "ldm_kit.models.cascade": ["Cascade"],
    "ldm_kit.models.classifier": ["NoisyClassifier"],
    "ldm_kit.models.options": ["ResolvedOptions", "SamplingOptions"],
    "ldm_kit.models.pipeline": ["Pipeline"],
    "ldm_kit.models.semantic": ["SemanticModel"],
    "ldm_kit.solvers.samplers": ["sample"],
    "ldm_kit.solvers.table": ["SAMPLERS", "NamedSampler"],
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name on its first use (PEP 562); raises AttributeError for any other name."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ldm_kit' has no attribute {name!r}; its public names are {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the module's names, including the public names that are not imported yet."""
    return sorted({*globals(), *__all__})
