"""Image variations in the benchmark of conditions: shares, chance levels and correlations by closed forms; toy runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import one_hot

from benchmarks.claims import condition_variations
from benchmarks.claims.condition_data import faces
from benchmarks.claims.condition_judge import FaceJudge
from benchmarks.claims.condition_variations import (
    ALL,
    Itself,
    Known,
    Variations,
    Varied,
    above_chance,
    correlation,
    factor_figures,
    factor_values,
    halves,
    kept_figures,
    probed,
    shares_of,
    unrelated_shares,
)
from benchmarks.claims.condition_ways import originals
from ldm_kit.data.faces.values import FACTORS
from ldm_kit.models.pipeline import Pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
FEW = {"solver": "ddim", "steps": 2, "guidance_scale": 2.0}


def test_shares_of_pairs_leave_out_a_picture_and_its_own_values():
    values = torch.tensor([[0, 1], [0, 2], [1, 3]])
    read = torch.tensor([[0, 1], [1, 2], [1, 0]])
    assert shares_of(read, values).tolist() == pytest.approx([2 / 3, 2 / 3])
    # first factor: pairs i != j with equal values are (0, 1) and (1, 2); second: none
    assert unrelated_shares(read, values).tolist() == pytest.approx([2 / 6, 0])
    assert unrelated_shares(values, values).tolist() == pytest.approx([2 / 6, 0])


def test_pictures_that_ignore_what_is_given_are_at_chance():
    values = torch.randint(0, 4, (600, 3), generator=torch.Generator().manual_seed(0))
    read = values.roll(7, 0)
    kept = above_chance(shares_of(read, values), unrelated_shares(read, values))
    assert kept.abs().max() < 0.1
    assert above_chance(torch.tensor([0.25, 1.0, 0.625]), torch.full((3,), 0.25)).tolist() == [0, 1, 0.5]


def test_correlation_of_closed_forms():
    a = torch.tensor([0.0, 1.0, 2.0])
    assert correlation(a, 5 - 3 * a) == pytest.approx(-1)
    assert correlation(a, torch.tensor([1.0, 0.0, 2.0])) == pytest.approx(0.5)
    assert correlation(a, torch.ones(3)) == 0


def test_halves_are_of_what_is_known_best():
    known, shares = torch.tensor([0.1, 0.9, 0.5, 0.8]), torch.tensor([0.0, 0.4, 0.2, 0.6])
    assert halves(known, shares) == pytest.approx((0.5, 0.1))


def test_variations_are_scored_beside_what_the_embedding_knows():
    count, factors = 500, len(ALL)
    values = torch.randint(0, 5, (count, factors), generator=torch.Generator().manual_seed(1))
    good = torch.arange(factors) < 5
    wrong = torch.arange(count)[:, None] % 2 == 0  # half of the pictures have another value
    read = torch.where(good | ~wrong, values, (values + 1) % 5)
    figures = kept_figures(read, read, values)
    assert figures["correlation"] == pytest.approx(1)
    assert figures["known best"] == pytest.approx(1)
    assert figures["known least"] == pytest.approx(0.375, abs=0.05)  # (0.5 - 0.2) / 0.8
    opposite = torch.where(good & wrong, (values + 1) % 5, values)
    assert kept_figures(read, opposite, values)["correlation"] == pytest.approx(-1, abs=0.05)
    assert kept_figures(read, opposite, values)["known best"] == pytest.approx(0.375, abs=0.05)


def test_an_embedding_of_which_a_probe_tells_the_frequent_value_knows_nothing():
    count, noise = 1000, torch.Generator().manual_seed(2)
    values = torch.randint(0, 5, (count, len(ALL)), generator=noise)
    skewed = torch.arange(len(ALL)) < 5
    values = torch.where(skewed & (torch.rand(values.shape, generator=noise) < 0.65), 0, values)
    some = torch.arange(count)[:, None] % 10 < 4  # of the others 40 % are predicted
    predicted = torch.where(skewed, 0, torch.where(some, values, (values + 1) % 5))
    read = torch.where(skewed, values.roll(1, 0), values)
    figures = kept_figures(read, predicted, values)
    assert figures["known best"] == pytest.approx(1)
    assert figures["known least"] == pytest.approx(0, abs=0.1)


def test_figures_of_factors_are_by_name():
    shares = torch.arange(len(ALL)).double() / 10
    figures = factor_figures(shares)
    assert all(figures[factor] == shares[i] for i, factor in enumerate(FACTORS))
    assert figures["all factors"] == pytest.approx(0.45)


def test_values_of_all_factors_are_those_of_the_records(few_faces):
    heldout = faces("old").heldout
    values = factor_values(heldout, 3)
    for row, record in zip(values, heldout.records, strict=False):
        assert {factor: FACTORS[factor][i] for factor, i in zip(ALL, row.tolist(), strict=True)} == {
            factor: record.fields[factor] for factor in FACTORS
        }
    assert len(factor_values(heldout, 10**6)) == len(heldout)


def test_each_factor_has_a_probe_of_its_own(few_faces, monkeypatch):
    split = faces("old")
    codes = {len(each): factor_values(each, len(each)) for each in (split.train, split.heldout)}
    assert len(codes) == 2

    class OneHot:
        """A model whose embedding of all pictures of a set is their factors' values, each as an indicator."""

        @classmethod
        def load(cls, folder: Path) -> "OneHot":
            return cls()

        def embed(self, pictures: torch.Tensor) -> torch.Tensor:
            columns = codes[len(pictures)].unbind(1)
            return torch.cat([one_hot(c, len(FACTORS[f])) for c, f in zip(columns, ALL, strict=True)], 1).float()

    monkeypatch.setattr(condition_variations, "Pipeline", OneHot)
    predicted = probed.__wrapped__(Path("a"), len(split.heldout))
    shares = shares_of(predicted, codes[len(split.heldout)])
    assert shares.mean() > 0.5  # there are about 20 training faces for ten values of the clothes' colour


def test_variations_are_of_the_held_out_faces_and_noise_is_of_the_seed(bench, monkeypatch):
    asked: list[Any] = []
    generate = Pipeline.generate

    def recorded(self, prompts, seeds, options, *rest, pictures=None):
        asked.append((prompts, [*seeds], None if pictures is None else pictures["image"]))
        return generate(self, prompts, seeds, options, *rest, pictures=pictures)

    bench.runs.model("image", 0)
    monkeypatch.setattr(Pipeline, "generate", recorded)
    made = Variations(options=FEW).pictures(bench, 0)
    assert made.shape == (6, 3, 32, 32)
    ((prompts, seeds, given),) = asked
    assert (prompts, seeds) == ([""] * 6, [*range(6)])
    assert torch.equal(given, originals(bench))


def test_rows_score_what_is_read_in_their_own_pictures(bench, monkeypatch):
    values = factor_values(faces("old").heldout, 6)
    predicted = Known().predicted(bench)
    assert predicted.shape == values.shape
    assert Known().measure(bench, 0) == factor_figures(shares_of(predicted, values))
    monkeypatch.setattr(FaceJudge, "read", lambda self, pictures, factors: values if [*factors] == [*ALL] else None)
    for way in (Itself(), Varied(options=FEW)):
        assert way.measure(bench, 0)["all factors"] == 1
    chance = factor_figures(unrelated_shares(values, values))
    assert Varied(unrelated=True, options=FEW).measure(bench, 0) == chance
    assert Varied(options=FEW).measure(bench, 0).items() >= kept_figures(values, predicted, values).items()
