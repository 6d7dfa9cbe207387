"""Protocols for what the training loop runs (tasks and batch sources), and the results of a training step."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ldm_kit.training.batches import Mixture, SampleIndex, to_device

LossTerm = tuple[str, Tensor, Mapping[str, Tensor]]  # (module name, mean loss over a micro-batch, scalars to log)


class Task(Protocol):
    """A task that the training loop can train: modules, and their losses on a batch."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """Trained modules by name; the loop gives each module its own optimisers, and may wrap each for DDP."""
        ...

    @property
    def ema_modules(self) -> Mapping[str, nn.Module]:
        """Modules whose weights are averaged (EMA), by the name of their folder in the saved model."""
        ...

    def set_ddp_modules(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Store `wrapped`, the modules by name, wrapped by DDP if it is used; `losses` must call these."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return, by name, the tensors that a checkpoint must hold beside the weights."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors that `state` returned."""
        ...

    def losses(self, batch: Any, step: int) -> Iterator[LossTerm]:
        """Yield (module name, loss, scalars to log) for each module; each backward pass runs before the next loss.

        An attempt at a step may fail (out of memory, loss not finite) and be repeated, so nothing but gradients and
        buffers may change here. A task that changes more is a `StatefulTask`.

        Args:
            batch: a micro-batch, as the batch source returned it, on the device.
            step: number of steps completed before this one.
        """
        ...


@runtime_checkable
class StatefulTask(Protocol):
    """A task with state that is not trained by gradients, such as running statistics.

    Its `losses` only collects values from each micro-batch; `after_step` changes the state by them.
    """

    def after_step(self, step: int, optimisers: Mapping[str, Optimizer]) -> None:
        """Change the state by what `losses` collected from this step's micro-batches, after the optimisers' update.

        `step` is the number of steps completed before this one; `optimisers` are by name (MODULE, MODULE.muon).
        """
        ...

    def discard_step(self) -> None:
        """Discard what `losses` collected, because the attempt at this step failed."""
        ...


@runtime_checkable
class DependentTask(Protocol):
    """A task that uses models or tokenizers which are not trained, and which the data's fingerprint does not cover."""

    @property
    def dependencies(self) -> Mapping[str, str]:
        """Hashes of models that are not trained, by the config key of each; a resumed run must have the same."""
        ...


@runtime_checkable
class StartedTask(Protocol):
    """A task that may have started from trained weights, whose networks its config does not describe in full."""

    @property
    def start(self) -> Mapping[str, Any] | None:
        """JSON values from which a resumed run builds the same networks; None: the task started from random weights."""
        ...


@runtime_checkable
class MixedTask(Protocol):
    """A task whose data may have several parts, each with a share of the training samples."""

    @property
    def mixture(self) -> Mixture | None:
        """The order of the samples of the parts; None: the data have no parts."""
        ...


@runtime_checkable
class WholeBatchTask(Protocol):
    """A task whose loss is no mean over samples, so that `losses` depends on all micro-batches of a step."""

    def needs_whole_batch(self, step: int) -> bool:
        """Return whether the step after `step` completed ones needs `see_whole_batch`; the same on every rank."""
        ...

    def see_whole_batch(self, batches: Iterable[Any], step: int) -> None:
        """Compute and keep what `losses` must know of a whole step, before `losses` is called for its micro-batches.

        `batches` are all micro-batches of this rank in the step, on the device; `step` is the number of steps completed
        before it.
        """
        ...


def show_whole_batch(task: Task, batches: Iterator[Any], count: int, step: int, device: torch.device) -> Iterator[Any]:
    """Return a step's `count` micro-batches; if the task needs it, call its `see_whole_batch` with all of them first.

    Args:
        task: the task; only a `WholeBatchTask` can need it.
        batches: iterator over micro-batches, from which the next `count` are taken.
        count: number of micro-batches in a step.
        step: number of steps completed before this one.
        device: device to which the micro-batches are moved for `see_whole_batch`.
    """
    if count == 1 or not isinstance(task, WholeBatchTask) or not task.needs_whole_batch(step):
        return batches
    held = list(islice(batches, count))
    task.see_whole_batch((to_device(batch, device) for batch in held), step)
    return iter(held)


class BatchSource(Protocol):
    """A data set that returns whole batches of samples."""

    @property
    def fingerprint(self) -> str:
        """Hash of the contents of the data set; a resumed run must have the same."""
        ...

    def __len__(self) -> int: ...

    def __getitems__(self, samples: Sequence[SampleIndex], /) -> Any:
        """Return the batch (a tensor or a dict) of the `samples`, (position in the run, index in the data set) each."""
        ...


def order_of(task: Task, data: BatchSource) -> int | Mixture:
    """Return the number of samples of a task's data or, if they have several parts, the order of those."""
    mixture = task.mixture if isinstance(task, MixedTask) else None
    return len(data) if mixture is None else mixture


@dataclass
class StepStats:
    """Losses and scalars to log of one step on this rank, collected over the step's micro-batches."""

    logs: dict[str, Tensor] = field(default_factory=dict)  # means over micro-batches of losses and logs, by name
    losses: dict[str, list[Tensor]] = field(default_factory=dict)  # by module: the loss of each micro-batch

    def add(self, module: str, loss: Tensor, logs: Mapping[str, Tensor], accumulation: int) -> None:
        """Add a module's loss and `logs` (scalars) of one of the step's `accumulation` micro-batches.

        In `self.logs`, values are divided by `accumulation`, so that their sums are means.
        """
        self.losses.setdefault(module, []).append(loss.detach())
        for name, value in {f"{module}_loss": loss, **logs}.items():
            self.logs[name] = self.logs.get(name, torch.zeros_like(value)).detach() + value.detach() / accumulation


@dataclass(frozen=True)
class TrainStep:
    """A completed training step; norms and logs are scalar tensors on the device."""

    number: int  # 1 = the first step
    lr: float  # learning rate of the first module
    norms: Mapping[str, Tensor]  # gradient norm before clipping, by module
    logs: Mapping[str, Tensor]  # losses and other scalars to log, by name: means over this rank's micro-batches
