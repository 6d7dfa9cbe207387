"""A run's folder: one owner at a time, the resolved config, logs, checkpoints, and where to resume."""

import fcntl
import json
import os
import platform
import socket
import time
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import BaseModel, ValidationError

from ldm_kit import config as configs
from ldm_kit.config import UserError
from ldm_kit.training import checkpoint

# Where things lie, how often they are shown or kept; what lies there is compared by fingerprint when training goes on.
_MAY_CHANGE = (
    *("run", "log", "latents", "train.workers", "train.checkpoint_every", "train.keep_last", "train.keep_best"),
    *("train.save_attempts", "train.max_skips", "train.overlap", "train.checkpointing"),
    *("data.cache", "data.path", "data.memory_limit"),
)


class Lock:
    """The output folder belongs to one run at a time; the system frees it when its holder dies, however it dies."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; name another run=FOLDER") from None
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.seek(0)
            holder = self.file.read().strip() or "another process"
            self.file.close()
            raise UserError(f"{folder} is in use by {holder}; expected a folder that no other run writes to") from None
        os.register_at_fork(after_in_child=self.file.close)  # else a data-loader worker would hold on to it as well
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        self.file.flush()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


def differing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two plain config trees."""
    found: list[str] = []
    for key in sorted({*old, *new}):
        a, b, dotted = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differing(a, b, f"{dotted}.")
        elif a != b:
            found.append(dotted)
    return found


def resume_checkpoint(run: Path, resume: str | None) -> Path | None:
    """The checkpoint to go on from: None starts anew.

    `latest` takes the newest that verifies and says so if there is none; a path must verify, and never falls back.

    Raises:
        UserError: the path is no good checkpoint, or the run already holds checkpoints and `resume` was not asked for.
    """
    if resume is None:
        if checkpoint.steps(run):
            raise UserError(
                f"{run} already holds checkpoints; add --resume latest to go on, or name another run=FOLDER"
            )
        return None
    if resume != "latest":
        checkpoint.verify(Path(resume))
        return Path(resume)
    found = checkpoint.latest(run)
    if found is None:
        warnings.warn(f"no checkpoint in {run}; starting a new training run", stacklevel=2)
    return found


def check_same_config(folder: Path, config: BaseModel) -> None:
    """Refuse to resume under a config that would change the result. A run may be prolonged if its rate is constant.

    A field that is younger than the checkpoint counts as what it is when left out, so its default must be what was done
    before there was such a field.

    Raises:
        UserError: naming every differing key.
    """
    old = _completed(json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["config"], type(config))
    free = _MAY_CHANGE if _decays(old) else (*_MAY_CHANGE, "train.steps")
    changed = [
        key
        for key in differing(old, config.model_dump(mode="json"))
        if not any(key == name or key.startswith(f"{name}.") for name in free)
    ]
    if changed:
        verb = "differs" if len(changed) == 1 else "differ"
        raise UserError(f"cannot resume {folder}: {', '.join(changed)} {verb} from the config it was trained with")


def _completed(config: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """A saved config with the fields that it does not know at their defaults; as it is where it has become invalid."""
    try:
        return kind.model_validate(configs.rename_old_keys(kind, config)[0]).model_dump(mode="json")
    except ValidationError:
        return config


def _decays(config: Mapping[str, Any]) -> bool:
    """Whether any optimiser's learning rate falls towards the last step, which then must stay where it is."""
    optimisers = (v for v in config.values() if isinstance(v, Mapping) and {"lr", "lr_schedule"} <= v.keys())
    return any(optimiser["lr_schedule"] != "constant" for optimiser in optimisers)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines of a metrics.jsonl that lie after `step`, which the resumed run writes again."""
    if not path.exists():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
    draft = path.with_name(f".tmp-{path.name}")
    draft.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    draft.replace(path)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def write_config(folder: Path, config: BaseModel) -> None:
    """Write the resolved config beside the results."""
    folder.mkdir(parents=True, exist_ok=True)
    configs.write(config, folder / "config.yaml")
