"""The conditioner of unconditional models, so that every config names a conditioner."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from conditioning.base import Condition, Conditioner, ConditionerConfig, Inputs, Progress


class NoConfig(ConditionerConfig, frozen=True, extra="forbid"):
    """Config of an unconditional model."""

    kind: Literal["none"] = Field(default="none", description="no condition")

    unconditional: ClassVar[bool] = True

    def raw_values(self, captions: Sequence[str], labels: Sequence[int | None]) -> list[str | int]:
        """Return the captions, which `prepare` ignores; the labels are not used."""
        return list(captions)


class NoCondition(Conditioner):
    """The conditioner of an unconditional model: `prepare` returns {} and `forward` returns `Condition()`."""

    Config = NoConfig
    modality = "no condition"
    marker = None
    null = None
    width = None

    @classmethod
    def build(cls, config: NoConfig, **data: Any) -> "NoCondition":
        """Return a new instance; all arguments are ignored."""
        return cls()

    @classmethod
    def load(cls, folder: Path, suffix: str = "") -> "NoCondition":
        """Return a new instance; nothing is read from `folder`."""
        return cls()

    @classmethod
    def widths(cls, config: Any, time_width: int | None) -> tuple[None, None]:
        """Return None twice: there are neither tokens nor a vector."""
        return None, None

    @property
    def trainable(self) -> dict[str, nn.Module]:
        """Empty: an unconditional model has no conditioning network to train."""
        return {}

    def prepare(self, raw: Sequence[str | int], progress: Progress | None = None) -> Inputs:
        """Return {}, whatever the raw values are; `progress` is not called."""
        return {}

    def forward(self, **inputs: Tensor) -> Condition:
        """Return `Condition()`, a condition without tensors; `inputs` is {}."""
        return Condition()

    def release(self) -> None:
        """Do nothing: there is nothing to free."""

    def save(self, folder: Path, suffix: str = "") -> dict[str, tuple[str, str]]:
        """Write nothing; return {}."""
        return {}

    def class_names(self, prompts: Sequence[str | int]) -> list[str] | None:
        """Return the prompts as text.

        An unconditional model does not use prompts, but a guiding classifier takes them as names of its classes.
        """
        return [str(prompt) for prompt in prompts]
