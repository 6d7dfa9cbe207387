"""The benchmark of few steps: intervals, rows, and what it refuses before it samples."""

import math
import re
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.claims import few_steps
from benchmarks.claims.few_steps import HEAD, SHOWN, Figures, Way, evaluations_of, interval, plan, row, some, ways
from ldm_kit.config import UserError

CONSISTENCY = "configs/consistency/tune.yaml"
GUIDED = "configs/faces/ldm_guidance.yaml"


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """Folders of runs with nothing but their configs."""
    configs = {"base": "configs/faces/ldm_minilm.yaml", "one": CONSISTENCY, "two": CONSISTENCY, "guided": GUIDED}
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(Path(config).read_text(encoding="utf-8"), encoding="utf-8")
    return {name: tmp_path / name for name in configs}


def test_few_runs_are_listed_and_more_have_an_interval():
    assert interval([88.64]) == "88.6"
    assert interval([88.64, 70, 3.21, 1]) == "88.6, 70.0, 3.2, 1.0"
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    half = 2.7764 * statistics.stdev(values) / math.sqrt(5)
    assert interval(values, 2) == f"3.00 [{3 - half:.2f}, {3 + half:.2f}]"


def test_a_row_has_a_cell_for_each_title():
    cells = row("tune", "consistency, 2 steps", 2, [Figures(90, 30, 65.25, 151.4), Figures(80, 10, 70, 149)])
    assert cells == ["tune", "consistency, 2 steps", "2", "90.0, 80.0", "30.0, 10.0", "65.2, 70.0", "151, 149"]
    assert len(cells) == len(HEAD)


def test_the_plan_is_the_base_and_then_each_kind(runs):
    planned = plan(runs["base"], [f"tune={runs['one']},{runs['two']}", f"guidance={runs['guided']}"], 3.0)
    titles = [*dict.fromkeys(way.title for way in planned)]
    assert titles == ["base", "tune, 2 runs", "guidance"]
    tuned = [way for way in planned if way.name == "tune"]
    assert [(way.sampling, way.guidance_scale) for way in tuned] == [
        ("consistency, 4 steps", 1.0),
        ("consistency, 2 steps", 1.0),
        ("consistency, 1 step", 1.0),
    ]
    assert tuned[0].runs == (runs["one"], runs["two"])
    assert {way.guidance_scale for way in planned if way.name != "tune"} == {3.0}


def test_a_consistency_model_of_several_scales_is_sampled_with_one(runs):
    config = runs["one"] / "config.yaml"
    text = re.sub("(?m)^guidance: .*$", "guidance: [1, 4]", config.read_text(encoding="utf-8"))
    config.write_text(text, encoding="utf-8")
    assert {scale for _, _, scale in ways(runs["one"], 3.0)} == {3.0}


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["tune"], "tune: 0 runs; expected NAME=RUN,RUN,... with at least 1 run"),
        (["tune=one,guided"], "guided is sampled differently from .*one; expected runs of one config"),
        (["tune=one,absent"], "absent"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_sampling(runs, kinds, message, monkeypatch):
    monkeypatch.chdir(runs["base"].parent)
    monkeypatch.setattr(few_steps.Pipeline, "load", lambda folder: pytest.fail("loaded"))
    with pytest.raises(UserError, match=message):
        few_steps.main(Path("base"), kinds, page=False)


def test_evaluations_are_those_of_the_network():
    way = Way("guidance", (Path("a"), Path("b")), "dpm++", 4, 2.0)
    takes, plain = SimpleNamespace(takes_scale=True), SimpleNamespace(takes_scale=False)
    assert evaluations_of(way, [takes, takes]) == 4
    assert evaluations_of(way, [plain]) == 8, "guidance evaluates the network twice"
    assert Way("tune", (Path("a"),), "consistency", 4, 1.0).evaluations(False) == 4
    with pytest.raises(UserError, match="only some of these models take the guidance scale"):
        evaluations_of(way, [takes, plain])


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (6, 6), (8, 8), (15, 8), (400, 8)])
def test_some_pictures_are_shown_however_few_there_are(count, shown):
    numbers = some(torch.arange(count)[:, None, None, None])[:, 0, 0, 0].tolist()
    assert len(numbers) == shown <= SHOWN
    assert numbers == [*range(0, count, max(1, count // 8))][:8]


def test_each_row_is_on_the_page_as_soon_as_it_is_measured(runs, tmp_path, monkeypatch):
    page = tmp_path / "few-steps.md"
    page.write_text("# Few steps\n\n<!-- few steps -->\nold\n<!-- /few steps -->\n\nText.\n", encoding="utf-8")
    measured = iter([(Figures(90, 30, 65, 151), torch.zeros(6, 3, 8, 8, dtype=torch.uint8))] * 2)
    judge = SimpleNamespace(measure=lambda *rest: next(measured))
    monkeypatch.setattr(few_steps, "page_of", lambda name: page)
    monkeypatch.setattr(few_steps.Pipeline, "load", lambda folder: SimpleNamespace(takes_scale=False))
    monkeypatch.setattr(few_steps.Judge, "open", lambda *rest: judge)
    with pytest.raises(StopIteration):  # the third way is not measured any more
        few_steps.main(runs["base"], prompts=3)
    text = page.read_text(encoding="utf-8")
    assert text.count("| base | dpm++,") == 2
    assert "| base | dpm++, 8 steps | 16 | 90.0 | 30.0 | 65.0 | 151 |\n<!-- /few steps -->\n\nText." in text
    assert "old" not in text
    assert page.with_suffix(".png").is_file()
