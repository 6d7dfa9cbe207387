"""A task of one linear layer, for what does not depend on what is trained."""

import os

import torch
from accelerate import Accelerator
from torch import nn

from ldm_kit.config import UserError
from ldm_kit.training.config import TrainConfig
from ldm_kit.training.ema import EmaConfig
from ldm_kit.training.loop import Trainer
from ldm_kit.training.optim import OptimConfig, dump
from tests.training.helpers import digest, reset


class Numbers:
    """A set of 12 random vectors."""

    fingerprint = "numbers"

    def __init__(self) -> None:
        self.x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, places):
        return {"x": self.x[[index for _, index in places]], "position": torch.tensor([p for p, _ in places])}


class Toy:
    """Make a linear layer's output small; `spoil(loss, step)` may change the loss."""

    def __init__(self, spoil=lambda loss, step: loss) -> None:
        torch.manual_seed(0)
        self.net, self.spoil = nn.Linear(4, 4), spoil
        self.modules = self.ema_modules = {"net": self.net}

    def set_ddp_modules(self, wrapped):
        self.wrapped = wrapped["net"]

    def state(self):
        return {}

    def load_state(self, state):
        pass

    def losses(self, batch, step):
        yield "net", self.spoil(self.wrapped(batch["x"]).square().mean(), step), {}


def trainer(task, **config) -> Trainer:
    """A trainer of a toy."""
    reset()
    wanted = TrainConfig(**{"steps": 6, "batch_size": 4, **config})
    return Trainer(Accelerator(cpu=True), task, {"net": OptimConfig(lr=0.1, warmup=0)}, wanted, EmaConfig(), seed=1)


def train_into_nan(step: int, only_rank: int = 0) -> tuple[str, str, str]:
    """What the run says when its loss becomes NaN at a step, and its weights before and after that."""

    def spoil(loss, index):
        bad = index + 1 == step and int(os.environ.get("RANK", "0")) == only_rank
        return loss * float("nan") if bad else loss

    running, weights = trainer(Toy(spoil)), []
    try:
        for _ in running.train(Numbers()):
            weights.append(everything(running))
    except UserError as error:
        return str(error), weights[-1], everything(running)
    raise AssertionError("nothing was refused")


def everything(running: Trainer) -> str:
    """Sha256 of weights, averages and moments."""
    moments, _ = dump(running.optimisers["net"])
    averages = {f"ema {name}": value for name, value in running.ema.averages["net"].items()}
    return digest({**running.task.modules["net"].state_dict(), **moments, **averages})
