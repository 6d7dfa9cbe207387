"""Evaluation of several trainings at once, and by several processes."""

import json
import math
import os
import shutil
import statistics
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from ldm_kit.cli import app
from ldm_kit.config import UserError
from ldm_kit.inference import evaluate_job, evaluate_subjects
from ldm_kit.inference.evaluate import evaluate
from ldm_kit.inference.evaluate_runs import FigureOverRuns
from ldm_kit.models.feature_nets import FeatureNet
from ldm_kit.models.measures import Figure
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.training.checkpoint import steps
from tests.inference.colours import Colours, noise, save, split_of
from tests.training.helpers import ranks

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
QUICK = SamplingOptions(steps=2, guidance_scale=1)
T95 = 4.302652729911275  # Student's t of 2 degrees of freedom, two-sided 95 %


@pytest.fixture
def three(tmp_path):
    return [save(noise(12, seed, 1 - 0.2 * seed), tmp_path / f"run{seed}") for seed in range(3)]


def test_the_value_is_the_mean_and_the_interval_is_over_runs(colours, three):
    request = {"data": split_of(noise(15, 9)), "measures": "fd,mind,precision", "bootstrap": 5}
    single = [evaluate(path, **request) for path in three]
    result = evaluate(three, **request)
    for figure in result:
        values = [each[figure.name].value for each in single]
        mean, half = statistics.fmean(values), T95 * statistics.stdev(values) / math.sqrt(3)
        assert figure.values == values
        assert figure.value == pytest.approx(mean)
        assert figure.interval == pytest.approx((mean - half, mean + half))
    assert [run["measures"] for run in result.json["runs"]] == [each.json["measures"] for each in single]
    over_runs = result.json["over_runs"]["fd"]
    assert over_runs["deviation"] == pytest.approx(statistics.stdev(over_runs["values"]))
    assert "| name | measure | mean | 95 % interval | run 1 | run 2 | run 3 | better | pictures |" in str(result)


def test_the_reference_is_read_once(colours, three, monkeypatch):
    calls = []
    features = evaluate_job.picture_features
    monkeypatch.setattr(evaluate_job, "picture_features", lambda *given: calls.append(0) or features(*given))
    evaluate(three, data=split_of(noise(15, 9)), measures="fd", bootstrap=0)
    assert len(calls) == 1


def test_runs_of_one_model_are_sampled_alike(world, colours):
    run = world.model("text")
    checkpoints = sorted(steps(run).values())
    request = {"split": "train", "count": 4, "measures": "fd", "bootstrap": 0, "seed": 3}
    result = evaluate(checkpoints, QUICK, **request)
    assert result["fd"].values == [evaluate(path, QUICK, **request)["fd"].value for path in checkpoints]
    assert result["fd"].values[0] != result["fd"].values[1]


def test_the_command_writes_all_of_it(colours, three, tmp_path):
    save(noise(15, 9), tmp_path / "reference")
    arguments = [*map(str, three), "--reference", str(tmp_path / "reference"), "--measures", "fd", "--bootstrap", "2"]
    done = CliRunner().invoke(app, ["evaluate", *arguments])
    assert done.exit_code == 0, done.output
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert len(stored["runs"]) == len(stored["over_runs"]["fd"]["values"]) == 3
    assert "run 3" in done.stdout


