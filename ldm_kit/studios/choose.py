"""What a run of any method shows beside its numbers."""

from pathlib import Path
from typing import Protocol

from ldm_kit.methods.choose import Stage
from ldm_kit.methods.classifier_stage import ClassifierStage
from ldm_kit.methods.prior_stage import PriorStage
from ldm_kit.methods.semantic_stage import SemanticStage
from ldm_kit.methods.stage import LatentStage
from ldm_kit.studios.classifier import ClassifierStudio
from ldm_kit.studios.latent import LatentStudio
from ldm_kit.studios.semantic import PriorStudio, SemanticStudio


class Studio(Protocol):
    """A method's show: figures and pictures while it trains, and the finished model."""

    def evaluate(self, number: int) -> dict[str, float]:
        """Held-out figures by name, and pictures beside them, with the weights at hand after step `number`."""
        ...

    def finish(self) -> str:
        """Write model/ and the curves; say where and how good."""
        ...


def open_studio(stage: Stage, folder: Path) -> Studio:
    """The studio of a stage, showing in the run's folder."""
    match stage:
        case LatentStage():
            return LatentStudio(stage, folder)
        case ClassifierStage():
            return ClassifierStudio(stage, folder)
        case SemanticStage():
            return SemanticStudio(stage, folder)
        case PriorStage():
            return PriorStudio(stage, folder)
