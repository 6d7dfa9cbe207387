"""What a step shows of itself: to its own process while it is made, and to the caller afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class StepStats:
    """What one process saw of a step: means for the log, and each player's loss in each micro-batch."""

    logs: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, list[Tensor]] = field(default_factory=dict)

    def take(self, player: str, loss: Tensor, logs: Mapping[str, Tensor], parts: int) -> None:
        """Take in a turn of one of `parts` micro-batches."""
        self.losses.setdefault(player, []).append(loss.detach())
        for name, value in {f"{player}_loss": loss, **logs}.items():
            self.logs[name] = self.logs.get(name, torch.zeros_like(value)).detach() + value.detach() / parts


@dataclass(frozen=True)
class TrainStep:
    """What a step left behind: its number (1 = the first), learning rate, gradient norms and logs (device tensors)."""

    number: int
    lr: float
    norms: Mapping[str, Tensor]
    logs: Mapping[str, Tensor]
