"""No condition: the unconditional model, so that every config names a conditioner."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from conditioning.base import Condition, Conditioner, Inputs, Progress


class NoConfig(BaseModel):
    """An unconditional model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["none"] = Field(default="none", description="no condition")


class NoCondition(Conditioner):
    """Says nothing: `prepare` gives {} and `forward` gives `Condition()`."""

    null = None
    width = None

    @property
    def trainable(self) -> dict[str, nn.Module]:
        """Nothing is trained."""
        return {}

    def prepare(self, raw: Sequence[str | int], progress: Progress | None = None) -> Inputs:
        """Nothing to prepare, whatever the raw values are."""
        return {}

    def forward(self, **inputs: Tensor) -> Condition:
        """The empty condition."""
        return Condition()

    def release(self) -> None:
        """Nothing to free."""

    def save(self, folder: Path) -> dict[str, tuple[str, str]]:
        """Nothing to write."""
        return {}
