"""Export a model with LoRA merged into its weights, as a folder of its own."""

from collections.abc import Sequence
from pathlib import Path

from ldm_kit.config import UserError
from ldm_kit.methods.export import is_checkpoint, saved_model
from ldm_kit.methods.networks import contiguous_weights
from ldm_kit.models.folder import device_named
from ldm_kit.models.lora_paths import LoraPath, lora_paths
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.paths import check_writable
from ldm_kit.training.checkpoint import write


def lora_files(texts: Sequence[str | Path]) -> list[LoraPath]:
    """Return the files that PATH or PATH:SCALE name, each with its scale; a checkpoint of a run is exported first.

    Raises:
        UserError: a scale is no number, or a path has no LoRA.
    """
    paths = lora_paths(texts)
    models = [path._replace(path=saved_model(path.path)) if is_checkpoint(path.path) else path for path in paths]
    return [path._replace(path=path.file) for path in models]


def export_with_lora(
    model: Path,
    lora: Sequence[str],
    out: Path | None,
    checkpoint: str | None = None,
    device: str | None = None,
) -> Path:
    """Merge LoRA into a diffusion model, and save the result as a new model.

    Args:
        model: a saved model, a run or a checkpoint.
        lora: LoRA files, or models and runs with one, as PATH or PATH:SCALE, merged in this order.
        out: new folder for the model.
        checkpoint: which checkpoint of the run: best, last, a checkpoint's name or its step; None: the finished model.
        device: cpu, cuda, ...; None: the accelerator if there is one.

    Returns:
        The new model's folder.

    Raises:
        UserError: `out` is None, exists or cannot be written; there is no such model; or a LoRA does not fit it.
    """
    if out is None:
        raise UserError("--lora makes a model that is neither the run's nor the base; name its new folder with --out")
    if out.exists():
        raise UserError(f"{out} exists already; name a new folder for the model")
    check_writable(out.parent)
    files = lora_files(lora)
    pipeline = Pipeline.load(saved_model(model, checkpoint, device), device_named(device), lora=files)
    networks = filter(None, (pipeline.vae, pipeline.unet, pipeline.conditioner))
    with contiguous_weights(*networks):
        return write(out, pipeline.save)
