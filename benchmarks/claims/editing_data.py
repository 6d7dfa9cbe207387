"""The data, the judges and the models that the benchmark of editing shares between its tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.editing import page
from benchmarks.editing.counterparts import Edit, edits_of
from benchmarks.judge import Judge
from benchmarks.linear import Linear
from ldm_kit.data.images import InMemory, Split, unit_hash
from ldm_kit.data.openmoji.dataset import OpenMojiConfig, load, load_all
from ldm_kit.models.semantic import SemanticModel

RUNS = Path("runs/benchmarks")
MODELS = {"DiffAE, pixels": "diffae_pixels", "DiffAE, latents": "diffae_latents", "PDAE, latents": "pdae_latents"}


@dataclass(frozen=True, eq=False)
class Bench:
    """The data, the judges and the models, each opened when it is first asked for."""

    split: Split
    everything: InMemory
    judge: Judge
    counts: page.Counts
    opened: dict[str, SemanticModel] = field(default_factory=dict)

    @classmethod
    def at(cls, counts: page.Counts) -> "Bench":
        """OpenMoji at 32 px."""
        about = OpenMojiConfig(resolution=32)
        split = load(about)
        return cls(split, load_all(about), Judge.trained(split.train), counts)

    def model(self, name: str) -> SemanticModel:
        """A trained model, in bf16."""
        if name not in self.opened:
            self.opened[name] = SemanticModel.load(RUNS / MODELS[name], precision=torch.bfloat16)
        return self.opened[name]

    @cached_property
    def linear(self) -> Linear:
        """As many principal components as the models' codes have numbers: what no training needs."""
        return Linear.fitted(self.split.train, 256)

    @cached_property
    def unseen(self) -> list[int]:
        """Places in the whole set of the pictures that nothing was trained on, in an order decided by hash."""
        seen = {record.name for record in self.split.train.records}
        names = [record.name for record in self.everything.records]
        return sorted(
            (i for i, name in enumerate(names) if name not in seen), key=lambda i: unit_hash("unseen", names[i])
        )

    @cached_property
    def edits(self) -> list[Edit]:
        """With known answers."""
        return edits_of(self.everything, self.split, self.counts.edits)

    def pictures(self, places: Sequence[int]) -> Tensor:
        """Pictures uint8 [N, 3, R, R] of the whole set."""
        return self.everything.pictures(places)
