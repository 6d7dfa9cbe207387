"""Does the demo's model draw what the prompts say? Measured against every picture of OpenMoji."""

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

    OpenMoji draws a tenth of its emoji twice ("cook", "man cook"): one drawing then answers to several captions, since
    no model could tell them apart.
    """

    pixels: Tensor  # uint8 [D, C, R, R]
    of: dict[str, int]  # caption -> its drawing
    tones: list[str]  # skin tone of each drawing, "" for none

    @classmethod
    def all(cls, split: Split) -> "Drawings":
        """Every drawing of the train, heldout and compositional pictures."""
        parts = [part for part in (split.train, split.heldout, split.compositional) if part is not None and len(part)]
        pixels = torch.cat([part.pictures(range(len(part))) for part in parts])
        records: list[Record] = [record for part in parts for record in part.records]
        distinct, which = torch.unique(pixels.flatten(1), dim=0, return_inverse=True)
        tones = [""] * len(distinct)
        for record, place in zip(records, which.tolist(), strict=True):
            tones[place] = record.fields.get("skin_tone", "")
        of = {record.text: place for record, place in zip(records, which.tolist(), strict=True)}
        return cls(distinct.view(-1, *pixels.shape[1:]), of, tones)


def without_twins(pictures: PictureSet, train: PictureSet) -> PictureSet:
    """The pictures of a held-out set that no training picture equals pixel by pixel: only these are unseen."""
    seen = {train.picture(i).numpy().tobytes() for i in range(len(train))}
    return subset(pictures, [i for i in range(len(pictures)) if pictures.picture(i).numpy().tobytes() not in seen])


def chosen(pictures: PictureSet, count: int, name: str) -> list[str]:
    """`count` captions of a set, the same at every call: those whose hash comes first."""
    return sorted((record.text for record in pictures.records), key=lambda text: derive_seed(0, name, text))[:count]


def draw(pipeline: Pipeline, prompts: Sequence[str], wish: SamplingOptions, batch: int = 64) -> Tensor:
    """One picture uint8 [N, C, R, R] a prompt, from seeds 0, 1, 2, ..."""
    parts = pipeline.generate(prompts, range(len(prompts)), wish, batch)
    total = -(-len(prompts) // batch)
    return torch.cat(list(tqdm(parts, total=total, desc="drawing", unit="batch", leave=False)))


def known(drawings: Drawings, features: Features) -> Tensor:
    """Features [D, ...] of all drawings, against which pictures are measured."""
    return embed(lambda x: features(to_unit(x)), drawings.pixels)


def measured(
    drawings: Drawings, references: Tensor, pictures: Tensor, prompts: Sequence[str], features: Features
) -> Fidelity:
    """Prompt fidelity of pictures uint8 [N, C, R, R], each drawn for one prompt; references are what `known` says."""
    made = embed(lambda x: features(to_unit(x)), pictures)
    truth = torch.tensor([drawings.of[prompt] for prompt in prompts])
    return fidelity(made, references, truth, drawings.tones)