def test_runs_that_do_not_compare_are_refused_before_anything_is_sampled(world, colours, three, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("nothing may be sampled")

    text, classes, kl, vq = (world.model(name) for name in ("text", "class", "kl", "vq"))
    monkeypatch.setattr(Pipeline, "generate", never)
    monkeypatch.setattr(evaluate_subjects.Folder, "batches", never)
    small = save(noise(9), tmp_path / "small")
    data = split_of(noise(15, 9))
    large = save(noise(12).repeat_interleave(2, 2).repeat_interleave(2, 3), tmp_path / "large")
    cases = [
        ([three[0], text], {"data": data}, "they are of kind model and folder"),
        ([three[0], large], {"data": data}, r"channels and side are \(3, 16\) and \(3, 8\)"),
        ([three[0], small], {"data": data}, "have 9 and 12 pictures; give --count"),
        ([three[0], three[0]], {"data": data}, "holds the same model as"),
        ([text, text / "model"], {"split": "train"}, "holds the same model as"),
        ([text, classes], {"split": "train"}, "prompts are classes and captions"),
        ([kl, vq], {"split": "train"}, "the class is VQModel and AutoencoderKL"),
        ([three[0]], {"data": data}, "a list of 1; expected two trainings"),
        ([], {"data": data}, "a list of 0; expected two trainings"),
    ]
    for paths, request, message in cases:
        with pytest.raises(UserError, match=message):
            evaluate(paths, bootstrap=0, **request)


def test_runs_on_other_data_need_a_reference(world, colours, tmp_path):
    run = world.model("text")
    other = tmp_path / "other"
    other.mkdir()
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree["data"]["heldout"] = 0.5
    (other / "config.yaml").write_text(yaml.safe_dump(tree))
    shutil.copytree(run / "model", other / "model")
    with pytest.raises(UserError, match="were trained on different data; give --reference"):
        evaluate([run, other], QUICK, split="train", count=3)


def _measured(path: Path, cache: Path, request: dict, fault: bool) -> object:
    """Evaluate on this process of several, by a network that fails on the second one if `fault`."""
    warnings.simplefilter("ignore")
    os.environ.update(LDM_KIT_CACHE=str(cache), ACCELERATE_USE_CPU="true")
    network = Colours()

    def failing(pictures):
        if fault and os.environ["RANK"] == "1":
            raise UserError("the second process fails")
        return network(pictures)

    net = FeatureNet("colours", failing, "not at all", "0" * 64)
    evaluate_job.load_feature_net = lambda *_: net
    try:
        result = evaluate(path, QUICK if path.name != "kl" else None, **request)
    except UserError as error:
        return str(error)
    return result.json["measures"], sum(map(len, network.seen))


@pytest.mark.parametrize("name", ["text", "kl"])
def test_two_processes_measure_what_one_does(world, colours, tmp_path, name):
    """11 pictures: the shares are unequal; reference features and pictures are divided, and no more are computed."""
    run, out = world.model(name), tmp_path / "two.json"
    request = {"split": "train", "count": 11, "reference_count": 13, "seed": 5, "bootstrap": 4, "batch_size": 4}
    request["measures"] = "fd,kid,recall" + (",psnr,spectral_share,kl_per_dimension" if name == "kl" else "")
    expected = evaluate(run, QUICK if name == "text" else None, **request).json["measures"]
    asked = {**request, "out": out}
    (first, a), (second, b) = ranks(2, _measured, run, tmp_path / "other", asked, False, folder=tmp_path / "ranks")
    assert first == second
    assert a + b == 11 + 13
    assert abs(a - b) == 2, "6 + 7 and 5 + 6"
    assert first.keys() == expected.keys()
    for measure, figure in expected.items():
        assert first[measure]["value"] == pytest.approx(figure["value"], rel=1e-3, abs=1e-5), measure
        if figure["interval"] is not None:
            assert first[measure]["interval"] == pytest.approx(figure["interval"], rel=1e-3, abs=1e-4), measure
    assert json.loads(out.read_text())["measures"] == json.loads(json.dumps(first))


def test_a_fault_on_one_process_ends_all(world, tmp_path):
    request = {"split": "train", "count": 6, "measures": "fd"}
    said = ranks(2, _measured, world.model("text"), tmp_path / "cache", request, True, folder=tmp_path / "ranks")
    assert said == ["the second process fails"] * 2


def test_more_processes_than_pictures(world, colours, tmp_path):
    request = {"split": "train", "count": 2, "reference_count": 3, "measures": "fd", "bootstrap": 0}
    expected = evaluate(world.model("text"), QUICK, **request)["fd"].value
    shares = ranks(3, _measured, world.model("text"), tmp_path / "c", request, False, folder=tmp_path / "ranks")
    assert [share[0]["fd"]["value"] for share in shares] == pytest.approx([expected] * 3, rel=1e-3, abs=1e-5)
    assert sum(share[1] for share in shares) == 5
    assert torch.tensor([share[1] for share in shares]).max() == 2


def test_equal_values_of_all_trainings_have_no_interval():
    """As a precision of 0 in each, from which nothing can be said of others."""

    def over(*values: float) -> FigureOverRuns:
        figures = tuple(Figure("precision", "p", value, None, "higher", 9) for value in values)
        return FigureOverRuns("precision", "precision", figures)

    assert over(0.0, 0.0, 0.0).interval is None
    assert over(0.0, 0.0, 0.1).interval is not None
