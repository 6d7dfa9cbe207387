"""Protocols of the training loop: a task, which has the losses, and a batch source; and the records of a step."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ldm_kit.training.batches import SampleIndex, to_device

LossTerm = tuple[str, Tensor, Mapping[str, Tensor]]  # (module name, its mean loss over the micro-batch, scalars to log)


class Task(Protocol):
    """What the loop trains: modules, and their losses on a batch."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """Modules by name, each with optimisers of its own; the loop may wrap them for DDP (`set_ddp_modules`)."""
        ...

    @property
    def ema_modules(self) -> Mapping[str, nn.Module]:
        """Modules whose weights are averaged (EMA), by the folder that they are saved in."""
        ...

    def set_ddp_modules(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Store the modules as prepared for this run (wrapped by DDP, where it is used); `losses` must call these."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return tensors beside weights that a checkpoint must hold."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors that `state` returned."""
        ...

    def losses(self, batch: Any, step: int) -> Iterator[LossTerm]:
        """Yield one loss for each module; the loop runs its backward pass before it asks for the next one.

        An attempt at a step may fail (out of memory, loss not finite) and be repeated, so nothing but gradients and
        buffers may change here. A task that changes more is a `StatefulTask`.

        Args:
            batch: what the batch source returned for a micro-batch, on the device.
            step: number of completed steps (0 = this is the first).
        """
        ...


@runtime_checkable
class StatefulTask(Protocol):
    """A task that changes weights or state otherwise than by gradients: `losses` collects, `after_step` applies."""

    def after_step(self, step: int, optimisers: Mapping[str, Optimizer]) -> None:
        """Apply what `losses` collected from the micro-batches; the optimisers, by name, have made their update."""
        ...

    def discard_step(self) -> None:
        """Forget what `losses` collected: the attempt at this step failed."""
        ...


@runtime_checkable
class DependentTask(Protocol):
    """A task that depends on models or tokenizers that it does not train and that its data's fingerprint leaves out."""

    @property
    def dependencies(self) -> Mapping[str, str]:
        """Digests by the config keys that name them; a resumed run must have the same, from whatever folder."""
        ...


@runtime_checkable
class WholeBatchTask(Protocol):
    """A task whose losses are not means over samples: it sees all micro-batches of a step before `losses` is called."""

    def needs_whole_batch(self, step: int) -> bool:
        """Return whether that is so at a step; it must be the same on every rank."""
        ...

    def see_whole_batch(self, batches: Iterable[Any], step: int) -> None:
        """Measure what `losses` needs over this rank's micro-batches, which come on the device, one after another."""
        ...


def show_whole_batch(task: Task, batches: Iterator[Any], count: int, step: int, device: torch.device) -> Iterator[Any]:
    """Return the `count` micro-batches of a step, all of them shown to the task before if it needs that."""
    if count == 1 or not isinstance(task, WholeBatchTask) or not task.needs_whole_batch(step):
        return batches
    held = list(islice(batches, count))
    task.see_whole_batch((to_device(batch, device) for batch in held), step)
    return iter(held)


class BatchSource(Protocol):
    """A data set that returns whole batches."""

    @property
    def fingerprint(self) -> str:
        """Hash of all that it holds; a resumed run must have the same."""
        ...

    def __len__(self) -> int: ...

    def __getitems__(self, samples: Sequence[SampleIndex], /) -> Any:
        """Return the batch for (position, index) pairs: a tensor, or a dict of tensors."""
        ...


@dataclass
class StepStats:
    """Losses of one step on this rank: means to log, and each module's loss in each micro-batch."""

    logs: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, module: str, loss: Tensor, logs: Mapping[str, Tensor], accumulation: int) -> None:
        """Add a loss term of one of `accumulation` micro-batches; logs become means over the micro-batches."""
        self.losses.setdefault(module, []).append(loss.detach())
        for name, value in {f"{module}_loss": loss, **logs}.items():
            self.logs[name] = self.logs.get(name, torch.zeros_like(value)).detach() + value.detach() / accumulation


@dataclass(frozen=True)
class TrainStep:
    """A completed step: its number (1 = the first), learning rate, gradient norms and logs (scalars on the device)."""

    number: int
    lr: float
    norms: Mapping[str, Tensor]
    logs: Mapping[str, Tensor]
