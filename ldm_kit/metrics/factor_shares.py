"""How often pictures show the values of factors that are asked for, as a reader of factors reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ldm_kit.metrics.factor_reader import FactorReader
from ldm_kit.metrics.fidelity import percent, wilson

MEAN, ALL, COUNT = "mean of the factors", "all factors at once", "pictures"


@dataclass(frozen=True)
class Proportion:
    """How many pictures of those that show a factor have the value that is asked for."""

    right: int
    count: int

    @property
    def value(self) -> float:
        """The share, 0 to 1; NaN without pictures."""
        return self.right / self.count if self.count else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """The share's 95 % confidence interval (low, high) by Wilson's score."""
        return wilson(self.value, self.count)

    @property
    def figures(self) -> dict[str, Any]:
        """The share for JSON, with its interval and the number of pictures; None without pictures."""
        estimate = (
            {"share": self.value, "interval": [*self.interval]} if self.count else {"share": None, "interval": None}
        )
        return {**estimate, "count": self.count}

    def __str__(self) -> str:
        return percent(self.value, self.count)


@dataclass(frozen=True)
class FactorShares:
    """How often pictures have the values that are asked for."""

    factors: Mapping[str, Proportion]  # by factor: over the pictures that show its value
    all: Proportion  # pictures in which every value that shows is right

    @property
    def mean(self) -> float | None:
        """Mean of the factors' shares, each factor weighing the same; factors that no picture shows are left out.

        None if no picture shows any factor.
        """
        values = [share.value for share in self.factors.values() if share.count]
        return sum(values) / len(values) if values else None

    @property
    def figures(self) -> dict[str, Any]:
        """The shares for JSON: by name the share, its interval and the number of pictures; the mean as a number."""
        named = {**self.factors, ALL: self.all}
        return {**{name: share.figures for name, share in named.items()}, MEAN: self.mean}


def count_right(reader: FactorReader, pictures: Tensor, labels: Tensor) -> FactorShares:
    """Count how often a reader reads from pictures the values that are asked for.

    Args:
        reader: the reader; it must not have been trained on these pictures.
        pictures: uint8 [N, C, R, R].
        labels: int64 [N, F], the number of each factor's value; -1: the value cannot show, and does not count.
    """
    return count_readings(tuple(reader.factors), reader.read(pictures), labels)


def count_readings(factors: Sequence[str], readings: Tensor, labels: Tensor) -> FactorShares:
    """Count how often the values that a reader has read from pictures are those that are asked for.

    Args:
        factors: names of the F factors.
        readings: int64 [N, F], the number of the value that was read of each factor.
        labels: int64 [N, F], the number of each factor's value; -1: the value cannot show, and does not count.
    """
    right, shown = readings == labels, labels >= 0
    shares = {name: _proportion(right[shown[:, i], i]) for i, name in enumerate(factors)}
    return FactorShares(shares, _proportion((right | ~shown).all(1)))


def _proportion(right: Tensor) -> Proportion:
    return Proportion(int(right.sum()), len(right))


def fidelity_table(columns: Mapping[str, FactorShares]) -> str:
    """Return a Markdown table with a row for each factor; intervals of 95 % in brackets.

    Args:
        columns: shares by the columns' titles, of the same factors.
    """
    first = next(iter(columns.values()))
    rows = [[name, *(str(shares.factors[name]) for shares in columns.values())] for name in first.factors]
    rows.append([f"**{MEAN}**", *(_bold(shares.mean) for shares in columns.values())])
    rows.append([ALL, *(str(shares.all) for shares in columns.values())])
    rows.append([COUNT, *(str(shares.all.count) for shares in columns.values())])
    head = [["", *columns], ["---"] * (1 + len(columns))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (*head, *rows))


def _bold(share: float | None) -> str:
    return "-" if share is None else f"**{100 * share:.1f} %**"
