"""The claims of papers in miniature: the rule of their verdicts, and one claim from training to its table."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.claims import paper_judge
from benchmarks.claims.paper_claims import CLAIMS, Claim, Test, sampled
from benchmarks.claims.paper_runs import VARIANTS, Runs
from benchmarks.claims.paper_ways import Bench, Likely, SampledLarge
from benchmarks.claims.papers import MEASURES, papers
from benchmarks.claims.verdict import OPPOSITE, REPRODUCED, UNDECIDED, Comparison, cells, judge, tally

TINY = (
    "log.max_heldout=16",
    "train.steps=2",
    "train.batch_size=8",
    "unet.widths=[8,8]",
    "log.pictures=2",
    "sample.steps=2",
)


def compare(pairs, **options):
    return Comparison("claim", "source", "a", "b", "distance", options.pop("higher", False), pairs, **options)


@pytest.mark.parametrize(
    ("differences", "higher", "verdict"),
    [
        ([1.0, 1.1, 0.9], True, REPRODUCED),
        ([1.0, 1.1, 0.9], False, OPPOSITE),
        ([-1.0, -1.1, -0.9], False, REPRODUCED),
        ([-1.0, -1.1, -0.9], True, OPPOSITE),
        ([1.0, 2.0, 0.1], True, UNDECIDED),  # 1.03 -+ 2.36: all three are positive, and still 0 is within
        ([0.0, 0.0, 0.0], True, UNDECIDED),
        ([5.0], True, UNDECIDED),
    ],
)
def test_a_claim_holds_where_the_interval_is_on_its_side(differences, higher, verdict):
    assert judge(differences, higher=higher) == verdict


def test_seeds_are_paired():
    """Values differ much more between seeds than A from B, which the pairs cancel."""
    comparison = compare([(10.0, 11.0), (20.0, 21.1), (30.0, 30.9)])
    assert comparison.verdict == REPRODUCED
    assert compare([(10.0, 11.0), (20.0, 30.9), (30.0, 21.1)]).verdict == UNDECIDED


def test_a_factor_multiplies_b_alone():
    comparison = compare([(3.0, 2.0), (3.1, 2.1)], factor=2.0)
    assert comparison.differences == pytest.approx([-1.0, -1.1])
    row = cells(comparison, ".2f")
    assert row[2:6] == ["2 x b", "distance, A lower", "3.05", "2.05"]
    assert row[6].startswith("-1.05 [-1.69, -0.41]")  # t of 1 degree is 12.7062; the deviation over sqrt(2) is 0.05


def test_verdicts_are_counted_in_the_rows_of_tables_alone():
    row = "| a claim, **reproduced** elsewhere | a | b | **{}** |"
    verdicts = [REPRODUCED, OPPOSITE, REPRODUCED, UNDECIDED]
    page = "\n".join(["It is **reproduced** if", *(row.format(verdict) for verdict in verdicts)])
    counted = f"Comparisons below: 4, of which 2 **{REPRODUCED}**, 1 **{OPPOSITE}**, 1 **{UNDECIDED}**."
    assert tally(page) == counted
    assert tally(f"{page}\n{counted}") == counted


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_compare_their_own_rows_by_known_measures(name):
    claim = CLAIMS[name]()
    assert claim.tests
    for test in claim.tests:
        assert {test.a, test.b} <= {*claim.rows}
        assert {test.measure, test.other or test.measure} <= {*MEASURES}
    ways: list[Any] = [*claim.rows.values()]
    models = {getattr(way, name, "") for way in ways for name in ("model", "classifier")}
    models |= {name for way in ways for name in getattr(way, "trainings", ())}
    assert models - {""} <= {*VARIANTS}


def test_ways_that_differ_are_measured_apart():
    ways = [sampled("eps", "ddim", 10), sampled("eps", "ddim", 20), sampled("x0", "ddim", 10), Likely("eps")]
    ways += [sampled("eps", "ddim", 10, "classifier"), sampled("eps", "ddim", 10, guidance_scale=2.0)]
    ways.append(SampledLarge("eps", {"solver": "ddim", "steps": 10}))
    assert len({repr(way) for way in ways}) == len(ways)


def test_a_claim_is_trained_measured_once_and_printed_again(tmp_path, monkeypatch, capsys):
    """End to end at toy size; the second time nothing is trained or measured."""
    monkeypatch.setattr(paper_judge, "READER", paper_judge.ReaderConfig(width=2, epochs=1))
    toy = Claim(
        {"a": sampled("eps", "ddim", 1), "b": sampled("eps", "ddpm", 1)},
        [Test("few", "nowhere", "a", "b", "distance")],
        sheet=True,
    )
    page = tmp_path / "claims.md"
    page.write_text("# Claims\n", encoding="utf-8")
    monkeypatch.setattr("benchmarks.claims.papers.page_of", lambda name: page)
    monkeypatch.setitem(CLAIMS, "toy", lambda: toy)
    monkeypatch.setattr("benchmarks.claims.papers.Runs", lambda out, seeds: Runs(out, seeds, TINY))
    papers(["toy"], out=tmp_path, seeds=2, count=16, page=True)
    _, heading, printed = capsys.readouterr().out.partition("## toy")
    assert "few (nowhere)" in printed
    assert any(verdict in printed for verdict in (REPRODUCED, OPPOSITE, UNDECIDED))
    assert (heading + printed).strip() in page.read_text(encoding="utf-8")
    assert "Comparisons below: 1, of which" in page.read_text(encoding="utf-8")
    assert (tmp_path / "claims-toy.png").stat().st_size > 0
    assert sorted(path.name for path in tmp_path.glob("eps-*")) == ["eps-0", "eps-1"]
    monkeypatch.setattr("benchmarks.claims.paper_runs.train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(Bench, "judge", property(lambda _: pytest.fail("measured again")))
    papers(["toy"], out=tmp_path, seeds=2, count=16, page=False)
    assert capsys.readouterr().out.endswith(heading + printed)
    bench = Bench(Runs(tmp_path))
    variances = [way.pipeline(bench, 0).variance for way in (sampled("eps", "ddpm", 1), SampledLarge("eps"))]
    assert variances == ["small", "large"]


def test_what_a_run_starts_from_is_trained_first_with_the_same_seed(tmp_path, monkeypatch):
    trained: list[list[str]] = []

    def train(config: Path, overrides: list[str], data: None = None) -> None:
        trained.append(overrides)
        Path(overrides[0].removeprefix("run="), "model").mkdir(parents=True)

    monkeypatch.setattr("benchmarks.claims.paper_runs.train", train)
    runs = Runs(tmp_path)
    assert runs.model("pdae", 2) == tmp_path / "pdae-2" / "model"
    assert [overrides[:2] for overrides in trained] == [
        [f"run={tmp_path / 'unconditional-2'}", "seed=2"],
        [f"run={tmp_path / 'pdae-2'}", "seed=2"],
    ]
    assert f"base={tmp_path / 'unconditional-2'}" in trained[1]
    runs.model("pdae", 2)
    assert len(trained) == 2
    assert runs.seconds("pdae", 2) >= 0
