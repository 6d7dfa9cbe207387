"""edit.py report: edits of a model in closed form end at the truth, and the report says what was measured."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.factors import FactorSpace, known_factors, pixel_digests
from ldm_kit.data.images import PictureSet, Record, Split, subset
from ldm_kit.data.rendered import DrawnSet, RenderedSet, Renderer
from ldm_kit.data.shapes.dataset import ShapesConfig
from ldm_kit.editing import code_measures, labels
from ldm_kit.editing.built_in import BuiltIn
from ldm_kit.editing.code_measures import measure_edits
from ldm_kit.editing.edit_errors import EditJudge, counterparts
from ldm_kit.editing.fit_directions import FitOptions, learn
from ldm_kit.editing.options import RoundTripSteps
from ldm_kit.editing.report import edit_options
from ldm_kit.editing.report_options import ReportOptions
from ldm_kit.metrics import dci as dci_module
from ldm_kit.metrics.factor_reader import FactorReader
from ldm_kit.models.protocol import encode_pictures, normalise
from tests.editing.fake import Fake
from tests.editing.models import semantic
from tests.world import World, through

SPACE = FactorSpace({"top": ("0", "40", "80", "120"), "bottom": ("10", "70", "130")})
STEPS = RoundTripSteps(steps=2, invert_steps=2)
QUICK = ("--steps", 2, "--invert_steps", 3)


def halves(values: list) -> Tensor:
    """Pictures of 16 px whose halves have the grey levels that the factors say: exactly additive."""
    pixels = torch.zeros(len(values), 3, 16, 16, dtype=torch.uint8)
    for i, one in enumerate(values):
        pixels[i, :, :8], pixels[i, :, 8:] = int(one["top"]), int(one["bottom"])
    return pixels


class ExactReader(FactorReader):
    """Reads the grey levels, to the nearest value."""

    def read(self, pictures, batch=256):
        means = pictures.double().mean(1)
        levels = means[:, :8].mean((1, 2)), means[:, 8:].mean((1, 2))
        known = [torch.tensor([float(value) for value in values]) for values in self.factors.values()]
        return torch.stack(
            [(k[None] - level[:, None]).abs().argmin(1) for k, level in zip(known, levels, strict=True)], 1
        )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> RenderedSet:
    """Every combination once."""
    combinations = [SPACE.combination(i) for i in range(SPACE.size)]
    records = [Record(f"{i}", "", None, values) for i, values in enumerate(combinations)]
    renderer = Renderer("halves", ["1"], SPACE.factors, halves)
    return DrawnSet(renderer, records, (), tmp_path_factory.mktemp("halves")).render()


def judge(pictures: RenderedSet, scale: float = 1.0, pairs: bool = False, model: Fake | None = None) -> EditJudge:
    model = model or Fake()
    columns = labels.from_factors(pictures)
    if not pairs:
        columns = [labels.Column(column.name, column.values) for column in columns]
    z = normalise(model, encode_pictures(model, pictures))
    names = [str(i) for i in range(len(pictures))]
    directions = learn(z, columns, names, "key", FitOptions(estimator="means", heldout=0.0))
    return EditJudge(model, directions, ExactReader(pictures.factors, 3, 16, 4), STEPS, scale)


@pytest.mark.parametrize("pairs", [False, True])
def test_edits_along_exact_directions_end_at_the_truth(pictures, pairs):
    """In a model whose pictures are linear in z, the means of a full design differ in one factor alone, as pairs do."""
    errors = judge(pictures, pairs=pairs).measure(pictures, 15)
    assert sum(map(len, errors.values())) == 15
    assert {factor: len(some) > 5 for factor, some in errors.items()} == {"top": True, "bottom": True}
    for error in (error for some in errors.values() for error in some):
        assert error.ratio < 0.02
        assert (error.right, error.unchanged, error.others, error.rank, error.readable) == (True, 1, 1, 1, True)
        assert error.candidates == 1 + 3 + 2


def test_half_the_strength_is_half_the_way(pictures):
    errors = judge(pictures, scale=0.5).measure(pictures, 12)
    assert all(error.ratio == pytest.approx(0.5, abs=0.02) for some in errors.values() for error in some)


def test_edits_are_of_chosen_factors_and_addressed(pictures):
    model = judge(pictures)
    chosen = model.measure(pictures, 6, ["bottom"])
    assert [*chosen] == ["bottom"]
    assert len(chosen["bottom"]) == 6
    assert chosen == model.measure(pictures, 6, ["bottom"])
    assert model.measure(pictures, 99, ["bottom"])["bottom"][:6] == chosen["bottom"], "the first do not depend on count"
    assert len(model.measure(subset_of(pictures, 2), 99)["top"]) == 2, "as many as the pictures allow"
    with pytest.raises(UserError, match="there is no factor 'middle'; expected one of top, bottom"):
        model.measure(pictures, 6, ["middle"])


def subset_of(pictures: RenderedSet, count: int):
    return known_factors(subset(pictures, range(count)))


def test_hidden_factors_are_neither_edited_nor_judged(pictures):
    """The bottom is hidden where the top is 120."""

    class Foggy(RenderedSet):
        def hidden(self, values):
            return frozenset({"bottom"}) if values["top"] == "120" else frozenset()

    foggy = Foggy(*(getattr(pictures, name) for name in ("records", "classes", "chunks", "fingerprint", "renderer")))
    columns = {column.name: column.values for column in labels.from_factors(foggy)}
    known = [value is not None for value in columns["bottom"]]
    assert known == [value != "120" for value in columns["top"]]
    errors = judge(pictures).measure(foggy, 99)
    assert len(errors["top"]) == 12
    assert len(errors["bottom"]) == 9
    assert {error.others for error in errors["top"]} == {0, 1}
    assert {error.others for error in errors["bottom"]} == {1}


class Watched(Fake):
    """Notes how many pictures are inverted, and has memory for two."""

    def __init__(self) -> None:
        super().__init__()
        self.inverted: list[int] = []
        self.refused = 0

    def invert(self, pictures, z, steps=250, batch=32, **rest):
        if len(pictures) > 2:
            self.refused += 1
            raise torch.OutOfMemoryError("too many")
        self.inverted.append(len(pictures))
        return super().invert(pictures, z, steps, batch, **rest)


def test_only_pictures_that_are_edited_are_inverted(pictures):
    model = Watched()
    watched = judge(pictures, model=model)
    assert [len(some) for some in watched.measure(pictures, 3).values()] == [2, 1]
    assert model.inverted == [2]
    in_halves, at_once = watched.measure(pictures, 99), judge(pictures).measure(pictures, 99)
    assert model.refused
    assert [len(some) for some in in_halves.values()] == [12, 12]
    for factor, errors in in_halves.items():
        for one, other in zip(errors, at_once[factor], strict=True):
            assert one.ratio == pytest.approx(other.ratio, abs=1e-3)


def test_edits_that_change_nothing_or_end_at_a_training_picture_are_not_made(pictures, tmp_path):
    """Two names of one grey level: edits from one to the other have no distance to measure."""
    space = FactorSpace({"top": ("0", "00", "80"), "bottom": ("10", "70")})
    records = [Record(f"{i}", "", None, space.combination(i)) for i in range(space.size)]
    double = DrawnSet(Renderer("doubles", ["1"], space.factors, halves), records, (), tmp_path).render()
    for index in range(len(double)):
        top = double.values(index)["top"]
        assert {edit.after for edit in counterparts(double, index, ["top"])} == {"0", "00", "80"} - (
            {"80"} if top == "80" else {"0", "00"}
        )
    errors = judge(double).measure(double, 99)
    assert all(error.ratio < 0.1 for some in errors.values() for error in some)
    seen = pixel_digests(subset(pictures, [i for i in range(len(pictures)) if pictures.values(i)["top"] != "40"]))
    left = judge(pictures).measure(pictures, 99, seen=seen)
    assert len(left["top"]) == 9, "to a top of 40 alone"
    assert len(left["bottom"]) == 3, "of a top of 40 alone"


def test_the_report_makes_no_edit_whose_result_was_trained_on(pictures, monkeypatch):
    exact = judge(pictures)
    monkeypatch.setattr(code_measures, "factor_reader", lambda *rest: exact.reader)
    options = edit_options(ReportOptions(dataset="shapes", edits=99, steps=2, invert_steps=2))

    def edits(train: PictureSet) -> int:
        data = BuiltIn(ShapesConfig(), Split(train, pictures, None), [], [])
        return measure_edits(exact.model, exact.directions, data, options, "cpu").report["all"]["edits"]

    assert edits(subset(pictures, [])) == 24
    assert edits(pictures) == 0


def test_counterparts_are_all_other_values(pictures):
    results = counterparts(pictures, 5, [*SPACE.factors])
    own = pictures.values(5)
    assert [(edit.factor, edit.after) for edit in results] == [
        (factor, value) for factor, values in SPACE.factors.items() for value in values if value != own[factor]
    ]
    for edit, picture in results.items():
        assert edit.before == own[edit.factor]
        assert torch.equal(picture, halves([{**own, edit.factor: edit.after}])[0])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return semantic(tmp_path_factory.mktemp("run") / "model").parent


@pytest.fixture
def few_trees(monkeypatch):
    monkeypatch.setattr(dci_module, "TREES", 4)
    monkeypatch.setattr(dci_module, "FOREST_DEPTHS", (4,))


def test_a_labelled_folder(model, world: World, tmp_path, few_trees):
    """Labels give probes and the measures of codes, but no edits."""
    rows = [f"{i:02d}.png,{int(i % 3 == 0)},{'abc'[i % 3]},same" for i in range(24)]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["file_name,red,kind,constant", *rows]))
    given = ("--model", model, "--images", world.pictures, "--labels", table, "--out", tmp_path / "r.json")
    done = through("edit", "report", *given, "--group_size", 4)
    assert done.status == 0, done.err
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["codes"]["dimensions"], report["codes"]["groups"]) == (8, 2)
    assert {*report["probes"]} == {*report["codes"]["dci"]["accuracy"]} == {"red", "kind"}
    assert "edits" not in report
    assert str(world.pictures) not in json.dumps(report)
    assert "codes of 24 pictures of pictures: 8 dimensions in 2 groups" in done.out
    assert f"report in {tmp_path / 'r.json'}" in done.out


def test_shapes_with_edits(model, tmp_path, monkeypatch, few_trees):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path))
    given = ("--dataset", "shapes", "--count", 60, "--edits", 3, "--factor", "shape", "--factor", "wall")
    quick = (*QUICK, "--reader_count", 20, "--reader_epochs", 1, "--estimator", "means")
    done = through("edit", "report", "--model", model, *given, *quick)
    assert done.status == 0, done.err
    report = json.loads((model / "model" / "reports" / "shapes.json").read_text())
    edits = report["edits"]
    assert {*edits["factors"]} == {"shape", "wall"}
    assert edits["all"]["edits"] == sum(some["edits"] for some in edits["factors"].values()) == 3
    assert {*edits["reader"]} == {*report["probes"]}
    assert len([line for line in done.out.splitlines() if line.startswith("| ")]) == 1 + 6 + 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "expected one source"),
        (("--dataset", "shapes", "--factor", "colour"), "there is no factor 'colour'; expected one of floor"),
        (("--dataset", "shapes", "--group_size", "3"), "--group_size 3 does not divide a code of 8 dimensions"),
        (("--images", "."), "--images and --labels belong together"),
        (("--dataset", "shapes", "--out", "report.txt"), "ends in .json"),
        (("--dataset", "shapes", "--regressor", "line"), "regressor"),
    ],
)
def test_wrong_input_is_one_sentence(model, given, message, tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path))
    more = ("--count", 40) if "shapes" in given else ()
    done = through("edit", "report", "--model", model, *given, *more)
    assert done.status != 0
    assert message in " ".join(done.err.replace("│", " ").split()), done.err


def test_a_set_without_labels_and_a_model_that_is_not_semantic(model, world: World, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["file_name,kind", *(f"{i:02d}.png,same" for i in range(24))]))
    labelled = ("--images", world.pictures, "--labels", table)
    done = through("edit", "report", "--model", model, *labelled)
    assert (done.status, len(done.errors)) == (2, 1), done.err
    assert "no attribute" in done.err
    (tmp_path / "empty").mkdir()
    done = through("edit", "report", "--model", tmp_path / "empty", *labelled)
    assert (done.status, len(done.errors)) == (2, 1), done.err
