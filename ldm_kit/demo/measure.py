"""Prompts of a set of pictures, chosen by hash, and one sampled picture for each."""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_kit.data.images import PictureSet
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline


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
