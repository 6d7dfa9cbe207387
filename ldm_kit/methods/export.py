"""Turn a checkpoint into a saved model: what the run would have saved, had it ended there.

A checkpoint holds weights and averages, but neither tokenizer nor the statistics that some models are saved with; these
come from the run's pictures, so the method is built once more, on the same data, before the averages are put in.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ldm_kit import config as configs
from ldm_kit.config import UserError, cache_dir
from ldm_kit.data.images import Split
from ldm_kit.methods import check_run, find_method, method_of
from ldm_kit.methods.base import Method
from ldm_kit.methods.train import open_method
from ldm_kit.models.folder import device_named, model_folder
from ldm_kit.paths import check_writable
from ldm_kit.training import checkpoint as checkpoints
from ldm_kit.training.retention import BEST_FILE
from ldm_kit.training.training_state import STATE_FILE, check_unchanged, load_averages, read_metadata

_INDICES = ("model_index.json", "config.json")  # of models, and of an autoencoder alone


def export(
    run: Path | str,
    checkpoint: str | None = None,
    out: Path | str | None = None,
    overrides: Sequence[str] = (),
    *,
    data: Split | None = None,
    device: str | None = None,
) -> Path:
    """Write the model of a checkpoint, with averaged weights, as a finished run writes its own.

    Args:
        run: the run's folder, or that of one of its checkpoints.
        checkpoint: best, last, a checkpoint's name or its step; None: last.
        out: a folder that is not there yet; None: the run's model/ if it has none, else model-CHECKPOINT beside it.
        overrides: keys of the run's config that have changed since, such as `data.path=elsewhere`.
        data: the pictures of a run that was given them by a Python program.
        device: cpu, cuda, ...; None: the accelerator if there is one.

    Returns:
        The model's folder.

    Raises:
        UserError: no such checkpoint, one that is damaged, or one whose pictures or frozen parts are not what they
            were; `out` exists or cannot be written.
        AutoencoderError, ConditioningError: a part that the config names cannot be opened.
    """
    source = find_checkpoint(Path(run), checkpoint)
    folder = _default_out(source) if out is None else Path(out)
    if out is not None and folder.exists():
        raise UserError(f"{folder} exists already; name a new folder for the model")
    check_writable(folder.parent)
    checkpoints.verify(source)
    method = _method_of(source, overrides, data, device_named(device))
    method.save_model(folder)
    return folder


def saved_model(path: Path | str, checkpoint: str | None = None, device: str | None = None) -> Path:
    """Return the folder of a saved model: `path` itself, or that of a checkpoint, which is exported once to the cache.

    Args:
        path: a saved model, a run, or a checkpoint.
        checkpoint: of a run: best, last, a checkpoint's name or its step; None: the finished model.
        device: cpu, cuda, ...; None: the accelerator if there is one.

    Raises:
        UserError: a run without a model while `checkpoint` is None, or as `export`.
    """
    path = Path(path)
    if checkpoint is None and not is_checkpoint(path):
        if not any((model_folder(path) / name).exists() for name in _INDICES) and checkpoints.steps(path):
            raise UserError(
                f"the run in {path} has no finished model yet; --checkpoint last or best takes one of its checkpoints, "
                f"and `ldm-kit export {path}` makes a model of it"
            )
        return path
    source = find_checkpoint(path, checkpoint)
    folder = cache_dir() / "models" / _manifest_digest(source)[:24]
    return folder if folder.is_dir() else export(source, out=folder, device=device)


def is_checkpoint(path: Path) -> bool:
    """Return whether a folder is a checkpoint's; its contents are not checked."""
    return (path / STATE_FILE).is_file()


def find_checkpoint(run: Path, name: str | None) -> Path:
    """Return the folder of a checkpoint.

    Args:
        run: the run's folder or, without a name, the checkpoint's own.
        name: best, last, a checkpoint's name or its step; None: last.

    Raises:
        UserError: there is none.
    """
    if is_checkpoint(run):
        if name is not None:
            raise UserError(f"{run} is a checkpoint already; leave --checkpoint {name} out, or name the run's folder")
        return run
    if name == "best":
        return _best(run)
    if name in (None, "last"):
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            path = checkpoints.latest(run)
    else:
        path = checkpoints.steps(run).get(int(name)) if name.isdecimal() else run / Path(name).name
    if path is None or not is_checkpoint(path):
        names = [folder.name for folder in checkpoints.steps(run).values()]
        which = "" if name in (None, "last") else f" {name}"
        raise UserError(
            f"{run} holds no checkpoint{which}; " + (f"known: {', '.join(names)}" if names else "none at all")
        )
    return path


def _best(run: Path) -> Path:
    """Return the best checkpoint of a run, by its best.json; raises UserError where none is recorded."""
    try:
        path = run / Path(str(json.loads((run / BEST_FILE).read_text(encoding="utf-8"))["checkpoint"])).name
    except (OSError, ValueError, KeyError, TypeError):
        path = None
    if path is None or not is_checkpoint(path):
        raise UserError(f"{run} has no best checkpoint: its run keeps one where train.keep_best names a figure")
    return path


def _default_out(source: Path) -> Path:
    first = source.parent / "model"
    return first.with_name(f"model-{source.name}") if first.exists() else first


def _manifest_digest(source: Path) -> str:
    try:
        return hashlib.sha256((source / checkpoints.MANIFEST).read_bytes()).hexdigest()
    except OSError:
        raise UserError(f"{source} is no complete checkpoint: its {checkpoints.MANIFEST} is missing") from None


def _method_of(source: Path, overrides: Sequence[str], data: Split | None, device: torch.device) -> Method[Any]:
    """Build the method of a checkpoint, and put its averaged weights in."""
    saved = read_metadata(source)
    tree = configs.rename_old_keys(find_method(method_of(saved["config"])).Config, saved["config"])[0]
    for override in overrides:
        configs.assign(tree, override)
    config = check_run(tree, f"{source / STATE_FILE}: config")
    try:
        method = open_method(config, data, device)
        check_unchanged(
            saved["step"], method.batches, method, source=saved["source"], dependencies=saved.get("dependencies", {})
        )
    except UserError as error:
        raise UserError(
            f"cannot make a model of {source}, which needs the run's pictures and what else it was trained on: {error}"
        ) from None
    for module in method.modules.values():
        module.to(device)
    method.set_ddp_modules(method.modules)
    load_averages(source, method)
    return method
