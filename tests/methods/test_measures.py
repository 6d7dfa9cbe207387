"""Measures that a run takes while it trains: their values, what they leave unchanged, and what is refused."""

import json
import math

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.data import peers
from ldm_kit.data.peers import Alone
from ldm_kit.diffusion.finite import NonFiniteError
from ldm_kit.inference import evaluate_job
from ldm_kit.inference.evaluate import evaluate
from ldm_kit.inference.requests import EvaluationRequest
from ldm_kit.methods import measures_check, train
from ldm_kit.methods.measures import open_measures
from ldm_kit.methods.measures_check import BETTER, better, check_measures, comparable, with_direction
from ldm_kit.methods.shared_work import SharedWork
from ldm_kit.methods.train import open_method
from ldm_kit.models.feature_nets import LITE0, FeatureNet, Features
from ldm_kit.models.measures import PICTURES
from tests.data.test_peers import together
from tests.training.helpers import CLASSES, CLASSIFIER, DIFFAE, KL, TEXT, VQ, picture_folder, reset, settings

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
SAMPLED = ("sample.solver=ddim", "condition_dropout=0.1")
QUICK = ("train.steps=4", "train.checkpoint_every=2", "log.evaluate_every=1", "log.pictures=2", "log.every=1")
TAKEN = ("log.measures={names: [fd, recall], every: 2, count: 6}",)


def colours(pictures):
    """Features that depend on each picture alone: mean and deviation of each channel."""
    x = pictures.double() / 255
    return Features(torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1).float())


NET = FeatureNet("colours", colours, "not at all", "0" * 64, texts=lambda texts: torch.ones(len(texts), 6))


def load_net(*_):
    torch.rand(7)  # as the random weights of a network before it gets its own
    return NET


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("pictures") / "set", count=24)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """A cache of its own, and one network in the place of every feature network."""
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measures_check, "load_feature_net", load_net)
    monkeypatch.setattr(evaluate_job, "load_feature_net", load_net)
    reset()


def config_of(tree, pictures, run, *overrides):
    return settings(tree, pictures, run, "data.heldout=0.4", *QUICK, *overrides)


def trained(tree, pictures, run, *overrides, resume=None):
    reset()
    train.train(config_of(tree, pictures, run, *overrides), resume=resume)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "heldout_fd" in line}


