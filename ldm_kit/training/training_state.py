"""Files of a checkpoint: weights, averages (EMA), optimisers, the task's own tensors, and trainer_state.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.training import checkpoint, distributed, optim
from ldm_kit.training.batches import BatchSplit
from ldm_kit.training.ema import Ema
from ldm_kit.training.run_folder import versions
from ldm_kit.training.task import BatchSource, DependentTask, StartedTask, Task

STATE_FILE, START_FILE = "trainer_state.json", "start.json"
TensorFiles = dict[str, Mapping[str, Tensor]]  # tensors by file name without its suffix


@dataclass(frozen=True, eq=False)
class TrainingState:
    """The parts of a trainer that a checkpoint saves and restores."""

    task: Task  # has the trained modules and a state of its own
    optimisers: Mapping[str, torch.optim.Optimizer]  # by name, as `optim.build_all` returns them
    ema: Ema  # averages of the weights
    scaler: Any  # torch.amp.GradScaler under fp16, else None

    def collect(self) -> tuple[TensorFiles, dict[str, Any]]:
        """Return {file name: {tensor name: tensor}} to save, and plain values of optimisers and scaler, for JSON."""
        files: TensorFiles = {f"model/{name}": module.state_dict() for name, module in self.task.modules.items()}
        groups: dict[str, Any] = {}
        for name, optimiser in self.optimisers.items():
            files[f"optimizer/{name}"], groups[name] = optim.dump(optimiser)
        files |= {f"ema/{name}": average for name, average in self.ema.averages.items()}
        if task_state := self.task.state():
            files["model/state"] = task_state
        scale = None if self.scaler is None else self.scaler.state_dict()
        return files, {"optimizer": groups, "scaler": scale}

    def save(self, folder: Path, values: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        """Write a checkpoint atomically: its folder is complete or absent.

        Args:
            folder: the checkpoint's folder.
            values: what `metadata` returned, to be stored in trainer_state.json.
            extra: contents of further JSON files, by file name.

        Raises:
            UserError: the checkpoint cannot be written.
        """
        files, optimiser_values = self.collect()
        start = self.task.start if isinstance(self.task, StartedTask) else None
        started = {} if start is None else {START_FILE: start}
        json_files = {STATE_FILE: {**values, **optimiser_values}, **started, **extra}
        checkpoint.write(folder, lambda draft: _write_files(draft, files, json_files), _size(files))

    def load(self, folder: Path, values: Mapping[str, Any]) -> None:
        """Restore weights, averages, optimisers and task state from the checkpoint in `folder`.

        `values` are the contents of the checkpoint's trainer_state.json.
        """
        print_other_versions(folder, values)
        for name, module in self.task.modules.items():
            module.load_state_dict(_read(folder, f"model/{name}"))
        for name, optimiser in self.optimisers.items():
            optim.restore(optimiser, _read(folder, f"optimizer/{name}"), values["optimizer"][name])
        self.ema.load({name: _read(folder, f"ema/{name}") for name in self.ema.modules})
        if (folder / "model" / "state.safetensors").exists():
            self.task.load_state(_read(folder, "model/state"))
        if self.scaler is not None and values["scaler"] is not None:
            self.scaler.load_state_dict(values["scaler"])


def load_averages(folder: Path, task: Task) -> None:
    """Load the checkpoint in `folder` into a task: its modules' weights, averaged (EMA) if there are averages.

    The tensors that the task has beside weights (`Task.state`) are loaded too.
    """
    for name, module in task.modules.items():
        module.load_state_dict(_read(folder, f"model/{name}"))
    for name, module in task.ema_modules.items():
        if (folder / f"ema/{name}.safetensors").exists():  # else ema.kind is none
            module.load_state_dict(_read(folder, f"ema/{name}"), strict=False)
    if (folder / "model" / "state.safetensors").exists():
        task.load_state(_read(folder, "model/state"))


def metadata(
    config: BaseModel,
    split: BatchSplit,
    step: int,
    source: str | None,
    *,
    task: Task,
    micro_batch: int | None,
) -> dict[str, Any]:
    """Return the metadata that a checkpoint stores in trainer_state.json, as values for JSON.

    Args:
        config: the run's config.
        split: division of a batch among ranks and into micro-batches.
        step: number of completed steps.
        source: fingerprint (hash) of the training data; None: training has not begun.
        task: the trained task, whose `dependencies` are stored if it is a `DependentTask`.
        micro_batch: size of a micro-batch, if it was halved because memory ran out; else None.
    """
    return {
        "step": step,
        "position": step * split.global_batch,
        "source": source,
        "dependencies": _dependencies(task),
        "world_size": split.world,
        "micro_batch": micro_batch,
        "config": config.model_dump(mode="json"),
        "versions": versions(),
    }


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the contents of a checkpoint's trainer_state.json: step, config, versions and more."""
    return json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))


