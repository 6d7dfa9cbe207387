"""Fidelity of generated faces to their prompts: how often each factor (such as hair colour) is as the prompt says.

An independent classifier, the reader, finds the value of each factor in a picture.
"""

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
    """Share of pictures in which a factor, such as hair colour, has the value that the prompt asks for."""

    right: int  # number of pictures with the right value
    count: int  # number of pictures in which the factor can be seen

    @property
    def value(self) -> float:
        """The share right / count, 0 to 1; NaN if `count` is 0."""
        return self.right / self.count if self.count else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """The share's 95 % confidence interval (low, high) by Wilson's score."""
        return wilson(self.value, self.count)

    @property
    def figures(self) -> dict[str, Any]:
        """The share for JSON, as {"share", "interval", "count"}; share and interval are None if `count` is 0."""
        estimate = (
            {"share": self.value, "interval": [*self.interval]} if self.count else {"share": None, "interval": None}
        )
        return {**estimate, "count": self.count}

    def __str__(self) -> str:
        return percent(self.value, self.count)


@dataclass(frozen=True)
class FactorShares:
    """Shares of pictures whose factors, such as hair colour, have the values that their prompts ask for."""

    factors: Mapping[str, Proportion]  # by the factor's name: the share, of the pictures in which it can be seen
    all: Proportion  # share of all pictures in which every visible factor has the right value

    @property
    def mean(self) -> float | None:
        """Unweighted mean of the factors' shares, 0 to 1; factors that no picture shows are left out.

        None if no picture shows any factor.
        """
        values = [share.value for share in self.factors.values() if share.count]
        return sum(values) / len(values) if values else None

    @property
    def figures(self) -> dict[str, Any]:
        """A dict for JSON: `Proportion.figures` of each factor and of "all factors at once", and the mean share."""
        named = {**self.factors, ALL: self.all}
        return {**{name: share.figures for name, share in named.items()}, MEAN: self.mean}


def count_right(reader: FactorReader, pictures: Tensor, labels: Tensor) -> FactorShares:
    """Return the share of pictures where a classifier finds the value asked for, by factor and for all factors at once.

    Args:
        reader: the classifier of F factors; it must not have been trained on these pictures.
        pictures: uint8 [N, C, R, R].
        labels: int64 [N, F], the index of the value asked for of each factor; -1: the factor cannot be seen in this
            picture, which is then left out of the factor's share.
    """
    right, shown = reader.read(pictures) == labels, labels >= 0
    factors = {name: _proportion(right[shown[:, i], i]) for i, name in enumerate(reader.factors)}
    return FactorShares(factors, _proportion((right | ~shown).all(1)))


def _proportion(right: Tensor) -> Proportion:
    return Proportion(int(right.sum()), len(right))


def fidelity_table(columns: Mapping[str, FactorShares]) -> str:
    """Return a Markdown table of shares with their 95 % intervals, with a row for each factor (such as hair colour).

    Further rows have the mean share, the share of all factors at once, and the number of pictures.

    Args:
        columns: the shares of each column, by the column's title; all columns have the same factors.
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
    """Choose at most `count` of the pictures at random, to use their captions as prompts; return their indices.

    The same captions and `name` give the same choice: the pictures with the lowest hashes of (`name`, caption).
    """
    texts = [record.text for record in pictures.records]
    return sorted(range(len(texts)), key=lambda i: derive_seed(0, name, texts[i]))[:count]


def sample_prompts(pipeline: Pipeline, prompts: Sequence[str], options: SamplingOptions, batch: int = 64) -> Tensor:
    """Sample a picture for each of N prompts, with the seeds 0 to N - 1; return the pictures, uint8 [N, C, R, R].

    Args:
        pipeline: the text-to-image model.
        prompts: the N prompts.
        options: sampling options.
        batch: number of pictures that are sampled at a time.
    """
    batches: list[Tensor] = []
    with tqdm(total=len(prompts), desc="sampling", unit="picture", leave=False) as bar:
        for pictures in pipeline.generate(prompts, range(len(prompts)), options, batch):
            batches.append(pictures)
            bar.update(len(pictures))
    return torch.cat(batches)
