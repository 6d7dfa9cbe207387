"""Which measures an evaluation takes, of those that are asked for and can be taken."""

from collections.abc import Mapping, Sequence

from ldm_kit.config import UserError
from ldm_kit.models.measures import CLIP, INCEPTION, PICTURES, PROMPTS
from ldm_kit.models.set_measures import SETS

NAMES = (*SETS, INCEPTION, CLIP, *PROMPTS, *PICTURES)


def check_names(names: Sequence[str] | None) -> None:
    """Check that measures exist; UserError: one of `names` does not. None stands for all."""
    if unknown := [name for name in names or () if name not in NAMES]:
        raise UserError(f"--measures names {unknown[0]!r:.60}; expected some of {', '.join(NAMES)}")


def plan(
    names: Sequence[str] | None, reasons: Mapping[str, str], count: int, reference_count: int
) -> tuple[list[str], list[str]]:
    """Return the measures to take, and a warning for each that is left out because there are too few pictures.

    Args:
        names: the measures that are asked for; None: all that can be taken.
        reasons: by name of a measure that cannot be taken, why.
        count: number of pictures to judge.
        reference_count: number of reference pictures.

    Raises:
        UserError: a measure that is asked for cannot be taken, or no measure can.
    """
    few = {
        name: f"{measure.title} needs {measure.least} pictures and as many of the reference, but there are {count} and "
        f"{reference_count}"
        for name, measure in SETS.items()
        if min(count, reference_count) < measure.least
    }
    impossible = {**few, **reasons}
    if names is not None:
        if refused := [name for name in names if name in impossible]:
            raise UserError(f"--measures {refused[0]}: {impossible[refused[0]]}")
        return [name for name in NAMES if name in names], []
    taken = [name for name in NAMES if name not in impossible]
    if not taken:
        raise UserError("no measure can be taken: " + "; ".join(dict.fromkeys(impossible.values())))
    return taken, [f"left out: {text}" for name, text in few.items() if name not in reasons]
