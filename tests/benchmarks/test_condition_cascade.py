"""The cascade in the benchmark of conditions: small faces and figures by closed forms, and toy runs."""

from typing import Any, cast

import pytest
import torch

from benchmarks.claims import condition_cascade
from benchmarks.claims.condition_cascade import (
    LEVEL,
    Cascaded,
    Enlarged,
    Faces,
    OneModel,
    Upscaled,
    caption_figures,
    enlarged,
)
from benchmarks.claims.condition_data import faces, reduced, small_faces
from benchmarks.claims.condition_judge import FaceJudge
from benchmarks.claims.condition_runs import FACTOR
from benchmarks.claims.condition_variations import ALL, factor_values
from benchmarks.claims.condition_ways import originals
from ldm_kit.data.faces.values import FACTORS
from ldm_kit.models.pipeline import Pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2


class _Reader:
    """A reader of all factors, which reads what it is told."""

    factors = FACTORS

    def __init__(self, read: torch.Tensor) -> None:
        self.numbers = read

    def read(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.numbers


def test_small_faces_are_means_of_pixels(few_faces):
    picture = torch.tensor([[[[0, 4, 10, 10], [8, 12, 10, 13]]]], dtype=torch.uint8)
    assert reduced(picture, 2).tolist() == [[[[6, 11]]]]
    small, large = small_faces("old", 4), faces("old")
    assert small.train.resolution == 8
    assert [one.name for one in small.heldout.records] == [one.name for one in large.heldout.records]
    corner = large.heldout.picture(1)[:, 8:12, 20:24].double().mean((1, 2))
    assert (small.heldout.picture(1)[:, 2, 5] - corner).abs().max() <= 0.5
    assert small.train.fingerprint != large.train.fingerprint


def test_enlarged_pictures_of_one_colour_stay_it():
    picture = torch.full((1, 3, 2, 2), 77, dtype=torch.uint8)
    assert torch.equal(enlarged(picture, 4), torch.full((1, 3, 8, 8), 77, dtype=torch.uint8))
    edge = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)  # bicubic interpolation overshoots
    assert enlarged(edge, 4)[0, 0, 0].tolist() == sorted(enlarged(edge, 4)[0, 0, 0].tolist())


def test_figures_of_captions_are_of_the_captions_factors(few_faces, monkeypatch):
    count = 4
    asked = factor_values(faces("old").heldout, count)
    numbers = asked.clone()
    numbers[0, ALL.index("skin")] = (numbers[0, ALL.index("skin")] + 1) % 5
    numbers[:2, ALL.index("beard")] = (numbers[:2, ALL.index("beard")] + 1) % 6
    judge = FaceJudge(cast(Any, _Reader(numbers)))
    monkeypatch.setattr(condition_cascade, "face_judge", lambda: judge)
    monkeypatch.setattr(FaceJudge, "distance", lambda self, pictures, group: {"old": 3.0}[group])
    figures = caption_figures(torch.zeros(count, 3, 32, 32, dtype=torch.uint8))
    assert figures["caption values"] == pytest.approx(21 / 24)
    assert figures["colours"] == pytest.approx(11 / 12)
    assert figures["shapes"] == pytest.approx(10 / 12)
    assert figures["distance"] == 3


def test_rows_of_the_cascade_are_its_models(bench, monkeypatch):
    asked: list[Any] = []
    generate = Pipeline.generate

    def recorded(self, prompts, seeds, options, *rest, pictures=None):
        level = getattr(options, "noise_level", None)
        asked.append((self.resolution, [*prompts], [*seeds], level, None if pictures is None else pictures["image"]))
        return generate(self, prompts, seeds, options, *rest, pictures=pictures)

    for name in ("pixels", "small", "upscaler"):
        bench.runs.model(name, 0)
    monkeypatch.setattr(Pipeline, "generate", recorded)
    texts = [record.text for record in faces("old").heldout.records[:6]]
    made = [way.pictures(bench, 0) for way in (OneModel(), Enlarged(), Upscaled())]
    one, small, upscaled = asked
    assert {picture.shape for picture in made} == {(6, 3, 32, 32)}
    assert one[:3] == (32, texts, [*range(6)])
    assert small[:3] == (8, texts, [*range(6)])
    assert torch.equal(upscaled[4], reduced(originals(bench), FACTOR))
    assert upscaled[3] == LEVEL
    asked.clear()
    pictures = Cascaded().pictures(bench, 0)
    first, second = asked
    assert first[:3] == small[:3]
    assert (second[0], second[3]) == (32, LEVEL)
    assert torch.equal(enlarged(second[4], FACTOR), made[1])
    assert pictures.shape == (6, 3, 32, 32)
    assert torch.equal(Faces().pictures(bench, 0), originals(bench))


def test_seconds_of_a_cascade_are_those_of_both_trainings(bench):
    both = sum(bench.runs.seconds(name, 0) for name in ("small", "upscaler"))
    assert Cascaded().measure(bench, 0)["seconds"] == both
    assert OneModel().measure(bench, 0)["seconds"] == bench.runs.seconds("pixels", 0)
