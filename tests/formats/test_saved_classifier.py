"""Saved noisy classifiers: what load(save(x)) says, what the files say, and what is refused in a sentence."""

import getpass
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoencoder import saved
from ldm_kit.config import UserError
from ldm_kit.diffusion.schedule import ScheduleConfig, build
from ldm_kit.models.classifier import NoisyClassifier, first_stage_of
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.nets.half_unet import HalfUNetConfig, build_half_unet
from tests.world import CLASSIFIERS, World, through

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
WEIGHTS = "diffusion_pytorch_model.safetensors"
NET = HalfUNetConfig(widths=(8, 16), attention_levels=(False, True), layers_per_block=1, head_size=8, norm_num_groups=4)


def made(schedule: ScheduleConfig | None = None, first_stage: str | None = None) -> NoisyClassifier:
    torch.manual_seed(0)
    net = build_half_unet(NET, sample_size=8, channels=3, classes=("ant", "bee", "cow")).eval()
    return NoisyClassifier(net, ("ant", "bee", "cow"), schedule or ScheduleConfig(), first_stage)


def asked(classifier: NoisyClassifier, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(count, *classifier.latent_shape, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([0, 500, 999])[:count]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_load_of_save_says_the_same_bits(world: World, name, tmp_path):
    first = NoisyClassifier.load(world.model(name))  # a run's folder
    first.save(tmp_path / "again")
    second = NoisyClassifier.load(tmp_path / "again")
    assert torch.equal(first.log_probs(*asked(first)), second.log_probs(*asked(first)))
    assert second.classes == first.classes == ("blue", "green", "red")
    assert second.first_stage == first.first_stage
    assert second.latent_shape == first.latent_shape == ((3, 16, 16) if name == "pixel_classifier" else (4, 8, 8))


@pytest.mark.parametrize(
    "schedule",
    [
        ScheduleConfig(kind="linear", num_train_timesteps=50),
        ScheduleConfig(kind="scaled_linear", zero_terminal=True),
        ScheduleConfig(kind="cosine", num_train_timesteps=300),
        ScheduleConfig(kind="flow"),
    ],
    ids=lambda schedule: schedule.kind,
)
def test_the_noise_that_it_knows_is_saved(schedule, tmp_path):
    made(schedule).save(tmp_path)
    found = NoisyClassifier.load(tmp_path).schedule_config
    assert (found.kind, found.num_train_timesteps, found.zero_terminal) == (
        schedule.kind,
        schedule.num_train_timesteps,
        schedule.zero_terminal,
    )
    assert torch.equal(build(found).a, build(schedule).a)


def test_it_knows_whose_latents_it_sees(world: World, tmp_path):
    generator = Pipeline.load(world.model("class") / "model")
    assert generator.vae is not None
    known = NoisyClassifier.load(world.model("classifier")).first_stage
    assert known == first_stage_of(generator.vae)
    generator.vae.save_pretrained(tmp_path / "vae")
    assert known == first_stage_of(saved.load(tmp_path / "vae"))
    assert known != first_stage_of(saved.load(world.model("vq")))
    with torch.no_grad():
        next(generator.vae.parameters())[0] += 1e-6
    assert known != first_stage_of(generator.vae), "one weight by one bit"
    assert NoisyClassifier.load(world.model("pixel_classifier")).first_stage is first_stage_of(None) is None


def test_log_probs_are_those_of_the_network():
    classifier = made()
    x, t = asked(classifier)
    logs = classifier.log_probs(x, t)
    assert logs.dtype == torch.float32
    torch.testing.assert_close(logs.exp().sum(1), torch.ones(3))
    torch.testing.assert_close(logs, torch.log(classifier.net(x, t).softmax(1)))


def test_log_probs_are_exact_within_an_autocast_and_have_a_gradient():
    classifier = made()
    x, t = asked(classifier)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logs = classifier.log_probs(x, t)
    assert torch.equal(logs, classifier.log_probs(x, t))
    (gradient,) = torch.autograd.grad(logs[:, 0].sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().amax((1, 2, 3)).min() > 0


def test_what_is_opened_is_frozen(world: World):
    net = NoisyClassifier.load(world.model("classifier")).net
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


def test_the_layout_is_free_of_traces(world: World):
    folder = world.model("classifier") / "model"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files - {"manifest.json"} == {
        "model_index.json",
        "classifier/config.json",
        f"classifier/{WEIGHTS}",
        "scheduler/scheduler_config.json",
    }
    traces = {str(world.root), str(world.models), str(Path.home()), "/tmp", os.getcwd()} | (
        {getpass.getuser()} - {"root"}
    )
    mask = os.umask(0)
    os.umask(mask)
    for name in files:
        path = folder / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path
        if path.suffix == ".json":
            assert not [trace for trace in traces if trace in path.read_text()], path


def test_the_run_shows_what_it_learnt(world: World):
    run = world.model("classifier")
    said = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"classifier_loss", "accuracy", "accuracy_q1", "accuracy_q4"} <= said[0].keys()
    assert "accuracy5" not in said[0], "there are three classes"
    figures = said[-1]
    quartiles = [figures[f"heldout_accuracy_q{q}"] for q in (1, 2, 3, 4)]
    assert figures["heldout_accuracy"] == pytest.approx(sum(quartiles) / 4, rel=1e-4)
    assert {path.name for path in (run / "pictures").iterdir()} == {
        "accuracy-00000008.png",
        "guesses-00000008.png",
        "curves.png",
    }


def test_a_run_without_heldout_pictures_finishes(world: World, tmp_path):
    tree = world.classifier("pixel_classifier", "unused") | {"run": str(tmp_path / "run")}
    config = world.write({**tree, "data": {**tree["data"], "heldout": 0.0}}, "no_heldout.yaml")
    found = through("train_ldm", config)
    assert found.status == 0, found.err
    assert "nothing held out" in found.err + found.out
    assert {path.name for path in (tmp_path / "run" / "pictures").iterdir()} == {"guesses-00000008.png", "curves.png"}


def _set(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "classifier" / WEIGHTS)
    tensors.pop("pool.position")
    save_file(tensors, folder / "classifier" / WEIGHTS, metadata={"format": "pt"})


def _pickle(folder: Path) -> None:
    (folder / "classifier" / WEIGHTS).unlink()
    torch.save({"pool.position": 1}, folder / "classifier" / "diffusion_pytorch_model.bin")


SPOILT = {  # name -> (what is done to a good folder, what is said)
    "nothing": (shutil.rmtree, "is no saved classifier: its model_index.json is missing"),
    "torn index": (
        lambda folder: (folder / "model_index.json").write_text("{"),
        "model_index.json is missing or no JSON object",
    ),
    "index of another": (
        lambda folder: _set(folder / "model_index.json", _class_name="Other"),
        r"holds no noisy classifier \(Other\); expected what `method: classifier` trains",
    ),
    "foreign code": (
        lambda folder: _set(folder / "model_index.json", classifier=["my_code", "HalfUNet"]),
        r"classifier is \['my_code', 'HalfUNet'\], expected .*; no other code is run",
    ),
    "first stage": (
        lambda folder: _set(folder / "model_index.json", first_stage=[1]),
        r"first_stage is \[1\]; expected a fingerprint, or null",
    ),
    "no net": (lambda folder: shutil.rmtree(folder / "classifier"), "config.json is missing or no JSON object"),
    "net of another class": (
        lambda folder: _set(folder / "classifier" / "config.json", _class_name="UNet2DModel"),
        "is of class UNet2DModel, but model_index.json says HalfUNet",
    ),
    "more classes than weights": (
        lambda folder: _set(folder / "classifier" / "config.json", classes=["ant", "bee"]),
        "cannot open .*classifier",
    ),
    "nonsense widths": (
        lambda folder: _set(folder / "classifier" / "config.json", widths="wide"),
        "cannot open .*classifier",
    ),
    "a tensor lost": (_lose_a_tensor, "lack 1 tensors, the first being pool.position"),
    "pickled": (_pickle, "cannot open .*classifier"),
    "no noise": (
        lambda folder: shutil.rmtree(folder / "scheduler"),
        "scheduler_config.json is missing or no JSON object",
    ),
    "nonsense noise": (
        lambda folder: _set(folder / "scheduler" / "scheduler_config.json", num_train_timesteps=-5),
        "num_train_timesteps: expected",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_no_classifier_is_refused(name, tmp_path):
    spoil, said = SPOILT[name]
    made().save(tmp_path / "model")
    NoisyClassifier.load(tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(UserError, match=said) as raised:
        NoisyClassifier.load(tmp_path / "model")
    assert "\n" not in str(raised.value)


def test_a_generator_is_no_classifier(world: World):
    with pytest.raises(UserError, match=r"holds a diffusion model .*; expected what `method: classifier` trains"):
        NoisyClassifier.load(world.model("class"))
    with pytest.raises(UserError, match=r"is no saved classifier: its model_index\.json is missing"):
        NoisyClassifier.load(world.model("kl"))


def test_a_classifier_is_no_generator_and_no_autoencoder(world: World, tmp_path):
    folder = world.model("classifier")
    found = through("sample", folder, "red", "--out", tmp_path / "out")
    assert found.status == 2
    (sentence,) = found.errors
    assert "holds a noisy classifier, which guides but cannot sample; expected a diffusion model" in sentence
    assert not (tmp_path / "out").exists()
    tree = world.ldm("plain", "unused") | {"autoencoder": str(folder), "run": str(tmp_path / "run")}
    found = through("train_ldm", world.write(tree, "misled.yaml"))
    assert found.status == 2
    assert len(found.errors) == 1
