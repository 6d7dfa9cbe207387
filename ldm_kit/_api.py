"""Functions of the public API that belong to no single subpackage: `from ldm_kit import load`."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ldm_kit.config import UserError
from ldm_kit.methods.export import saved_model
from ldm_kit.models import folder as folders
from ldm_kit.models.cascade import Cascade
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.folder import ModelFolder
from ldm_kit.models.lora_paths import LoraPath
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.semantic import SemanticModel


def load(
    folder: Path | str,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    lora: Sequence[str | Path | LoraPath] = (),
) -> Pipeline | SemanticModel | NoisyClassifier | Cascade:
    """Load the model in a folder, of any kind; the folder's model_index.json says which kind.

    Nothing in the folder is run as code.

    Args:
        folder: a saved model; the folder of a finished run, which holds model/; the folder of a checkpoint, which is
            exported to the cache, with averaged (EMA) weights; or any diffusers folder of a VAE, a U-Net, a scheduler
            and, optionally, a CLIP text encoder.
        device: device of the networks.
        precision: dtype of autocast while sampling, torch.bfloat16 or torch.float16; None: everything is computed in
            float32. A noisy classifier always computes in float32.
        lora: LoRA files, or models and runs with one, as PATH or PATH:SCALE; each is merged into the weights of a
            diffusion model in this order.

    Returns:
        A `Pipeline` (diffusion of latents or of pixels), a `SemanticModel` (DiffAE, PDAE), a `NoisyClassifier` or a
        `Cascade`, in evaluation mode.

    Raises:
        UserError: there is no such folder, or a component of the model is missing, broken, unknown, or does not fit
            the others; or a LoRA is of another base, or is given for a model that takes none.
    """
    folder = saved_model(folder)
    kind = ModelFolder.open(folder).class_name
    if lora and kind in (folders.CLASSIFIER, folders.SEMANTIC, folders.CASCADE):
        raise UserError(f"{folder} is a {kind}, which takes no LoRA; expected a diffusion model")
    match kind:
        case folders.CLASSIFIER:
            return NoisyClassifier.load(folder, device)
        case folders.SEMANTIC:
            return SemanticModel.load(folder, device, precision)
        case folders.CASCADE:
            return Cascade.load(folder, device, precision)
        case _:
            return Pipeline.load(folder, device, precision, lora)  # its error sentences say what is missing
