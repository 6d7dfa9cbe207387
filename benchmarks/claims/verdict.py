"""A claim that A is better than B, tested on paired trainings, and the one rule that says what came of it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ldm_kit.metrics.intervals import Interval, t_interval

REPRODUCED, OPPOSITE, UNDECIDED = "reproduced", "opposite", "not decided at this size"
VERDICTS = REPRODUCED, OPPOSITE, UNDECIDED
RULE = (
    "A and B are measured for each seed. The difference A - factor B (factor is 1 unless the row says otherwise) has a "
    "95 % interval over seeds by Student's t. A claim is **reproduced** if the interval is on the claimed side of 0, "
    "the **opposite** holds if it is on the other side, and else it is **not decided at this size**."
)


@dataclass(frozen=True)
class Comparison:
    """The claim that A is better than B, with both values for each seed.

    Attributes:
        claim: what a paper says.
        source: the paper, and the place in it.
        a: what is claimed to be better, for example "ddim, 10 steps".
        b: what it is compared with.
        measure: name of what is measured.
        higher: whether A is claimed to have the higher value; else the lower.
        factor: A is compared with so many times B.
        pairs: (value of A, value of B) for each seed.
    """

    claim: str
    source: str
    a: str
    b: str
    measure: str
    higher: bool
    pairs: Sequence[tuple[float, float]]
    factor: float = 1.0

    @property
    def differences(self) -> list[float]:
        """A - factor B for each seed."""
        return [a - self.factor * b for a, b in self.pairs]

    @property
    def interval(self) -> Interval:
        """95 % interval of the mean difference over seeds, by Student's t."""
        return t_interval(self.differences)

    @property
    def verdict(self) -> str:
        """What RULE says of the claim; a single seed decides nothing."""
        return judge(self.differences, higher=self.higher)


def judge(differences: Sequence[float], *, higher: bool) -> str:
    """Return REPRODUCED, OPPOSITE or UNDECIDED for the differences of a claim, one a seed.

    Args:
        differences: A - B for each seed, finite numbers; fewer than two decide nothing.
        higher: whether A is claimed to be the higher.
    """
    if len(differences) < 2:
        return UNDECIDED
    low, high = t_interval(differences)
    if low > 0 or high < 0:
        return REPRODUCED if (low > 0) == higher else OPPOSITE
    return UNDECIDED


def cells(comparison: Comparison, form: str) -> list[str]:
    """Return the cells of a comparison's row: claim, A, B, measure, their means, the difference, the verdict.

    `form` is the format of the values, such as ".2f".
    """
    mean_a, mean_b = (statistics.fmean(column) for column in zip(*comparison.pairs, strict=True))
    difference = format(statistics.fmean(comparison.differences), f"+{form}")
    if len(comparison.pairs) > 1:
        low, high = comparison.interval
        difference += f" [{low:+{form}}, {high:+{form}}]"
    times = "" if comparison.factor == 1 else f"{comparison.factor:g} x "
    return [
        f"{comparison.claim} ({comparison.source})",
        comparison.a,
        f"{times}{comparison.b}",
        f"{comparison.measure}, A {'higher' if comparison.higher else 'lower'}",
        format(mean_a, form),
        format(mean_b, form),
        difference,
        f"**{comparison.verdict}**",
    ]


def tally(page: str) -> str:
    """Return a sentence with how many comparisons of a page's tables have each verdict; verdicts end their rows."""
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    counts = {verdict: sum(row.endswith(f"| **{verdict}** |") for row in rows) for verdict in VERDICTS}
    listed = [f"{count} **{verdict}**" for verdict, count in counts.items()]
    return f"Comparisons below: {sum(counts.values())}, of which {', '.join(listed)}."


HEAD = ("claim", "A", "B", "claimed", "A", "B", "A - factor B [95 %]", "verdict")
