"""Table of our checkpoint's size and time beside accelerate's stock `save_state` of the same state.

The state is a network of 24 linear layers of 1024 x 1024 with AdamW's moments and averaged weights (about 400 MB). The
stock save hashes and flushes nothing, and writes at the final name; the table also shows it with every file flushed,
and our verification alone.
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks.speed.sections import Bench
from benchmarks.tables import markdown
from ldm_kit.training import checkpoint
from ldm_kit.training.config import TrainConfig
from ldm_kit.training.ema import EmaConfig
from ldm_kit.training.loop import Trainer
from ldm_kit.training.optim import OptimConfig
from ldm_kit.training.task import LossTerm

WIDTH, LAYERS = 1024, 24


class Vectors:
    """Batch source of four equal vectors of ones, [WIDTH] each."""

    fingerprint = "vectors"

    def __len__(self) -> int:
        return 4

    def __getitems__(self, indices: Any) -> Tensor:
        return torch.ones(len(indices), WIDTH)


class LinearStack:
    """A task for the training loop: a stack of `layers` linear layers of WIDTH x WIDTH."""

    def __init__(self, layers: int) -> None:
        self.net = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
        self.modules: Mapping[str, nn.Module] = {"net": self.net}
        self.ema_modules = self.modules

    def set_ddp_modules(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Ignore the modules wrapped by DDP: there is only one process."""

    def state(self) -> dict[str, Tensor]:
        """Return {}: a checkpoint needs no tensors beside the weights."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing: `state` returned no tensors."""

    def losses(self, batch: Tensor, step: int) -> Iterator[LossTerm]:
        """Yield the loss term of the network: the mean square of its output."""
        yield "net", self.net(batch).square().mean(), {}


def checkpoints(bench: Bench) -> str:
    """Time checkpoints by ldm_kit and by accelerate of the same state, in turns; return a Markdown table."""
    layers = 2 if bench.quick else LAYERS
    accelerator, config = Accelerator(cpu=True), TrainConfig(steps=1, batch_size=4)
    trainer = Trainer(accelerator, LinearStack(layers), {"net": OptimConfig()}, config, EmaConfig(), seed=0)
    list(trainer.train(Vectors()))
    accelerator.prepare_optimizer(trainer.optimisers["net"])
    averages = {"state_dict": lambda: trainer.ema.averages["net"], "load_state_dict": lambda state: None}
    accelerator.register_for_checkpointing(SimpleNamespace(**averages))
    actions: dict[str, Callable[[Path], object]] = {
        "accelerate save_state": lambda path: accelerator.save_state(str(path)),
        "... with every file flushed": lambda path: _save_flushed(accelerator, path),
        "ours": lambda path: trainer.save(path.parent, config, path.name),
        "our verification, before older ones are removed": checkpoint.verify,
    }
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    sizes: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=bench.space.folder) as folder:
        for block in range(bench.plan.blocks):
            for name, action in actions.items():
                path = Path(folder) / f"{block}"
                if action is not checkpoint.verify:
                    shutil.rmtree(path, ignore_errors=True)
                seconds[name].append(_time(action, path))
                sizes[name] = "" if action is checkpoint.verify else f"{_megabytes(path):.1f}"
    rows = [
        (name, sizes[name], f"{statistics.median(times):.2f}", f"{min(times):.2f} to {max(times):.2f}")
        for name, times in seconds.items()
    ]
    title = f"## Checkpoints\n\n{layers} linear layers of {WIDTH} x {WIDTH}, AdamW's moments, averages:"
    return f"{title}\n\n{markdown(('', 'megabytes', 'seconds', 'range'), rows)}"


def _save_flushed(accelerator: Accelerator, path: Path) -> None:
    accelerator.save_state(str(path))
    for file in path.rglob("*"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _time(action: Callable[[Path], object], path: Path) -> float:
    os.sync()  # nothing is left to write from before
    start = time.perf_counter()
    action(path)
    return time.perf_counter() - start


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*")) / 1e6
