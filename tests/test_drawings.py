"""Prompt fidelity on OpenMoji: distinct drawings, prompts that stay the same, and a ceiling of 100 %."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks.claims import fidelity as claim
from benchmarks.claims.drawings import (
    Drawings,
    choose_prompts,
    measure_fidelity,
    reference_features,
    without_twins,
)
from ldm_kit.cli import run_cli
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


class Painter:
    """Stands in for a pipeline: generates the true drawing of each caption, or that of the caption before it."""

    vae = None

    def __init__(self, shift: int) -> None:
        parts = split()
        sets = [parts.train, parts.heldout, parts.compositional]
        self.shift = shift
        self.pictures = {r.text: part.picture(i) for part in sets if part for i, r in enumerate(part.records)}

    def generate(self, prompts, seeds, options, batch):
        assert [*seeds] == [*range(len(prompts))]
        yield torch.stack([self.pictures[text] for text in prompts]).roll(self.shift, 0)


def test_the_claim_samples_seen_and_unseen_captions(monkeypatch):
    monkeypatch.setattr(claim, "judges", lambda vae, device: {"pixels": pixel_features})
    monkeypatch.setattr(
        claim.kit, "SamplingOptions", lambda: SimpleNamespace(resolve=lambda pipeline, options: options)
    )
    parts = split()
    assert parts.compositional is not None
    whole = subset(parts.train, [0, 1])
    rows = claim.measure(Painter(0), Split(whole, parts.compositional, None), 9)
    assert [*rows] == ["seen in training, nearest in pixels", "held-out pictures, nearest in pixels"]
    assert [(row.rank1, row.count) for row in rows.values()] == [(1.0, 2), (1.0, 1)]
    shifted = claim.measure(Painter(1), Split(whole, parts.compositional, None), 9)
    assert shifted["seen in training, nearest in pixels"].rank1 == 0.0


def test_a_claim_without_a_model_is_one_sentence(capsys):
    with pytest.raises(SystemExit):
        run_cli(claim.fidelity, ["--model", "nowhere"])
    error = capsys.readouterr().err
    assert error.startswith("error: no model in nowhere; train configs/openmoji/ae_quick.yaml")
