"""Data, judges, models and picture sheets that the tables about editing share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import kit
from benchmarks.claims.counterparts import KINDS, Edit, edits_of
from benchmarks.claims.judge import Judge
from benchmarks.claims.linear import Linear
from ldm_kit.data.images import InMemory, Split, unit_hash
from ldm_kit.data.openmoji.dataset import ATTRIBUTION, OpenMojiConfig, load_all
from ldm_kit.viz.grid import grid
from ldm_kit.viz.png import save_png

MODELS = {"DiffAE, pixels": "diffae_pixels", "DiffAE, latents": "diffae_latents", "PDAE, latents": "pdae_latents"}


@dataclass(frozen=True, eq=False)
class Bench:
    """Data, judge and models, each opened at its first use, and how many pictures each table takes."""

    split: Split
    everything: InMemory
    judge: Judge
    edit_count: int  # of each attribute
    reconstructed: int
    generated: int  # of each row of the prior's table
    sheets: Path | None = None  # where sheets of pictures are saved
    models: dict[str, kit.SemanticModel] = field(default_factory=dict)

    @classmethod
    def make(cls, edit_count: int, reconstructed: int, generated: int, sheets: Path | None = None) -> "Bench":
        """Load OpenMoji at 32 px and fit the judge."""
        split, everything = kit.load_openmoji(), load_all(OpenMojiConfig(resolution=32))
        return cls(split, everything, Judge.fit(split.train), edit_count, reconstructed, generated, sheets)

    def model(self, name: str) -> kit.SemanticModel:
        """Load a trained model."""
        if name not in self.models:
            self.models[name] = kit.load_semantic(kit.RUNS / MODELS[name])
        return self.models[name]

    @cached_property
    def linear(self) -> Linear:
        """As many principal components as the models' codes have numbers: what no training needs."""
        return Linear.fit(self.split.train, 256)

    @cached_property
    def unseen(self) -> list[int]:
        """Indices of the pictures that nothing was trained on, in an order decided by hash."""
        seen = {record.name for record in self.split.train.records}
        names = [record.name for record in self.everything.records]
        unseen = [i for i, name in enumerate(names) if name not in seen]
        return sorted(unseen, key=lambda i: unit_hash("unseen", names[i]))

    @cached_property
    def edits(self) -> list[Edit]:
        """Edits with known answers."""
        return edits_of(self.everything, self.split, self.edit_count)

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Return pictures uint8 [N, 3, R, R] of the whole set."""
        return self.everything.pictures(indices)

    def pairs_of_groups(self, pairs: int) -> list[int]:
        """Return 2 * pairs unseen pictures; those of the second half are of other groups than those of the first."""
        first: list[int] = []
        last: list[int] = []
        rest, records = list(self.unseen), self.everything.records
        while len(first) < pairs:
            one = rest.pop(0)
            other = next(i for i in rest if records[i].label != records[one].label)
            rest.remove(other)
            first.append(one)
            last.append(other)
        return first + last

    def save_sheet(self, name: str, pictures: Tensor, columns: int, captions: Sequence[str] | None = None) -> None:
        """Save a sheet of pictures beside the page."""
        if self.sheets is not None:
            sheet = grid(pictures, columns, scale=2, captions=captions)
            save_png(sheet, self.sheets / f"semantic-{name}.png", {"attribution": ATTRIBUTION})

    def save_edit_sheets(self, sources: Tensor, edited: dict[str, Tensor], targets: Tensor) -> None:
        """Save the first six edits of each attribute, in the order of hashes, as a full and as a short sheet."""
        chosen = [i for name in KINDS for i in [k for k, e in enumerate(self.edits) if e.attribute == name][:6]]
        titles = [f"{self.edits[i].before} > {self.edits[i].after}" for i in chosen]
        first = next(iter(edited.values()))
        for name, shown in {"edits": list(edited.values()), "readme": [first]}.items():
            rows = [pictures[chosen] for pictures in (sources, *shown, targets)]
            captions = [*[""] * len(chosen) * (len(rows) - 1), *titles]
            self.save_sheet(name, torch.cat(rows), len(chosen), captions)
