"""What a checkpoint holds of training: weights, averages, optimisers, the task's own tensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_kit.training import checkpoint, optim
from ldm_kit.training.ema import Ema
from ldm_kit.training.task import Task

Files = dict[str, Mapping[str, Tensor]]  # tensors by file


@dataclass(frozen=True, eq=False)
class State:
    """The parts of a trainer that a checkpoint brings back."""

    task: Task
    optimisers: Mapping[str, torch.optim.Optimizer]
    ema: Ema
    scaler: Any  # torch.amp.GradScaler under fp16, else None

    def files(self) -> tuple[Files, dict[str, Any]]:
        """Tensors by file name, and the plain values that go with them."""
        files: Files = {f"model/{name}": module.state_dict() for name, module in self.task.modules.items()}
        groups: dict[str, Any] = {}
        for name, optimiser in self.optimisers.items():
            files[f"optimizer/{name}"], groups[name] = optim.dump(optimiser)
        files |= {f"ema/{part}": average for part, average in self.ema.averages.items()}
        if extra := self.task.state():
            files["model/state"] = extra
        scale = None if self.scaler is None else self.scaler.state_dict()
        return files, {"optimizer": groups, "scaler": scale}

    def load(self, folder: Path, plain: Mapping[str, Any]) -> None:
        """Take back what `files` gave, out of a checkpoint's folder and its plain values."""
        for name, module in self.task.modules.items():
            module.load_state_dict(_read(folder, f"model/{name}"))
        for name, optimiser in self.optimisers.items():
            optim.restore(optimiser, _read(folder, f"optimizer/{name}"), plain["optimizer"][name])
        self.ema.load({part: _read(folder, f"ema/{part}") for part in self.ema.parts})
        if (folder / "model" / "state.safetensors").exists():
            self.task.load_state(_read(folder, "model/state"))
        if self.scaler is not None and plain["scaler"] is not None:
            self.scaler.load_state_dict(plain["scaler"])


def size(files: Files) -> int:
    """Bytes that the tensors take on the disk."""
    return sum(value.numel() * value.element_size() for tensors in files.values() for value in tensors.values())


def fill(draft: Path, files: Files, texts: Mapping[str, Any]) -> None:
    """Write tensors as safetensors, and plain values as JSON, into a folder."""
    for name, tensors in files.items():
        checkpoint.save_tensors(tensors, draft / f"{name}.safetensors")
    for name, plain in texts.items():
        (draft / name).write_text(json.dumps(plain, indent=1), encoding="utf-8")


def _read(folder: Path, name: str) -> dict[str, Tensor]:
    return checkpoint.load_tensors(folder / f"{name}.safetensors")
