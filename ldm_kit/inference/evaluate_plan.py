"""Which measures an evaluation takes, of those that are asked for and can be taken."""

from collections.abc import Mapping, Sequence

from ldm_kit.config import UserError
from ldm_kit.data.value_range import value_range_of
from ldm_kit.inference.evaluate_latents import LATENTS
from ldm_kit.inference.evaluate_reference import Reference
from ldm_kit.inference.evaluate_sampled import Subject
from ldm_kit.inference.requests import EvaluationRequest
from ldm_kit.models.feature_nets import unseen
from ldm_kit.models.measures import BITS, CLIP, CODES, EDITS, INCEPTION, PICTURES, PROMPTS, RANDOM
from ldm_kit.models.set_measures import SETS

DCI = tuple(name for name in CODES if name.startswith("dci_"))
ON_REQUEST = (*BITS, *DCI, *EDITS)  # measures that take long; they are left out unless they are named
NAMES = (*SETS, INCEPTION, CLIP, *PROMPTS, *PICTURES, *RANDOM, *LATENTS, *BITS, *CODES, *EDITS)


def check_names(names: Sequence[str] | None) -> None:
    """Check that measures exist; UserError: one of `names` does not. None stands for all."""
    if unknown := [name for name in names or () if name not in NAMES]:
        raise UserError(f"--measures names {unknown[0]!r:.60}; expected some of {', '.join(NAMES)}")


def plan(
    names: Sequence[str] | None,
    reasons: Mapping[str, str],
    count: int,
    reference_count: int,
    few: Mapping[str, str] | None = None,
) -> tuple[list[str], list[str]]:
    """Return the measures to take, and a warning for each that is left out because there are too few pictures.

    Args:
        names: the measures that are asked for; None: all that can be taken but those in ON_REQUEST.
        reasons: by name of a measure that cannot be taken, why.
        count: number of pictures to judge.
        reference_count: number of reference pictures.
        few: by name of a further measure that needs more pictures, how many; None: none does.

    Raises:
        UserError: a measure that is asked for cannot be taken, or no measure can.
    """
    few = dict(few or {}) | {
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
    taken = [name for name in NAMES if name not in impossible and name not in ON_REQUEST]
    if not taken:
        raise UserError("no measure can be taken: " + "; ".join(dict.fromkeys(impossible.values())))
    return taken, [f"left out: {text}" for name, text in few.items() if name not in reasons]


def of_other_networks(request: EvaluationRequest) -> dict[str, str]:
    """Return why a measure cannot be taken with the features that a request names, by the measure's name."""
    reasons: dict[str, str] = {}
    if not request.features.startswith("inception"):
        reasons[INCEPTION] = "it is defined for --features inception alone"
    if not request.features.startswith("open_clip:"):
        reasons[CLIP] = "it needs a network that reads captions; expected --features open_clip:ARCHITECTURE/WEIGHTS"
    return reasons


def unseen_by(subject: Subject) -> dict[str, str]:
    """Return why measures of features cannot be taken of what is judged, by the measure's name; {}: they can be."""
    channels = subject.shape[0]
    if value_range_of(subject) is None or channels in (1, 3):
        return {}
    return dict.fromkeys((*SETS, INCEPTION, CLIP), unseen(channels))


def without_factors(reference: Reference) -> dict[str, str]:
    """Return why prompt fidelity cannot be measured, by the measure's name; {}: the reference knows its factors."""
    if reference.factors is not None:
        return {}
    reason = f"the reference {reference.name} does not know what its pictures show; expected faces or shapes"
    return dict.fromkeys(PROMPTS, reason)
