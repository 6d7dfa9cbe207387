"""Functions of the public API that belong to no single subpackage: `from ldm_kit import load`."""

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
    """Load the model in a folder, of any kind; the folder's model_index.json says which kind.

    Nothing in the folder is run as code.

    Args:
        folder: a saved model; the folder of a finished run, which holds model/; the folder of a checkpoint, which is
            exported to the cache, with averaged (EMA) weights; or any diffusers folder of a VAE, a U-Net, a scheduler
            and, optionally, a CLIP text encoder.
        device: device of the networks.
        precision: dtype of autocast while sampling, torch.bfloat16 or torch.float16; None: everything is computed in
            float32. A noisy classifier always computes in float32.

    Returns:
        A `Pipeline` (diffusion of latents or of pixels), a `SemanticModel` (DiffAE, PDAE) or a `NoisyClassifier`, in
        evaluation mode.

    Raises:
        UserError: there is no such folder, or a component of the model is missing, broken, unknown, or does not fit
            the others.
    """
    folder = saved_model(folder)
    match ModelFolder.open(folder).class_name:
        case folders.CLASSIFIER:
            return NoisyClassifier.load(folder, device)
        case folders.SEMANTIC:
            return SemanticModel.load(folder, device, precision)
        case _:
            return Pipeline.load(folder, device, precision)  # its error sentences say what is missing
