"""The command `ldm-kit nll`: what it measures, writes and refuses."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from ldm_kit.cli import app
from ldm_kit.config import UserError, read
from ldm_kit.data.images import to_unit
from ldm_kit.data.sources import load
from ldm_kit.diffusion import likelihood, rng
from ldm_kit.inference import evaluate_job
from ldm_kit.inference.evaluate import evaluate
from ldm_kit.inference.likelihood import LikelihoodRequest, evaluate_likelihood
from ldm_kit.methods.latent import LatentRun
from ldm_kit.models.feature_nets import FeatureNet, Features
from ldm_kit.models.pipeline import Pipeline
from tests.scarce import room_for
from tests.world import through

STEPS = 12
PIXELS = {
    "autoencoder": None,
    "schedule": {"kind": "linear", "num_train_timesteps": STEPS, "end": 0.5},
    "train": {"steps": 4},
}
LEARNED = {"variance": "learned_range", "prediction_type": "eps"}


def run_of(world, name, **more):
    """A trained run on pixels with a third of the pictures held out."""
    if name not in world.trained:
        tree = {**world.ldm("pixels", name), **PIXELS, **more}
        tree["train"] = {"batch_size": 4, **tree["train"]}
        tree["data"] = {**world.common(name)["data"], "heldout": 0.3, **more.get("data", {})}
        found = through("train_ldm", world.write(tree, f"{name}.yaml"))
        assert found.status == 0, found.err
        world.trained[name] = world.root / name
    return world.trained[name]


@pytest.fixture
def labelled(world):
    return run_of(world, "nll-class", condition={"kind": "class", "width": 16}, **LEARNED)


def found_in(run):
    last = max(run.glob("nll*.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(last.read_text())


def by_hand(run):
    """The bound, picture by picture, each under its own label."""
    pictures = load(read(LatentRun, run / "config.yaml").data).heldout
    pipeline = Pipeline.load(run / "model")
    rows = []
    for place, record in enumerate(pictures.records):
        x_0 = to_unit(pictures.pictures([place]))
        row = [likelihood.prior(x_0, pipeline.schedule)]
        for t in range(STEPS):
            eps = rng.normal(5, "nll", torch.tensor([place * STEPS + t]), x_0.shape[1:])
            x_t = pipeline.schedule.a[t].float() * x_0 + pipeline.schedule.s[t].float() * eps
            with torch.no_grad():
                p = pipeline.denoiser()(x_t, torch.tensor([t]), pipeline.condition([pictures.classes[record.label]]))
            p = p._replace(x_0=p.x_0.clamp(-1, 1))
            row.append(likelihood.term(p, x_0, torch.tensor([t]), pipeline.schedule, variance="learned_range"))
        rows.append(torch.cat(row))
    return torch.stack(rows).double()


def zero_by_tanh(run):
    """The mean term at t = 0 with the approximation of published figures, each picture under its own label."""
    pictures, pipeline = load(read(LatentRun, run / "config.yaml").data).heldout, Pipeline.load(run / "model")
    t, terms = torch.tensor([0]), []
    for place, record in enumerate(pictures.records):
        x_0 = to_unit(pictures.pictures([place]))
        eps = rng.normal(5, "nll", torch.tensor([place * STEPS]), x_0.shape[1:])
        with torch.no_grad():
            p = pipeline.denoiser()(
                pipeline.schedule.add_noise(x_0, eps, t), t, pipeline.condition([pictures.classes[record.label]])
            )
        p = p._replace(x_0=p.x_0.clamp(-1, 1))
        terms.append(likelihood.term(p, x_0, t, pipeline.schedule, variance="learned_range", tanh=True))
    return float(torch.cat(terms).mean())


def test_it_measures_every_term_of_every_held_out_picture(labelled):
    said = evaluate_likelihood(labelled, LikelihoodRequest(seed=5, batch_size=3), "cpu")
    found, rows = found_in(labelled), by_hand(labelled)
    assert found["pictures"] == len(rows) > 4
    assert found["prior"] == pytest.approx(float(rows[:, 0].mean()), rel=1e-5)
    assert found["mean_term_by_time"] == pytest.approx(rows[:, 1:].mean(0).tolist(), rel=1e-4)
    assert found["total"] == pytest.approx(float(rows.sum(1).mean()), rel=1e-5)
    assert found["total"] == pytest.approx(found["prior"] + found["terms"])
    assert found["first"] == pytest.approx(found["mean_term_by_time"][0])
    assert found["total_tanh"] == pytest.approx(found["total"] - found["first"] + zero_by_tanh(labelled), rel=1e-5)
    assert found["total_tanh"] != found["total"]
    assert found["standard_error"] == pytest.approx(float(rows.sum(1).std()) / math.sqrt(len(rows)), rel=1e-3)
    assert (found["times"], found["of"], found["variance"]) == (STEPS, STEPS, "learned_range")
    assert f"{found['total']:.4f}" in said
    assert "all 12 times" in said
    with Image.open(labelled / "nll.png") as picture:
        assert picture.size[0] > 300


def test_neither_batches_nor_the_way_to_the_model_change_a_number(labelled):
    evaluate_likelihood(labelled, LikelihoodRequest(seed=5, batch_size=3), "cpu")
    expected = found_in(labelled)
    evaluate_likelihood(labelled / "model", LikelihoodRequest(seed=5, batch_size=64), "cpu")
    assert found_in(labelled)["mean_term_by_time"] == pytest.approx(expected["mean_term_by_time"], rel=1e-4)
    with room_for(2) as refused:
        evaluate_likelihood(labelled, LikelihoodRequest(seed=5), "cpu")
    assert refused
    assert found_in(labelled)["mean_term_by_time"] == pytest.approx(expected["mean_term_by_time"], rel=1e-4)
    evaluate_likelihood(labelled, LikelihoodRequest(seed=6), "cpu")
    assert found_in(labelled)["total"] != expected["total"]


def test_fewer_times_are_an_unbiased_estimate_and_say_so(labelled, monkeypatch):
    monkeypatch.setattr("ldm_kit.inference.likelihood._plot", lambda curve, out: None)  # slow
    evaluate_likelihood(labelled, LikelihoodRequest(), "cpu")
    whole, estimates = found_in(labelled), []
    for seed in range(8):
        said = evaluate_likelihood(labelled, LikelihoodRequest(times=4, seed=seed), "cpu")
        assert "an unbiased estimate from 4 random ones of 12 times for each picture" in said
        estimates.append(found_in(labelled)["terms"])
    spread = torch.tensor(estimates).std() / math.sqrt(len(estimates))
    assert abs(sum(estimates) / len(estimates) - whole["terms"]) < 4 * spread
    assert spread < 0.2 * whole["terms"]
    assert found_in(labelled)["times"] == 4


def test_count_takes_some_of_the_pictures(world):
    run = run_of(world, "nll-plain", variance="large", loss="vlb")
    evaluate_likelihood(run, LikelihoodRequest(count=1, times=1), "cpu")
    found = found_in(run)
    assert found["pictures"] == 1
    assert found["standard_error"] is None
    assert found["variance"] == "large"
    assert sum(bits is not None for bits in found["mean_term_by_time"]) == 1


def refused(place, **request):
    with pytest.raises(UserError) as error:
        evaluate_likelihood(place, LikelihoodRequest(**request), "cpu")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_numbers_out_of_range_are_refused(labelled):
    for name in ("count", "times", "batch_size"):
        found = CliRunner().invoke(app, ["nll", str(labelled), f"--{name}", "0"])
        assert found.exit_code == 2
        assert f"error: --{name} is 0; expected 1 or more" in found.stderr
    assert f"--times is {STEPS}, but there are {STEPS} times in all" in refused(labelled, times=STEPS)


def test_models_without_a_likelihood_are_refused_with_the_reason(world):
    assert "how likely the decoder makes a picture is unknown" in refused(world.model("plain"))
    flow = {"prediction_type": "flow", "schedule": {"kind": "flow", "num_train_timesteps": STEPS}}
    assert "has no variational bound" in refused(run_of(world, "nll-flow", **flow))
    assert "has held no pictures out" in refused(run_of(world, "nll-all", data={"heldout": 0.0}))


def test_what_is_no_run_is_refused(world, labelled, tmp_path):
    assert "has no config.yaml" in refused(tmp_path)
    shutil.copytree(labelled / "model", tmp_path / "model")
    assert "has no config.yaml" in refused(tmp_path / "model")
    shutil.copy(labelled / "config.yaml", tmp_path)
    shutil.rmtree(tmp_path / "model")
    assert "is no saved model" in refused(tmp_path)


def test_pictures_of_a_program_are_given_again_or_found_in_files(labelled, tmp_path):
    """The run's config then says that they came from Python; measured in either way, the figures are the same."""
    copy = Path(shutil.copytree(labelled, tmp_path / "run", ignore=shutil.ignore_patterns("nll*")))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    given = {"source": "given", **{name: config["data"][name] for name in ("resolution", "channels")}}
    (copy / "config.yaml").write_text(yaml.safe_dump({**config, "data": given}))
    said = refused(copy, count=2, times=2)
    assert "pass them again as data=, or name files" in said
    request = LikelihoodRequest(count=2, times=2)
    split = load(read(LatentRun, labelled / "config.yaml").data)
    evaluate_likelihood(copy, request, "cpu", data=split)
    words = ["data.source=folder", f"data.path={config['data']['path']}", "data.heldout=0.3"]
    found = CliRunner().invoke(app, ["nll", str(copy), *words, "--count", "2", "--times", "2", "--device", "cpu"])
    assert found.exit_code == 0, found.output
    from_program, from_files = (json.loads(path.read_text()) for path in sorted(copy.glob("nll*.json")))
    assert from_program == from_files


