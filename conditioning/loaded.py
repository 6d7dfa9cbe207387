"""Check the tensors of a trained conditioner's network that was just loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conditioning.condition import ConditioningError

_NAMED = 3  # most tensors that a message names
_POSITIONS = "position_ids"  # a buffer of old text encoders, with the numbers 0, 1, 2, ...


def check_tensors(folder: Path, report: Mapping[str, Any], *, whole: bool) -> None:
    """Check that weights lack no tensor of their network and, if `whole` is set, have none that it does not know.

    Args:
        folder: the folder of the weights, for the message.
        report: what `from_pretrained` returns as loading info: names under "missing_keys" and "unexpected_keys".
        whole: whether tensors of which the network has no use are an error too.

    Raises:
        ConditioningError: there are such tensors; the message has their number and the first names of each kind.
    """
    missing = sorted(report["missing_keys"])
    more = sorted(name for name in report["unexpected_keys"] if whole and not name.endswith(_POSITIONS))
    lacks = f"lack {len(missing)} tensors, the first being {', '.join(missing[:_NAMED])}" if missing else ""
    has = f"have {len(more)} tensors that the network has not: {', '.join(more[:_NAMED])}" if more else ""
    if lacks or has:
        raise ConditioningError(f"the weights in {folder} {' and '.join(filter(None, (lacks, has)))}")
