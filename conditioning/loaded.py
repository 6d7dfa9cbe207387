"""Check the tensors of a trained network that was just loaded."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from conditioning.condition import ConditioningError

_NAMED = 3  # most tensors that a message names
_POSITIONS = "position_ids"  # a buffer of old text encoders, with the numbers 0, 1, 2, ...


def describe_misfit(folder: Path, missing: Collection[str], unexpected: Collection[str] = ()) -> str:
    """Return a sentence on tensors that do not fit a network: their number and the first names; "" if all fit.

    Args:
        folder: the folder of the weights.
        missing: names of the tensors that the weights lack.
        unexpected: names of the tensors that the network does not have.
    """
    lacks = f"lack {len(missing)} tensors, the first being {_first(missing)}" if missing else ""
    has = f"have {len(unexpected)} tensors that the network has not: {_first(unexpected)}" if unexpected else ""
    return f"the weights in {folder} {' and '.join(filter(None, (lacks, has)))}" if lacks or has else ""


def _first(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:_NAMED])


def check_tensors(folder: Path, report: Mapping[str, Any], *, whole: bool) -> None:
    """Check that weights lack no tensor of a conditioner's network and, if `whole` is set, have none of no use.

    Args:
        folder: the folder of the weights, for the message.
        report: what `from_pretrained` returns as loading info: names under "missing_keys" and "unexpected_keys".
        whole: whether tensors of which the network has no use are an error too.

    Raises:
        ConditioningError: there are such tensors; see `describe_misfit`.
    """
    more = [name for name in report["unexpected_keys"] if whole and not name.endswith(_POSITIONS)]
    if misfit := describe_misfit(folder, report["missing_keys"], more):
        raise ConditioningError(misfit)
