"""The folder of a run: its lock, the resolved config, and the checkpoint to resume from."""

import contextlib
import json
import os
import platform
import socket
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import BaseModel, ValidationError

from ldm_kit import config as configs
from ldm_kit.config import UserError
from ldm_kit.locks import LockResult, try_lock
from ldm_kit.training import checkpoint
from ldm_kit.training.distributed import print_on_main

# Config keys that change no result, or only its rounding: paths, what is logged, sampled or saved, and how steps are
# computed. Pictures are compared by fingerprint, and models that a path names by digest, if the checkpoint has one.
_MAY_CHANGE = (
    *("run", "log", "latents", "sample", "train.workers", "train.checkpoint_every", "train.keep_last"),
    *("train.keep_best", "train.save_attempts", "train.max_skips", "train.overlap", "train.checkpointing"),
    *("train.micro_batch", "train.eval_batch", "train.compile", "train.attention", "train.channels_last"),
    *("train.deterministic", "train.tf32", "train.norms"),
    *(
        "data.cache",
        "data.path",
        "data.memory_limit",
        "data.on_bad",
        "data.on_bad_caption",
        "data.max_bad_share",
        "data.pixel_limit",
    ),
)


_LOCK = ".lock"  # file in a run's folder


class Lock:
    """Exclusive lock of a run's folder; the operating system releases it when the process ends, however it ends.

    If the file system has no file locks, a warning is printed, and the run goes on without a lock.

    Args:
        folder: the run's folder, which is created if needed; the file .lock in it is locked.

    Raises:
        UserError: another run holds the lock, or the folder cannot be written to or locked.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / _LOCK
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; name another run=FOLDER") from None
        try:
            result = try_lock(self.file)
        except OSError as error:
            self.file.close()
            raise UserError(f"cannot lock {self.path}: {error.strerror}; name another run=FOLDER") from None
        if result is LockResult.BUSY:
            self.file.seek(0)
            holder = self.file.read().strip() or "another process"
            self.file.close()
            raise UserError(f"{folder} is in use by {holder}; expected a folder that no other run writes to")
        if result is LockResult.UNSUPPORTED:
            print_on_main(
                f"warning: the file system of {folder}, or this system, has no file locks, so a second run in this "
                "folder would not be noticed; see that none is started"
            )
        if (register := getattr(os, "register_at_fork", None)) is not None:
            register(after_in_child=self.file.close)  # else a forked data-loader worker would hold the lock as well
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        self.file.flush()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


def missing_folders(folder: Path) -> list[Path]:
    """Return those of a folder and its parents that do not exist, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_after_error(
    made: Sequence[Path], kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> None:
    """Remove a run's folder that an error has left with nothing but its lock; without an error, do nothing.

    Args:
        made: folders that were made for the run, the innermost first: the run's own, and its parents.
        kind, error, trace: the error, as a context manager's `__exit__` gets it; None: there is none.
    """
    if kind is None:
        return
    with contextlib.suppress(OSError):  # it holds files, or another run has removed it
        for number, folder in enumerate(made):
            if number == 0 and [path.name for path in folder.iterdir()] == [_LOCK]:
                (folder / _LOCK).unlink()
            folder.rmdir()


def differing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys, such as optim.lr, whose values differ between two configs, given as nested mappings.

    `prefix` is put before each key.
    """
    keys: list[str] = []
    for key in sorted({*old, *new}):
        a, b, dotted = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            keys += differing(a, b, f"{dotted}.")
        elif a != b:
            keys.append(dotted)
    return keys


def resume_checkpoint(run: Path, resume: str | None) -> Path | None:
    """Return the folder of the checkpoint to resume from; None: start a new run.

    Args:
        run: the run's folder.
        resume: `latest`, the newest checkpoint that is not damaged (with a warning if there is none); or the folder of
            a checkpoint; None: a new run.

    Raises:
        UserError: `resume` names no intact checkpoint; or it is None, but the run already has checkpoints.
    """
    if resume is None:
        if checkpoint.steps(run):
            raise UserError(
                f"{run} already holds checkpoints; add --resume latest to go on, or name another run=FOLDER "
                '(in Python: resume="latest", or another "run" in the config)'
            )
        return None
    if resume != "latest":
        checkpoint.verify(Path(resume))
        return Path(resume)
    path = checkpoint.latest(run)
    if path is None:
        warnings.warn(f"no checkpoint in {run}; starting a new training run", stacklevel=2)
    return path


def check_same_config(folder: Path, config: BaseModel) -> None:
    """Check that a resumed run has the config of its checkpoint, except for keys that do not change results.

    The number of steps may differ if no learning rate depends on it. So may the path of a model of which the checkpoint
    holds a digest, because the trainer compares digests. A field that is missing in an old checkpoint counts as if it
    had the field's default value.

    Args:
        folder: the checkpoint's folder.
        config: the config of the resumed run.

    Raises:
        UserError: the configs differ; the message names every key that does.
    """
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    old = _with_defaults(state["config"], type(config))
    free = (*_MAY_CHANGE, *state.get("dependencies", {}), *(() if _lr_depends_on_length(old) else ("train.steps",)))
    changed = [
        key
        for key in differing(old, config.model_dump(mode="json"))
        if not any(key == name or key.startswith(f"{name}.") for name in free)
    ]
    if changed:
        verb = "differs" if len(changed) == 1 else "differ"
        raise UserError(f"cannot resume {folder}: {', '.join(changed)} {verb} from the config it was trained with")


def _with_defaults(config: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """Return a saved config (nested dicts) brought up to date: old keys renamed, missing fields set to defaults.

    `kind` is the config's class. A config that is not valid is returned unchanged.
    """
    try:
        return kind.model_validate(configs.rename_old_keys(kind, config)[0]).model_dump(mode="json")
    except ValidationError:
        return config


def _lr_depends_on_length(config: Mapping[str, Any]) -> bool:
    """Return whether any optimiser's learning rate depends on the number of steps of the run."""
    optimisers = (v for v in config.values() if isinstance(v, Mapping) and {"lr", "lr_schedule"} <= v.keys())
    return any(optimiser["lr_schedule"] != "constant" for optimiser in optimisers)


def versions() -> dict[str, str]:
    """Return, by name, the versions of Python and of the packages that results depend on."""
    names = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def write_config(folder: Path, config: BaseModel) -> None:
    """Write the resolved config, with all defaults filled in, to config.yaml in the run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    configs.write(config, folder / "config.yaml")
