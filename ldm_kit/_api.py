"""Functions of the public API that belong to no single room: `from ldm_kit import load`."""

from pathlib import Path

import torch

from ldm_kit.methods.export import saved_model
from ldm_kit.models import folder as folders
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.folder import ModelFolder
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.semantic import SemanticModel


def load(
    folder: Path | str, device: torch.device | str = "cpu", precision: torch.dtype | None = None
) -> Pipeline | SemanticModel | NoisyClassifier:
    """Load whatever model a folder holds; its model_index.json says which kind.

    Args:
        folder: a saved model, the folder of a finished run (which holds model/) or of a checkpoint (which is exported
            to the cache, with averaged weights), or any diffusers folder of a VAE, a
            U-Net, a scheduler and, optionally, a CLIP text encoder.
        device: where the networks are put.
        precision: torch.bfloat16 or torch.float16: sampling runs under autocast to it; None: float32. A noisy
            classifier always computes in float32.

    Returns:
        A `Pipeline` (diffusion of latents or of pixels), a `SemanticModel` (DiffAE, PDAE) or a `NoisyClassifier`, in
        evaluation mode.

    Raises:
        UserError: no such folder, or a component that is missing, broken, unknown, or does not fit the others. Nothing
            in the folder is run as code.
    """
    folder = saved_model(folder)
    match ModelFolder.open(folder).class_name:
        case folders.CLASSIFIER:
            return NoisyClassifier.load(folder, device)
        case folders.SEMANTIC:
            return SemanticModel.load(folder, device, precision)
        case _:
            return Pipeline.load(folder, device, precision)  # its error sentences say what is missing
