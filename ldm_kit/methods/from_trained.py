"""Base class of `Method`: what a method offers that can start from trained weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ldm_kit.training.training_state import read_start


class Opened(Protocol):
    """Protocol of what a run starts from: trained weights, or the structure of them for a resumed run."""

    @classmethod
    def open(cls, config: Any, init: str) -> Any:
        """Open the trained weights that `init`, the key of a run's config, names, and check that they fit the config.

        Raises:
            UserError: the weights cannot be opened, or do not fit the config.
        """
        ...

    @classmethod
    def reopen(cls, config: Any, structure: Mapping[str, Any], checkpoint: Path) -> Any:
        """Build the networks of a resumed run, with random weights.

        Args:
            config: the run's config.
            structure: what the method's attribute `start` was: JSON values that the checkpoint holds.
            checkpoint: the checkpoint, for messages.

        Raises:
            UserError: the structure is invalid.
        """
        ...


class FromTrained:
    """A method that may start from trained weights; by default it does not.

    Attributes:
        Start: class of what `open_start` returns, if the config has a key `init` that names trained weights.
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
        if cls.Start is None:
            return None
        if checkpoint is None:
            return None if config.init is None else cls.Start.open(config, config.init)
        structure = read_start(checkpoint)
        return None if structure is None else cls.Start.reopen(config, structure, checkpoint)
