"""Base class of `Method`: what a method offers that can start from trained weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol


class Opened(Protocol):
    """Protocol of what a run starts from: trained weights, or the structure of them for a resumed run."""

    @classmethod
    def open(cls, config: Any, checkpoint: Path | None) -> Any:
        """Open the trained weights that a config names, see `FromTrained.open_start`."""
        ...


class FromTrained:
    """A method that may start from trained weights; by default it does not.

    Attributes:
        Start: class of what `open_start` returns, if the method can start from trained weights.
        start: structure of the networks of a run that started from trained weights, for its checkpoints; else None.
        notes: sentences for the log on what the run started from.
    """

    Start: ClassVar[type[Opened] | None] = None
    start: Mapping[str, Any] | None = None
    notes: Sequence[str] = ()

    @classmethod
    def open_start(cls, config: Any, checkpoint: Path | None) -> Any:
        """Open the trained weights that a run starts from, before its pictures are loaded.

        Args:
            config: the run's config.
            checkpoint: checkpoint from which the run is resumed, which has the weights; None: a new run.

        Returns:
            What `build` takes as its argument `start`; None: the run starts from random weights.
        """
        return None if cls.Start is None else cls.Start.open(config, checkpoint)