def test_pictures_of_another_kind_than_the_models_are_refused(labelled):
    config = read(LatentRun, labelled / "config.yaml").data
    for change, words in (({"resolution": 12}, "12 px and 3"), ({"channels": 1}, "16 px and 1")):
        data = load(config.model_copy(update=change))
        with pytest.raises(UserError, match=rf"have {words} channels; expected 16 px and 3 channels, as the model in"):
            evaluate_likelihood(labelled, LikelihoodRequest(), "cpu", data=data)


def test_no_picture_of_an_earlier_measurement_is_overwritten(labelled, tmp_path):
    run = Path(shutil.copytree(labelled, tmp_path / "run", ignore=shutil.ignore_patterns("nll*")))
    (run / "nll.png").write_text("the user's")
    said = evaluate_likelihood(run, LikelihoodRequest(count=1, times=1), "cpu")
    assert said.endswith(f"written to {run / 'nll-2.json'} and {run / 'nll-2.png'}")
    assert sorted(path.name for path in run.glob("nll*")) == ["nll-2.json", "nll-2.png", "nll.png"]
    assert (run / "nll.png").read_text() == "the user's"


def test_the_command_refuses_bad_input(labelled, tmp_path):
    found = CliRunner().invoke(app, ["nll", str(labelled), "--count", "2", "--batch_size", "2", "--device", "cpu"])
    assert found.exit_code == 0
    assert "bits/dim bound the negative log-likelihood of 2 held-out pictures" in found.stdout
    assert f"written to {labelled / 'nll'}" in found.stdout
    for arguments, said in (
        ([str(tmp_path)], "has no config.yaml"),
        ([str(labelled), "--device", "abacus"], "cannot use the device 'abacus'"),
    ):
        found = CliRunner().invoke(app, ["nll", *arguments])
        assert found.exit_code == 2
        assert found.stderr.startswith("error: ")
        assert said in found.stderr
        assert found.stderr.count("\n") == 1