def read_start(folder: Path) -> dict[str, Any] | None:
    """Return what a checkpoint holds of the trained weights that its run started from; None: it started from none."""
    path = folder / START_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def check_unchanged(
    step: int, data: BatchSource, task: Task, *, source: str | None, dependencies: Mapping[str, str]
) -> None:
    """Check that the data of a resumed run, and the models that are not trained, are the same as in its checkpoint.

    Args:
        step: step of the checkpoint, for the message.
        data: training data of the resumed run.
        task: the resumed task.
        source: fingerprint (hash) of the data of the checkpoint; None: the run is not resumed.
        dependencies: the checkpoint's digests of models that are not trained, by config key; empty in checkpoints of
            release 0.2 and before.

    Raises:
        UserError: the data have changed, or a tokenizer, a text encoder or another model that is not trained has.
    """
    if source not in (None, data.fingerprint):
        raise UserError(
            f"cannot go on from step {step}: the pictures, their captions or the autoencoder have changed since it was "
            "saved; train anew with another run=FOLDER"
        )
    new = _dependencies(task)
    changed = [name for name in sorted(dependencies.keys() & new.keys()) if dependencies[name] != new[name]]
    if changed:
        verb = "is not what it was" if len(changed) == 1 else "are not what they were"
        raise UserError(
            f"cannot go on from step {step}: {', '.join(changed)} {verb} when it was saved (another model, encoder or "
            "tokenizer); train anew with another run=FOLDER"
        )


def print_other_versions(folder: Path, saved: Mapping[str, Any]) -> None:
    """Print which packages have other versions now than when a checkpoint was saved.

    Args:
        folder: the checkpoint's folder.
        saved: contents of the checkpoint's trainer_state.json.
    """
    before, now = saved.get("versions", {}), versions()
    if others := [
        f"{name} {before[name]}, now {now[name]}" for name in now if before.get(name, now[name]) != now[name]
    ]:
        distributed.print_on_main(
            f"note: {folder.name} was saved with {'; '.join(others)}: later steps may differ from those of an "
            "uninterrupted run"
        )


def _dependencies(task: Task) -> dict[str, str]:
    return dict(task.dependencies) if isinstance(task, DependentTask) else {}


def _size(files: TensorFiles) -> int:
    """Return the number of bytes that the tensors of all `files` take on the disk."""
    return sum(value.numel() * value.element_size() for tensors in files.values() for value in tensors.values())


def _write_files(folder: Path, files: TensorFiles, json_files: Mapping[str, Any]) -> None:
    for name, tensors in files.items():
        checkpoint.save_tensors(tensors, folder / f"{name}.safetensors")
    for name, values in json_files.items():
        (folder / name).write_text(json.dumps(values, indent=1), encoding="utf-8")


def _read(folder: Path, name: str) -> dict[str, Tensor]:
    return checkpoint.load_tensors(folder / f"{name}.safetensors")
