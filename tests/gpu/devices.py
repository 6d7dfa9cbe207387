"""Devices of the tests marked gpu: CUDA, or in a rehearsal the CPU; and a training step made on one of them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.methods.base import Method
from ldm_kit.methods.run_config import RunConfig
from ldm_kit.methods.train import open_method
from ldm_kit.training import loop
from ldm_kit.training.accelerator import open_accelerator
from ldm_kit.training.loop import Trainer
from tests.nets.originals import perturbed
from tests.training.helpers import reset

REHEARSAL = os.environ.get("LDM_KIT_REHEARSE", "") == "1"  # the CPU in place of CUDA
CPU = torch.device("cpu")
LATER = 3  # step at which discriminators play and curricula have begun
T = TypeVar("T", bound=Callable[..., None])


def rehearsed(test: T) -> T:
    """Mark a test that the ordinary suite runs too, with the CPU in place of CUDA."""
    test.__dict__["rehearsed"] = True
    return test


def needs_cuda(device: torch.device) -> None:
    """Skip a rehearsal of what only CUDA has."""
    if device.type != "cuda":
        pytest.skip("only CUDA has this")


@contextmanager
def training_on(device: torch.device) -> Iterator[None]:
    """Let accelerate choose this device, and forget what it chose before and after."""
    reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", str(device.type == "cpu").lower())
        yield
    reset()


@contextmanager
def without_dropout() -> Iterator[None]:
    """Let dropout keep everything: CUDA draws other masks than the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "dropout", lambda x, *rest, **more: x)
        yield


@dataclass
class Step:
    """Losses, gradient norms and gradients of a training step, on the CPU; `peak`: bytes of CUDA memory, else 0."""

    losses: dict[str, float]
    norms: dict[str, float]
    gradients: dict[str, Tensor]
    scale: float = 1.0
    peak: int = 0

    def error(self, other: "Step", name: str) -> float:
        """Length of the difference of a module's gradients, relative to those of `other`."""
        return float((self.gradients[name] - other.gradients[name]).norm() / other.gradients[name].norm())


def trainer_of(config: RunConfig, folder: Path) -> Trainer:
    """A trainer at step LATER, with weights that are the same on every device, none of which is 0."""
    accelerator = open_accelerator(config.train.precision, folder)
    torch.manual_seed(0)
    method: Method[Any] = open_method(config, None, accelerator.device)
    method.precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    with torch.no_grad():
        for module in method.modules.values():
            perturbed(module).train()
    trainer = Trainer(accelerator, method, method.optim, config.train, config.ema, seed=config.seed)
    trainer.step = LATER
    return trainer


def training_step(config: RunConfig, device: torch.device, folder: Path, seed: int = 0) -> Step:
    """Losses and gradients of one step of the training loop on a device, without dropout.

    `seed` is that of torch's global generators, on which nothing may depend.
    """
    with training_on(device), without_dropout():
        trainer = trainer_of(config, folder)
        assert trainer.task.device.type == device.type
        if trainer.accelerator.scaler is not None:  # small enough to overflow nowhere
            trainer.accelerator.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
        return measured(trainer, device, seed)


def measured(trainer: Trainer, device: torch.device, seed: int = 0) -> Step:
    """One forward and backward pass of a trainer; the weights stay."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "derive_seed", lambda *address: derive_seed(seed, *map(str, address)))
        stats = trainer.forward_backward(trainer._batches(trainer.task.batches))
    assert stats is not None, "out of memory"
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    scaler = trainer.accelerator.scaler
    norms = trainer.grad_norms()
    gradients = {}
    for name, module in trainer.task.modules.items():
        parts = [p.grad.detach().flatten().float().cpu() for p in module.parameters() if p.grad is not None]
        gradients[name] = torch.cat(parts)
    losses = {name: float(sum(values)) for name, values in stats.losses.items()}
    scale = 1.0 if scaler is None else scaler.get_scale()
    return Step(losses, {name: float(norm) for name, norm in norms.items()}, gradients, scale, peak)
