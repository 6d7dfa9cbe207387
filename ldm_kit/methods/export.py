"""Export of a checkpoint: save the model that the run would have saved if it had ended at that step.

A checkpoint holds weights and their averages, but not the tokenizer or the data statistics that some models are saved
with. These are computed from the run's pictures. So the method is built again from the same pictures, and then the
averaged weights of the checkpoint are loaded into its networks.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
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
from ldm_kit.methods.train import open_method, open_start
from ldm_kit.models.directions import FILE as DIRECTIONS
from ldm_kit.models.folder import device_named
from ldm_kit.models.hub import HUB_NAME, locate_pinned
from ldm_kit.paths import check_writable
from ldm_kit.training import checkpoint as checkpoints
from ldm_kit.training.retention import BEST_FILE
from ldm_kit.training.training_state import STATE_FILE, check_unchanged, load_averages, read_metadata

KEPT, KEPT_FOR = 8, 3600.0  # models of checkpoints in the cache, and seconds in which none is removed after its use
_log = logging.getLogger("ldm_kit.models")
_INDICES = ("model_index.json", "config.json")  # a saved pipeline has the first, an autoencoder the second


def export(
    run: Path | str,
    checkpoint: str | None = None,
    out: Path | str | None = None,
    overrides: Sequence[str] = (),
    *,
    data: Split | None = None,
    device: str | None = None,
) -> Path:
    """Save a checkpoint's model, with averaged weights, as a finished run saves its model.

    Args:
        run: folder of a run, or of one of its checkpoints.
        checkpoint: best, last, a checkpoint's name or its step; None: last.
        out: new folder for the model; None: model/ in the run's folder or, if that exists, model-CHECKPOINT.
        overrides: new values of keys in the run's config, such as `data.path=elsewhere` if the pictures have moved.
        data: the run's pictures, if a Python program passed them to `train`; None: those of the config.
        device: cpu, cuda, ...; None: the accelerator if there is one.

    Returns:
        The model's folder.

    Raises:
        UserError: the checkpoint does not exist or is damaged; the run's pictures or frozen models have changed; or
            `out` exists or cannot be written.
        AutoencoderError, ConditioningError: a model that the config names cannot be opened.
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
    """Return the folder of a saved model: `path` itself or, for a checkpoint, a folder in the cache.

    A checkpoint is exported to the cache the first time that it is asked for. The models in the cache that were not
    used for longest are then removed, see `_remove_unused`.

    Args:
        path: folder of a saved model, a run, or a checkpoint; or a model on the Hub, owner/name or owner/name@REVISION.
        checkpoint: which checkpoint of the run: best, last, a checkpoint's name or its step; None: the finished model.
        device: cpu, cuda, ...; None: the accelerator if there is one.

    Raises:
        UserError: `checkpoint` is None and the run has checkpoints but no finished model; or the checkpoint cannot be
            exported, see `export`; or there is neither such a folder nor such a model on the Hub.
    """
    path = Path(path)
    if path.suffix in (".safetensors", ".ckpt") and path.is_file():
        raise UserError(
            f"{path} is one file; `ldm-kit convert single-file {path} FOLDER --config ...` makes a model of it"
        )
    if checkpoint is None and not is_checkpoint(path):
        if not path.exists() and HUB_NAME.fullmatch(str(path).partition("@")[0]):
            return locate_pinned(str(path), "the model").folder
        finished = any((folder / name).exists() for folder in (path, path / "model") for name in _INDICES)
        if not finished and checkpoints.steps(path):
            raise UserError(
                f"the run in {path} has no finished model yet; --checkpoint last or best takes one of its checkpoints, "
                f"and `ldm-kit export {path}` makes a model of it"
            )
        return path
    source = find_checkpoint(path, checkpoint)
    folder = cache_dir() / "models" / _manifest_digest(source)[:24]
    if not folder.is_dir():
        export(source, out=folder, device=device)
        _remove_unused(folder.parent)
    with contextlib.suppress(OSError):  # a read-only cache
        os.utime(folder)
    return folder


def _remove_unused(cache: Path) -> None:
    """Remove the least recently used models from a cache folder of exported checkpoints.

    The `KEPT` (8) models used last stay, as do all that were used within the last `KEPT_FOR` seconds (an hour), and all
    with learned attribute directions, which could not be made again from the checkpoint. The modification time of a
    model's folder says when it was used.
    """
    by_use = sorted(((path.stat().st_mtime, path) for path in cache.iterdir() if path.is_dir()), reverse=True)
    for used, folder in by_use[KEPT:]:
        if time.time() - used > KEPT_FOR and not (folder / DIRECTIONS).exists():
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)
                _log.warning("removed %s, the model of a checkpoint, which is made again when it is asked for", folder)


def is_checkpoint(path: Path) -> bool:
    """Return whether `path` is a checkpoint: a folder with a trainer_state.json; the rest is not checked."""
    return (path / STATE_FILE).is_file()


def find_checkpoint(run: Path, name: str | None) -> Path:
    """Return the folder of a checkpoint.

    Args:
        run: folder of a run; or of a checkpoint, if `name` is None.
        name: best, last, a checkpoint's name or its step; None: last.

    Raises:
        UserError: the run has no such checkpoint; or `run` is a checkpoint itself and `name` is not None.
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
    """Return the checkpoint that the run's best.json names; UserError: the file or the checkpoint is missing."""
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
    """Build the training method of a checkpoint's run, and load the checkpoint's averaged weights into its networks.

    Args:
        source: the checkpoint's folder.
        overrides: new values of keys in the run's config, such as `data.path=elsewhere`.
        data: the run's pictures; None: those of the config.
        device: where the networks are put.

    Raises:
        UserError: the pictures, or other things that the run was trained on, cannot be opened or have changed.
    """
    saved = read_metadata(source)
    tree = configs.rename_old_keys(find_method(method_of(saved["config"])).Config, saved["config"])[0]
    for override in overrides:
        configs.assign(tree, override)
    config = check_run(tree, f"{source / STATE_FILE}: config")
    try:
        method = open_method(config, data, device, start=open_start(config, source))
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