def weights(run):
    return {path.relative_to(run): path.read_bytes() for path in sorted((run / "model").rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    """A run that was measured at steps 2 and 4, and the lines of its log at these steps."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDM_KIT_CACHE", str(folder.parent / "cache"))
        patch.setattr(measures_check, "load_feature_net", load_net)
        return folder, trained(TEXT, pictures, folder, *TAKEN)


def test_measuring_changes_no_weight(run, pictures, tmp_path):
    folder, lines = run
    assert list(lines) == [2, 4], "steps that log.measures.every divides"
    assert not trained(TEXT, pictures, tmp_path / "run")
    assert weights(folder) == weights(tmp_path / "run")


def test_the_last_values_are_those_of_the_command(run):
    folder, lines = run
    result = evaluate(folder, count=6, bootstrap=0, measures="fd,recall")
    for name in ("fd", "recall"):
        assert lines[4][f"heldout_{name}"] == pytest.approx(result[name].value, rel=1e-4), name
    assert lines[2]["heldout_fd"] != lines[4]["heldout_fd"]


def test_a_resumed_run_measures_what_the_whole_one_did(run, pictures, tmp_path):
    _, lines = run
    short = tmp_path / "run"
    trained(TEXT, pictures, short, *TAKEN)
    again = trained(TEXT, pictures, short, *TAKEN, resume=str(short / "checkpoint-00000002"))
    assert again == lines


@pytest.mark.parametrize(("metric", "spec"), [("heldout_recall", "max:heldout_recall"), ("heldout_fd", "heldout_fd")])
def test_the_best_checkpoint_follows_the_measures_direction(metric, spec, pictures, tmp_path):
    folder = tmp_path / "run"
    lines = trained(TEXT, pictures, folder, *TAKEN, f"train.keep_best={metric}")
    best = json.loads((folder / "best.json").read_text())
    values = [line[metric] for line in lines.values()]
    assert best["metric"] == metric
    assert best["value"] == pytest.approx(max(values) if "max" in spec else min(values), rel=1e-5)
    assert (
        with_direction(config_of(TEXT, pictures, folder, *TAKEN, f"train.keep_best={metric}")).train.keep_best == spec
    )


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("heldout_psnr", "max:heldout_psnr"),
        ("max:heldout_psnr", "max:heldout_psnr"),
        ("train_ssim", "max:train_ssim"),
        ("heldout_codebook_usage", "max:heldout_codebook_usage"),
        ("heldout_accuracy_q3", "max:heldout_accuracy_q3"),
        ("heldout_loss", "heldout_loss"),
        ("train_perceptual", "train_perceptual"),
        ("heldout_own", "heldout_own"),
        ("max:heldout_own", "max:heldout_own"),
        ("max:psnr", "max:psnr"),
    ],
)
def test_keep_best_knows_which_values_of_the_kits_figures_are_better(spec, expected, pictures, tmp_path):
    config = config_of(KL, pictures, tmp_path, f"train.keep_best={spec}")
    assert with_direction(config).train.keep_best == expected


def test_every_figure_of_the_methods_has_a_known_direction(pictures, tmp_path):
    """Else `keep_best` would keep the worst checkpoint of a figure of which higher values are better."""
    from ldm_kit.methods import find_method
    from ldm_kit.methods.run_config import method_name

    for tree in (KL, VQ, TEXT, DIFFAE, CLASSIFIER):
        config = config_of(tree, pictures, tmp_path)
        names = find_method(method_name(config)).figures(config, None)
        assert names
        assert all(better(name) in ("lower", "higher") for name in names), names


def test_the_greatest_psnr_is_kept_without_saying_max(pictures, tmp_path):
    folder = tmp_path / "run"
    config = config_of(KL, pictures, folder, "train.keep_best=heldout_psnr")
    reset()
    train.train(config)
    values = [json.loads(line).get("heldout_psnr") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = json.loads((folder / "best.json").read_text())
    assert best["value"] == pytest.approx(max(value for value in values if value is not None), rel=1e-5)


def test_a_measure_that_is_not_due_is_not_compared(pictures, tmp_path):
    config = config_of(TEXT, pictures, tmp_path, *TAKEN, "train.keep_best=heldout_fd")
    assert comparable({"heldout_loss": 1.0}, config) is None
    assert comparable({"heldout_loss": 1.0, "heldout_fd": 2.0}, config)
    other = config_of(TEXT, pictures, tmp_path, *TAKEN, "train.keep_best=heldout_psnr")
    assert comparable({"heldout_loss": 1.0}, other) == {"heldout_loss": 1.0}, "an error that names it follows"


def opened(tree, pictures, tmp_path, *overrides):
    method = open_method(config_of(tree, pictures, tmp_path / "run", *overrides))
    check_measures(method.config, type(method), method.data)
    method.measures = open_measures(method.config, method.data, NET, method.eval_batch)
    return method


MORE = "log.measures={names: [fd, kid, mind, precision, recall, density, coverage%s], count: 6}"


@pytest.mark.parametrize(
    ("tree", "more"), [(KL, ", ssim_zero_padded"), (CLASSES, ""), ({**TEXT}, "")], ids=["kl", "class", "text"]
)
def test_each_kind_of_run_is_measured_and_held_out_pictures_themselves_are_perfect(tree, more, pictures, tmp_path):
    method = opened(tree, pictures, tmp_path, MORE % more)
    values = method.in_evaluation("take_measures")
    assert {*values} == {f"heldout_{name}" for name in method.config.log.measures.names}
    assert all(map(math.isfinite, values.values()))
    heldout = method.data.heldout
    method.measures.rows = [*range(len(heldout))]
    perfect = method.measures.take(lambda rows, _: heldout.pictures(rows))
    assert perfect["heldout_fd"] == pytest.approx(0, abs=1e-6)
    assert perfect["heldout_recall"] == perfect["heldout_coverage"] == 1
    assert perfect.get("heldout_ssim_zero_padded", 1) == pytest.approx(1)
    assert values["heldout_fd"] > perfect["heldout_fd"] + 1e-4


RECONSTRUCTED = ("psnr", "mse", "ssim", "ssim_zero_padded")
ROUND_TRIP = ("log.measures={names: [%s], every: 2, count: 6}", "sample={encode_steps: 3, decode_steps: 2}")


def test_a_semantic_run_measures_both_reconstructions_as_the_command_does(pictures, tmp_path, monkeypatch):
    """No feature network is opened for them, and the checkpoint with the greatest PSNR is kept."""
    names = [f"{name}{ending}" for ending in ("", "_random") for name in RECONSTRUCTED]
    measured, steps = ROUND_TRIP
    monkeypatch.setattr(measures_check, "load_feature_net", lambda *_: pytest.fail("it needs no features"))
    folder = tmp_path / "run"
    train.train(config_of(DIFFAE, pictures, folder, measured % ", ".join(names), steps, "train.keep_best=heldout_psnr"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = {line["step"]: line for line in lines if "heldout_psnr" in line}
    assert list(lines) == [2, 4]
    result = evaluate(folder, count=6, bootstrap=0, measures=",".join(names))
    for name in names:
        assert lines[4][f"heldout_{name}"] == pytest.approx(result[name].value, rel=1e-4), name
    assert lines[4]["heldout_psnr"] != pytest.approx(lines[4]["heldout_psnr_random"], rel=1e-3)
    best = json.loads((folder / "best.json").read_text())
    assert best["value"] == pytest.approx(max(line["heldout_psnr"] for line in lines.values()), rel=1e-5)


@pytest.mark.parametrize(("names", "calls"), [("psnr", (6, 0)), ("mse_random", (0, 6)), ("mse_random, psnr", (6, 6))])
def test_only_the_reconstructions_that_are_measured_are_made(names, calls, pictures, tmp_path):
    measured, steps = ROUND_TRIP
    method = open_method(config_of(DIFFAE, pictures, tmp_path / "run", measured % names, steps))
    method.measures = open_measures(method.config, method.data, None, method.eval_batch)
    heldout, made = method.data.heldout, ([], [])

    def perfect(kind):
        return lambda rows, seeds: made[kind].extend(rows) or heldout.pictures(rows)

    values = method.measures.take(perfect(0), perfect(1))
    assert tuple(map(len, made)) == calls
    assert values == {
        f"heldout_{name}": 0 if "mse" in name else pytest.approx(100, abs=10) for name in names.split(", ")
    }


def test_pictures_that_cannot_be_sampled_give_no_value_and_no_error(pictures, tmp_path):
    method = opened(TEXT, pictures, tmp_path, *TAKEN)

    def fails(rows, seeds):
        raise NonFiniteError("NaN")

    assert all(math.isnan(value) for value in method.measures.take(fails).values())


@pytest.mark.parametrize("fault", [None, 0, 1])
def test_processes_share_the_pictures_and_a_fault_ends_the_pass_on_all(fault, pictures, tmp_path):
    methods = [opened(CLASSES, pictures, tmp_path / str(rank), *TAKEN, *SAMPLED) for rank in range(2)]
    methods[1].module.load_state_dict(methods[0].module.state_dict())
    alone, asked = methods[0].in_evaluation("take_measures"), {}

    def process(rank):
        method = methods[rank]
        make = method.measured_pictures

        def recorded(rows, seeds):
            asked.setdefault(rank, []).extend(seeds)
            if rank == fault:
                raise UserError("a fault")
            return make(rows, seeds)

        method.measured_pictures = recorded
        work = SharedWork(peers.everyone(), peers.host())
        with peers.shared_by(Alone(), Alone()):
            return work.on_main(lambda: work.run(method.in_evaluation, "take_measures"), method.in_evaluation)

    main, other = together(process)
    if fault is None:
        assert main == pytest.approx(alone, rel=1e-4)
        assert other is None
        assert {rank: sorted(seeds) for rank, seeds in asked.items()} == {0: [0, 2, 4], 1: [1, 3, 5]}
    else:
        assert "a fault" in str(main)
        assert "a fault" in str(other)


@pytest.mark.parametrize(
    ("tree", "measures", "sentence"),
    [
        (TEXT, "{names: [fid]}", r"log.measures.names has 'fid'; expected some of fd, kid"),
        (KL, "{names: [psnr]}", r"every evaluation of an autoencoder has psnr already"),
        (TEXT, "{names: [psnr]}", r"it is for reconstructions, which only an autoencoder makes"),
        (TEXT, "{names: [ssim_zero_padded]}", r"it is for reconstructions, which only an autoencoder makes"),
        (TEXT, "{names: [inception_score]}", r"it is defined for log.measures.features inception alone"),
        (TEXT, "{names: [clip_score]}", r"expected log.measures.features open_clip:"),
        (CLASSES, "{names: [prompt_fidelity]}", r"it is for models that are sampled with captions"),
        (DIFFAE, "{names: [fd]}", r"a semantic model samples no pictures .* without a prior"),
        (DIFFAE, "{names: [perceptual]}", r"of semantic models only ldm-kit evaluate measures it"),
        (TEXT, "{names: [psnr_random]}", r"it is for semantic models"),
        (KL, "{names: [mse_random]}", r"it is for semantic models"),
        (CLASSIFIER, "{names: [fd]}", r"method classifier samples no pictures"),
        (TEXT, "{names: [fd], count: 100}", r"log.measures.count is 100, but \d+ pictures are held out"),
        (TEXT, "{names: [recall], count: 3}", r"recall, which needs 4 held-out pictures; got 3"),
        (TEXT, "{names: [prompt_fidelity]}", r"factor"),
        (TEXT, "{names: [fd], features: 'resnet'}", r"log.measures.features is 'resnet'; expected timm:NAME"),
        (TEXT, "{names: [fd], features: inception, feature_size: 64}", r"log.measures.feature_size is for timm's"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_encoded(
    tree, measures, sentence, pictures, tmp_path, monkeypatch
):
    from ldm_kit.models.feature_nets import load_feature_net

    monkeypatch.setattr(measures_check, "load_feature_net", load_feature_net)
    monkeypatch.setattr(train, "open_method", lambda *_, **__: pytest.fail("it was built"))
    with pytest.raises(UserError, match=sentence):
        train.train(config_of(tree, pictures, tmp_path / "new" / "run", f"log.measures={measures}"))
    assert not (tmp_path / "new").exists()


def test_nothing_held_out_and_a_wrong_direction_are_refused(pictures, tmp_path):
    with pytest.raises(UserError, match=r"log.measures compares with held-out pictures, and nothing is held out"):
        train.train(config_of(TEXT, pictures, tmp_path / "run", *TAKEN, "data.heldout=0"))
    with pytest.raises(UserError, match="lower values of loss are better; expected heldout_loss"):
        train.train(config_of(TEXT, pictures, tmp_path / "run", "train.keep_best=max:heldout_loss"))
    with pytest.raises(UserError, match="lower values of fd are better; expected heldout_fd"):
        train.train(config_of(TEXT, pictures, tmp_path / "run", *TAKEN, "train.keep_best=max:heldout_fd"))
    with pytest.raises(UserError, match=r"keep_best is 'heldout_kid', but the evaluation has no such figure"):
        train.train(config_of(TEXT, pictures, tmp_path / "run", *TAKEN, "train.keep_best=heldout_kid"))
    with pytest.raises(UserError, match=r"measures.every is 3, but evaluations are every 2 steps; expected a multiple"):
        config_of(TEXT, pictures, tmp_path, "log.evaluate_every=2", "log.measures={names: [fd], every: 3}")


def test_every_measure_has_a_direction_and_the_default_network_is_the_commands():
    assert {*BETTER.values()} == {"lower", "higher"}
    assert all(BETTER.get(name, measure.better) == measure.better for name, measure in PICTURES.items())
    assert EvaluationRequest.model_fields["features"].default == LITE0
