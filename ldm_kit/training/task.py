"""What the loop asks of those who use it: a task, which has the losses, and a source, which has the batches."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

from ldm_kit.training.batches import SampleIndex

LossTerm = tuple[str, Tensor, Mapping[str, Tensor]]  # (player, its mean loss over the micro-batch, logs)


class Task(Protocol):
    """What the loop trains."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """Modules with an optimiser each, by name; the loop wraps them for DDP and hands them back through `wrap`."""
        ...

    @property
    def ema_modules(self) -> Mapping[str, nn.Module]:
        """Modules whose weights are averaged (EMA), by the folder that they are saved in."""
        ...

    def set_ddp_modules(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Take the wrapped players, which `losses` must call."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Tensors beside weights that a checkpoint must hold."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        ...

    def losses(self, batch: Any, step: int) -> Iterator[LossTerm]:
        """One turn for each player; the loop runs backward before it asks for the next turn.

        The attempt may be void (out of memory, not finite) and then comes again, so nothing but gradients and buffers
        may change here; what else moves is a matter for `StatefulTask`.
        """
        ...


@runtime_checkable
class StatefulTask(Protocol):
    """A task that changes weights or state otherwise than by gradients: it gathers in `losses`, and acts afterwards."""

    def after_step(self, step: int, optimisers: Mapping[str, Optimizer]) -> None:
        """The optimisers (by name) have made their step, which stands: act on what its micro-batches have shown."""
        ...

    def discard_step(self) -> None:
        """The attempt at a step is void: forget what its micro-batches have shown."""
        ...


class BatchSource(Protocol):
    """Where batches come from."""

    @property
    def fingerprint(self) -> str:
        """Of all that it holds; a resumed run must find the same."""
        ...

    def __len__(self) -> int: ...

    def __getitems__(self, places: Sequence[SampleIndex]) -> Any:
        """A whole batch for (position, index) pairs: a tensor, or a dict of such."""
        ...
