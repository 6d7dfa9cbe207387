"""Prompt fidelity of the demo's model, measured against every drawing of OpenMoji."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_kit.data.images import PictureSet, Record, Split, subset, to_unit
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.metrics.fidelity import Fidelity, embed, fidelity
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline

Features = Callable[[Tensor], Tensor]  # pictures [B, C, R, R] in [-1, 1] -> [B, D]


@dataclass(frozen=True, eq=False)
class Drawings:
    """All distinct drawings of a split.

    A tenth of OpenMoji's emoji share their drawing with another ("cook", "man cook"): it then has several captions,
    since no model could tell them apart.
    """

    pixels: Tensor  # uint8 [D, C, R, R]
    of: dict[str, int]  # caption -> its drawing
    tones: list[str]  # skin tone of each drawing, "" for none

    @classmethod
    def all(cls, split: Split) -> "Drawings":
        """Collect every drawing of the train, heldout and compositional pictures."""
        sets = [pictures for pictures in (split.train, split.heldout, split.compositional) if pictures]
        pixels = torch.cat([pictures.pictures(range(len(pictures))) for pictures in sets])
        records: list[Record] = [record for pictures in sets for record in pictures.records]
        distinct, indices = torch.unique(pixels.flatten(1), dim=0, return_inverse=True)
        tones = [""] * len(distinct)
        for record, index in zip(records, indices.tolist(), strict=True):
            tones[index] = record.fields.get("skin_tone", "")
        of = {record.text: index for record, index in zip(records, indices.tolist(), strict=True)}
        return cls(distinct.view(-1, *pixels.shape[1:]), of, tones)


def without_twins(pictures: PictureSet, train: PictureSet) -> PictureSet:
    """Return the pictures of a held-out set that equal no training picture pixel by pixel: only these are unseen."""
    seen = {train.picture(i).numpy().tobytes() for i in range(len(train))}
    return subset(pictures, [i for i in range(len(pictures)) if pictures.picture(i).numpy().tobytes() not in seen])


def choose_prompts(pictures: PictureSet, count: int, name: str) -> list[str]:
    """Return `count` captions of a set, the same at every call: those whose hash comes first."""
    return sorted((record.text for record in pictures.records), key=lambda text: derive_seed(0, name, text))[:count]


def sample_prompts(pipeline: Pipeline, prompts: Sequence[str], options: SamplingOptions, batch: int = 64) -> Tensor:
    """Sample one picture a prompt, uint8 [N, C, R, R], from seeds 0, 1, 2, ..."""
    batches: list[Tensor] = []
    with tqdm(total=len(prompts), desc="sampling", unit="picture", leave=False) as bar:
        for pictures in pipeline.generate(prompts, range(len(prompts)), options, batch):
            batches.append(pictures)
            bar.update(len(pictures))
    return torch.cat(batches)


def reference_features(drawings: Drawings, features: Features) -> Tensor:
    """Compute the features [D, ...] of all drawings, against which pictures are measured."""
    return embed(lambda x: features(to_unit(x)), drawings.pixels)


def measure_fidelity(
    drawings: Drawings, references: Tensor, pictures: Tensor, prompts: Sequence[str], features: Features
) -> Fidelity:
    """Measure prompt fidelity of pictures uint8 [N, C, R, R], each of one prompt, against `reference_features`."""
    generated = embed(lambda x: features(to_unit(x)), pictures)
    truth = torch.tensor([drawings.of[prompt] for prompt in prompts])
    return fidelity(generated, references, truth, drawings.tones)
