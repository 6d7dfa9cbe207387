"""Megabytes and seconds of our checkpoint beside accelerate's stock `save_state` of the same state.

python benchmarks/checkpoints.py [FOLDER]

The state is a network of 24 linear layers of 1024 x 1024 with AdamW's moments and averaged weights (about 400 MB).
Medians of several saves, in turns. The stock save hashes and flushes nothing, and writes at the final name; ours adds
both, so the table also shows the stock save with every file flushed, and our hashing alone.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm_kit.training import checkpoint
from ldm_kit.training.config import TrainConfig
from ldm_kit.training.ema import Ema, EmaConfig
from ldm_kit.training.loop import Trainer
from ldm_kit.training.optim import OptimConfig
from ldm_kit.training.task import LossTerm

TIMES = 7
WIDTH, LAYERS = 1024, 24


class Vectors:
    """Random vectors to train on."""

    fingerprint = "vectors"

    def __len__(self) -> int:
        return 4

    def __getitems__(self, places: Any) -> Tensor:
        return torch.ones(len(places), WIDTH)


class Stack:
    """A stack of linear layers, for the training loop."""

    def __init__(self) -> None:
        self.net = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
        self.modules: Mapping[str, nn.Module] = {"net": self.net}
        self.ema_modules = self.modules

    def set_ddp_modules(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Nothing to take."""

    def state(self) -> dict[str, Tensor]:
        """Nothing beside weights."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take back."""

    def losses(self, batch: Tensor, step: int) -> Iterator[LossTerm]:
        """Something with a gradient."""
        yield "net", self.net(batch).square().mean(), {}


class Averages:
    """The averages as accelerate stores a custom object."""

    def __init__(self, ema: Ema) -> None:
        self.ema = ema

    def state_dict(self) -> dict[str, Tensor]:
        """All of them."""
        return self.ema.averages["net"]

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Not needed here."""


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as name:
        folder, config = Path(name), TrainConfig(steps=1, batch_size=4)
        accelerator = Accelerator(cpu=True)
        trainer = Trainer(accelerator, Stack(), {"net": OptimConfig()}, config, EmaConfig(), seed=0)
        list(trainer.train(Vectors()))
        accelerator.prepare_optimizer(trainer.optimisers["net"])
        accelerator.register_for_checkpointing(Averages(trainer.ema))
        saves: dict[str, Callable[[Path], object]] = {
            "accelerate save_state": lambda path: accelerator.save_state(str(path)),
            "... with every file flushed": lambda path: flushed(accelerator, path),
            "ours": lambda path: trainer.save(path.parent, config, path.name),
        }
        seconds: dict[str, list[float]] = {"our verify, before older ones go": []}
        sizes: dict[str, float] = {}
        for turn in range(TIMES):
            for label, save in saves.items():
                path = folder / f"{turn}"
                seconds.setdefault(label, []).append(timed(lambda: save(path)))  # noqa: B023
                sizes[label] = megabytes(path)
                if label == "ours":
                    seconds["our verify, before older ones go"].append(timed(lambda: checkpoint.verify(path)))  # noqa: B023
                shutil.rmtree(path)
        for label, found in seconds.items():
            size = f"{sizes[label]:8.1f} MB" if label in sizes else " " * 11
            spread = f"{min(found):.2f} to {max(found):.2f}"
            print(f"{label:34} {size} {statistics.median(found):6.2f} s ({spread})")


def flushed(accelerator: Accelerator, path: Path) -> None:
    """The stock save, on the disk for sure."""
    accelerator.save_state(str(path))
    for file in path.rglob("*"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def timed(action: Callable[[], object]) -> float:
    """Seconds that something takes, with nothing left to write from before."""
    os.sync()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def megabytes(folder: Path) -> float:
    """What a folder takes."""
    return sum(path.stat().st_size for path in folder.rglob("*")) / 1e6


if __name__ == "__main__":
    main()
