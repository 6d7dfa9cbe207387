"""What the loop asks of those who use it: a task, which has the losses, and a source, which has the batches."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from ldm_kit.training.order import Place

Turn = tuple[str, Tensor, Mapping[str, Tensor]]  # (player, its mean loss over the micro-batch, logs)


class Task(Protocol):
    """What the loop trains."""

    @property
    def players(self) -> Mapping[str, nn.Module]:
        """Modules with an optimiser each, by name; the loop wraps them for DDP and hands them back through `wrap`."""
        ...

    @property
    def averaged(self) -> Mapping[str, nn.Module]:
        """Modules whose weights are averaged (EMA), by the folder that they are saved in."""
        ...

    def wrap(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Take the wrapped players, which `losses` must call."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Tensors beside weights that a checkpoint must hold."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        ...

    def losses(self, batch: Any, step: int) -> Iterator[Turn]:
        """One turn for each player; the loop runs backward before it asks for the next turn."""
        ...


class Source(Protocol):
    """Where batches come from."""

    @property
    def fingerprint(self) -> str:
        """Of all that it holds; a resumed run must find the same."""
        ...

    def __len__(self) -> int: ...

    def __getitems__(self, places: Sequence[Place]) -> Any:
        """A whole batch for (position, index) pairs: a tensor, or a dict of such."""
        ...
