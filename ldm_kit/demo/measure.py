"""Fidelity of generated pictures to their prompts, factor by factor, by an independent reader of attributes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_kit.data.images import PictureSet
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.metrics.factor_reader import FactorReader
from ldm_kit.metrics.fidelity import percent, wilson
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline

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
    right, shown = reader.read(pictures) == labels, labels >= 0
    factors = {name: _proportion(right[shown[:, i], i]) for i, name in enumerate(reader.factors)}
    return FactorShares(factors, _proportion((right | ~shown).all(1)))


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


def choose_prompts(pictures: PictureSet, count: int, name: str) -> list[int]:
    """Return the indices of at most `count` pictures of a set: those with the lowest hashes of (`name`, caption)."""
    texts = [record.text for record in pictures.records]
    return sorted(range(len(texts)), key=lambda i: derive_seed(0, name, texts[i]))[:count]


def sample_prompts(pipeline: Pipeline, prompts: Sequence[str], options: SamplingOptions, batch: int = 64) -> Tensor:
    """Sample one picture for each of N prompts, uint8 [N, C, R, R], with seeds 0 to N - 1, `batch` at a time."""
    batches: list[Tensor] = []
    with tqdm(total=len(prompts), desc="sampling", unit="picture", leave=False) as bar:
        for pictures in pipeline.generate(prompts, range(len(prompts)), options, batch):
            batches.append(pictures)
            bar.update(len(pictures))
    return torch.cat(batches)
