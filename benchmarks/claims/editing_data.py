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
    """What the tables about editing share: data, judge, models (loaded at first use), and numbers of pictures."""

    split: Split  # training and other pictures of OpenMoji
    everything: InMemory  # all of OpenMoji, which edits index
    judge: Judge  # classifier of pictures, not part of any model
    edit_count: int  # edits of each attribute
    reconstructed: int  # pictures to reconstruct
    generated: int  # pictures to generate for each row of the prior's table
    sheets: Path | None = None  # folder in which sheets of pictures are saved; None: they are not saved
    models: dict[str, kit.SemanticModel] = field(default_factory=dict)  # models loaded so far, by name

    @classmethod
    def make(cls, edit_count: int, reconstructed: int, generated: int, sheets: Path | None = None) -> "Bench":
        """Load OpenMoji at 32 px and fit the judge to its training pictures; the arguments become the fields."""
        split, everything = kit.load_openmoji(), load_all(OpenMojiConfig(resolution=32))
        return cls(split, everything, Judge.fit(split.train), edit_count, reconstructed, generated, sheets)

    def model(self, name: str) -> kit.SemanticModel:
        """Return the trained semantic model that MODELS lists under `name`, loading it at the first call."""
        if name not in self.models:
            self.models[name] = kit.load_semantic(kit.RUNS / MODELS[name])
        return self.models[name]

    @cached_property
    def linear(self) -> Linear:
        """A linear model with 256 principal components of the training pictures, as many as semantic codes have."""
        return Linear.fit(self.split.train, 256)

    @cached_property
    def unseen(self) -> list[int]:
        """Indices, in the whole set, of the pictures that no model was trained on, in the order of a hash."""
        seen = {record.name for record in self.split.train.records}
        names = [record.name for record in self.everything.records]
        unseen = [i for i, name in enumerate(names) if name not in seen]
        return sorted(unseen, key=lambda i: unit_hash("unseen", names[i]))

    @cached_property
    def edits(self) -> list[Edit]:
        """Edits whose true results are pictures of OpenMoji, `edit_count` of each attribute."""
        return edits_of(self.everything, self.split, self.edit_count)

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Return the pictures of the whole set at `indices`, uint8 [N, 3, R, R]."""
        return self.everything.pictures(indices)

    def pairs_of_groups(self, pairs: int) -> list[int]:
        """Return the indices of 2 P unseen pictures, P = `pairs`; picture P + i is of another group than picture i."""
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
        """Save pictures, uint8 [N, 3, R, R], as semantic-NAME.png in the folder `sheets`, with `columns` in a row.

        `captions` are drawn below the pictures, unless None.
        """
        if self.sheets is not None:
            sheet = grid(pictures, columns, scale=2, captions=captions)
            save_png(sheet, self.sheets / f"semantic-{name}.png", {"attribution": ATTRIBUTION})

    def save_edit_sheets(self, sources: Tensor, edited: dict[str, Tensor], targets: Tensor) -> None:
        """Save sheets of the first six edits of each attribute: sources, results and true pictures, row by row.

        One sheet has the results of all models, the other of the first model only.

        Args:
            sources: unedited pictures, uint8 [E, 3, R, R] for the E edits.
            edited: results of the edits, [E, 3, R, R], by model.
            targets: true pictures, [E, 3, R, R].
        """
        chosen = [i for name in KINDS for i in [k for k, e in enumerate(self.edits) if e.attribute == name][:6]]
        titles = [f"{self.edits[i].before} > {self.edits[i].after}" for i in chosen]
        first = next(iter(edited.values()))
        for name, shown in {"edits": list(edited.values()), "readme": [first]}.items():
            rows = [pictures[chosen] for pictures in (sources, *shown, targets)]
            captions = [*[""] * len(chosen) * (len(rows) - 1), *titles]
            self.save_sheet(name, torch.cat(rows), len(chosen), captions)
