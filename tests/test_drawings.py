"""Prompt fidelity on OpenMoji: distinct drawings, prompts that stay the same, and a ceiling of 100 %."""

import torch

from benchmarks.claims.drawings import (
    Drawings,
    choose_prompts,
    measure_fidelity,
    reference_features,
    without_twins,
)
from ldm_kit.data.images import InMemory, Record, Split, subset


def records(*texts: str) -> list[Record]:
    return [Record(text, text, 0, {"skin_tone": text.partition(", ")[2].removesuffix(" skin tone")}) for text in texts]


def split() -> Split:
    """Four captions, of which `cook` and `man cook` share a drawing; one each is held out."""
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[1] = pixels[0]
    whole = InMemory(records("cook", "man cook", "fox", "hand, dark skin tone"), ["all"], pixels, "made up")
    return Split(subset(whole, [0, 2]), subset(whole, [1]), subset(whole, [3]))


def pixel_features(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1)


def test_a_drawing_that_stands_twice_is_one_drawing_with_two_captions():
    drawings = Drawings.all(split())
    assert len(drawings.pixels) == 3
    assert drawings.of["cook"] == drawings.of["man cook"] != drawings.of["fox"]
    assert drawings.tones[drawings.of["hand, dark skin tone"]] == "dark"


def test_the_true_pictures_reach_the_ceiling_and_others_do_not():
    parts = split()
    drawings = Drawings.all(parts)
    prompts = ["man cook", "fox", "hand, dark skin tone"]
    true = torch.stack([drawings.pixels[drawings.of[prompt]] for prompt in prompts])
    references = reference_features(drawings, pixel_features)
    best = measure_fidelity(drawings, references, true, prompts, pixel_features)
    assert (best.rank1, best.tone, best.tone_count) == (1.0, 1.0, 1)
    worst = measure_fidelity(drawings, references, true.roll(1, 0), prompts, pixel_features)
    assert (worst.rank1, worst.tone) == (0.0, 0.0)


def test_chosen_prompts_do_not_depend_on_the_order_of_the_set():
    whole = split().train
    assert choose_prompts(whole, 2, "a") == choose_prompts(subset(whole, [1, 0]), 2, "a")
    assert len(choose_prompts(whole, 1, "a")) == 1


def test_a_held_out_picture_with_a_twin_in_training_is_not_unseen():
    parts = split()  # "man cook" is held out, and drawn as the training picture "cook"
    assert len(without_twins(parts.heldout, parts.train)) == 0
    assert parts.compositional is not None
    assert len(without_twins(parts.compositional, parts.train)) == 1
