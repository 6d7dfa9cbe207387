"""What a conditioner offers to runs that start from a trained model, and to their resumed runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from conditioning.condition import ConditioningError


class Continuing:
    """Base of `Conditioner`: defaults of a conditioner that every run builds anew, as it has no trained weights."""

    @classmethod
    def widths(cls, config: Any, time_width: int | None) -> tuple[int | None, int | None] | None:
        """Return the attributes `width` and `vector_width` of the conditioner that `build` builds.

        Args:
            config: an instance of the class `Config`.
            time_width: channels of the denoiser's time embedding.

        Returns:
            The two widths; None: they are not known before the conditioner is built, as in a subclass that does not
            override this.
        """
        return None

    def fits(self, config: Any) -> bool:
        """Return whether a run with `config` can go on with this trained conditioner; else it builds a new one.

        A conditioner without weights never does.

        Raises:
            ConditioningError: the config has the width of this conditioner, but describes another network.
        """
        return False

    @classmethod
    def load_whole(cls, folder: Path, suffix: str = "") -> Self:
        """Load a conditioner as `load` does, for a run to go on with; tensors of no use are an error too.

        Here it is what `load` loads: a subclass without weights has no tensors.

        Raises:
            ConditioningError: as `load`, or there are tensors that no network of the conditioner knows.
        """
        conditioner: Any = cls
        return conditioner.load(folder, suffix) if suffix else conditioner.load(folder)

    @property
    def frozen_encoder(self) -> str | None:
        """What the states of this conditioner's frozen encoder depend on, as text; None: it has no frozen encoder."""
        return None

    @classmethod
    def frozen_encoder_in(cls, folder: Path, suffix: str = "") -> str | None:
        """Return `frozen_encoder` of the conditioner that `save` wrote into `folder`, without loading the encoder.

        Raises:
            ConditioningError: the folder does not say which encoder it is.
        """
        return None

    def with_classes(self, classes: Sequence[str]) -> tuple[Self, str | None]:
        """Return this trained conditioner for a run whose pictures have `classes`, and a sentence on what is new.

        Here it is the conditioner itself, and None: nothing is new.
        """
        return self, None

    @property
    def structure(self) -> dict[str, Any]:
        """JSON values from which `from_structure` builds this conditioner without its weights; {}: the data give them.

        A run that started from a trained conditioner keeps them in its checkpoints.
        """
        return {}

    @classmethod
    def from_structure(cls, structure: Mapping[str, Any]) -> Self:
        """Build the conditioner that `structure`, not empty, is of; its weights are random.

        Raises:
            ConditioningError: the structure is invalid.
        """
        raise ConditioningError(f"{cls.__name__} is not built from a structure")