def test_evaluate_measures_the_same_bits(labelled, monkeypatch, tmp_path):
    """With one noise: all held-out pictures, under their labels; nothing is sampled."""
    monkeypatch.setattr(evaluate_job, "load_feature_net", lambda *_: FeatureNet("none", Features, "", "0" * 64))
    monkeypatch.setattr(Pipeline, "generate", None)
    evaluate_likelihood(labelled, LikelihoodRequest(seed=5), "cpu")
    expected = found_in(labelled)
    result = evaluate(labelled, measures="bits_per_dim,bits_per_dim_tanh", seed=5, batch_size=3, bootstrap=40)
    assert result["bits_per_dim"].value == pytest.approx(expected["total"], rel=1e-6)
    assert result["bits_per_dim_tanh"].value == pytest.approx(expected["total_tanh"], rel=1e-6)
    assert result["bits_per_dim"].count == expected["pictures"]
    low, high = result["bits_per_dim"].interval
    assert high - low == pytest.approx(2 * 1.96 * expected["standard_error"], rel=0.5)
    some = evaluate(labelled, measures="bits_per_dim", seed=5, times=4, bootstrap=0)
    assert some["bits_per_dim"].value != result["bits_per_dim"].value
    assert "4 random times" in some["bits_per_dim"].title
    assert "random" not in result["bits_per_dim"].title
    with pytest.raises(UserError, match="--times 4 is for bits_per_dim and bits_per_dim_tanh"):
        evaluate(labelled, measures="precision", times=4)
    assert some.settings["times"] == 4
    with pytest.raises(UserError, match="--times is 12, but there are 12 times in all"):
        evaluate(labelled, measures="bits_per_dim", times=12)


def test_evaluate_refuses_bits_of_what_has_none(world, monkeypatch):
    for name, message in (("text", "a model of latents"), ("kl", "is for diffusion models of pixels")):
        with pytest.raises(UserError, match=f"--measures bits_per_dim: .*{message}"):
            evaluate(world.model(name), measures="bits_per_dim", split="train")
