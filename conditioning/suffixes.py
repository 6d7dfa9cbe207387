"""Ends of the names under which several conditioners of one model are saved."""

from collections.abc import Sequence

from conditioning.base import Conditioner
from conditioning.combined_config import MOST
from conditioning.condition import ConditioningError
from conditioning.registry import kind_of

SUFFIXES = ("", *(f"_{number}" for number in range(2, MOST + 1)))
"""Ends of component folders: text_encoder, text_encoder_2, ... for several conditioners of one kind."""


def suffixes_of(parts: Sequence[Conditioner]) -> list[str]:
    """Return the end of each member's component folders: "" for the first of a kind, then "_2", "_3", ...

    Raises:
        ConditioningError: a kind comes twice whose class cannot save with a suffix.
    """
    kinds = [type(member) for member in parts]
    for kind in kinds:
        if kinds.count(kind) > 1 and not kind.repeats:
            raise ConditioningError(f"condition.kind {kind_of(kind)} can be used once in a model, but comes twice")
    return [SUFFIXES[kinds[:index].count(kind)] for index, kind in enumerate(kinds)]
