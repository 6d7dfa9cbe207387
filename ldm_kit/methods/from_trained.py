"""Base class of `Method`: what a method offers that can start from trained weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class FromTrained:
    """A method that may start from trained weights; by default it does not.

    Attributes:
        start: structure of the networks of a run that started from trained weights, for its checkpoints; else None.
        notes: sentences for the log on what the run started from.
    """

    start: Mapping[str, Any] | None = None
    notes: Sequence[str] = ()

    @classmethod
    def open_start(cls, config: Any, checkpoint: Path | None) -> Any:
        """Open the trained weights that a run starts from, before its pictures are loaded.

        A method that starts from weights overrides this; what it returns is passed to its `build` as `start`.

        Args:
            config: the run's config.
            checkpoint: checkpoint from which the run is resumed, which has the weights; None: a new run.

        Returns:
            None: the run starts from random weights, as every run of this method does.
        """
        return None
