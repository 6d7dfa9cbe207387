"""Every method that `train_ldm.py` trains, told by the config's `method`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ldm_kit import config as configs
from ldm_kit.config import UserError
from ldm_kit.data.images import Split
from ldm_kit.methods.base import Collectives, RunConfig
from ldm_kit.methods.classifier import ClassifierRun
from ldm_kit.methods.classifier_stage import ClassifierStage
from ldm_kit.methods.diffae import DiffAERun
from ldm_kit.methods.latent import LatentRun
from ldm_kit.methods.pdae import PDAERun
from ldm_kit.methods.prior import PriorRun
from ldm_kit.methods.prior_stage import PriorStage
from ldm_kit.methods.semantic_stage import SemanticStage
from ldm_kit.methods.stage import LatentStage

RUNS: dict[str, type[RunConfig]] = {
    "latent": LatentRun,
    "classifier": ClassifierRun,
    "diffae": DiffAERun,
    "pdae": PDAERun,
    "prior": PriorRun,
}
Stage = LatentStage | ClassifierStage | SemanticStage | PriorStage


def read_run(path: Path | str, overrides: Sequence[str] = ()) -> Any:
    """The run that a YAML file describes, of the class that its `method` (latent when left out) asks for.

    Raises:
        UserError: as `ldm_kit.config.read`, and for an unknown method.
    """
    tree = configs.tree(path, overrides)
    return configs.check(run_class(tree, str(path)), tree, str(path))


def run_class(tree: dict[str, Any], where: str) -> type[RunConfig]:
    """The class of a config tree; raises UserError for an unknown method."""
    method = tree.get("method", "latent")
    if method not in RUNS:
        raise UserError(f"{where}: unknown method {method!r}; expected one of {', '.join(RUNS)}")
    return RUNS[method]


def open_stage(settings: RunConfig, data: Split, device: torch.device, ranks: Collectives | None = None) -> Stage:
    """All that a run trains with: its task, its batches, what it says at the start.

    Raises:
        UserError, AutoencoderError, ConditioningError: parts that cannot be had or do not fit.
    """
    match settings:
        case LatentRun():
            return LatentStage.open(settings, data, device, ranks)
        case ClassifierRun():
            return ClassifierStage.open(settings, data, device)
        case DiffAERun() | PDAERun():
            return SemanticStage.open(settings, data, device)
        case PriorRun():
            return PriorStage.open(settings, data, device)
        case _:
            raise TypeError(f"no method trains a {type(settings).__name__}")
