"""Build a cascade: check that models fit together, and copy them into one folder."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm_kit.config import UserError
from ldm_kit.methods.export import saved_model
from ldm_kit.models.cascade import STAGES, Cascade, check_stages
from ldm_kit.models.folder import CASCADE, INDEX, model_folder
from ldm_kit.models.manifest import update_manifest
from ldm_kit.models.options import ResolvedOptions, SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.sampler_options import SamplerOptions
from ldm_kit.models.saved_sampling import FILE, SAMPLING, SavedSampling
from ldm_kit.models.stage_options import values_by_stage, with_values
from ldm_kit.paths import check_writable
from ldm_kit.training import checkpoint as checkpoints
from ldm_kit.training.checkpoint import MANIFEST

_SUFFIXES = (".json", ".safetensors", ".txt", ".model")  # files of a model without a manifest: no pickles, no code


def build_cascade(models: Sequence[Path | str], out: Path | str, by_stage: Sequence[str] = ()) -> Path:
    """Check that models fit together, and copy them into a new folder, a cascade.

    Args:
        models: the base model, then the models that upscale, in order: folders of saved models, runs or checkpoints, or
            models on the Hub.
        out: the new folder.
        by_stage: sampling options, OPTION=A/B/... each with a value for each model, which the cascade is sampled with
            where they are left out; the models' own stay otherwise.

    Returns:
        The folder. Each model is in a sub-folder of its own, stage_1, stage_2, ..., and opens by itself as well.

    Raises:
        UserError: `out` exists or cannot be written; a model cannot be opened; two models do not fit together; or an
            option does not fit its model.
    """
    folder = Path(out)
    if folder.exists():
        raise UserError(f"{folder} exists already; name a new folder for the cascade")
    check_writable(folder.parent)
    values = values_by_stage(by_stage, len(models))
    folders = [model_folder(saved_model(model)) for model in models]
    stages = [Pipeline.load(each) for each in folders]
    check_stages(stages, [str(model) for model in models])
    resolved = Cascade(tuple(stages)).resolve(with_values([SamplingOptions() for _ in stages], values))

    def fill(draft: Path) -> None:
        names = [f"stage_{number}" for number in range(1, len(models) + 1)]
        for name, source, own, options in zip(names, folders, values, resolved, strict=True):
            _copy(source, draft / name)
            if own:
                _save_options(draft / name, own, options)
        index = {"_class_name": CASCADE, STAGES: names}
        (draft / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    size = sum(path.stat().st_size for source in folders for path in _files(source))
    return checkpoints.write(folder, fill, size)


def _files(model: Path) -> list[Path]:
    """Return the files of a saved model: those of its manifest and the manifest, or else all weights and settings."""
    if (model / MANIFEST).is_file():
        listed = json.loads((model / MANIFEST).read_text(encoding="utf-8"))["files"]
        return [*(model / name for name in listed), model / MANIFEST]
    paths = (path for path in sorted(model.rglob("*")) if path.suffix in _SUFFIXES and path.is_file())
    return [path for path in paths if not any(name.startswith(".") for name in path.relative_to(model).parts)]


def _copy(model: Path, out: Path) -> None:
    for path in _files(model):
        target = out / path.relative_to(model)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _save_options(folder: Path, values: Mapping[str, Any], resolved: ResolvedOptions) -> None:
    """Write the sampling options `values`, and those saved before, to a model's folder, as they were resolved."""
    saved, settings = SavedSampling.read(folder), resolved.settings()
    section = {name: settings[name] for name in SamplerOptions.model_fields if name in {**saved.sampling, **values}}
    SavedSampling({**saved.sections, SAMPLING: {**saved.sampling, **section}}).write(folder)
    update_manifest(folder, [FILE])
