"""Resumed equals uninterrupted bit for bit: losses and norms of later steps, tensors of the last checkpoint."""

import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conditioning.text import TextConditioner
from ldm_kit.config import UserError
from ldm_kit.training import run_folder
from tests.training.helpers import (
    CLASSES,
    CLASSIFIER,
    DIFFAE,
    KL,
    TEXT,
    TOKENS,
    VQ,
    Played,
    picture_folder,
    play,
    settings,
    tensors_of,
)
from tests.world import through

KINDS = {
    "kl": KL,
    "vq": VQ,
    "text": TEXT,
    "class": CLASSES,
    "classifier": CLASSIFIER,
    "diffae": DIFFAE,
    "tokens": TOKENS,
}
LAST = "checkpoint-00000008"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """Uninterrupted runs, each made once."""
    made = {}

    def get(kind, *overrides):
        if (kind, *overrides) not in made:
            run = tmp_path_factory.mktemp("whole") / "run"
            made[kind, *overrides] = play(settings(KINDS[kind], pictures, run, *overrides)), run
        return made[kind, *overrides]

    return get


def disturbed(number):
    torch.manual_seed(number)
    torch.rand(number)


def cut_and_resumed(kind, pictures, run, at, *overrides) -> Played:
    """The same run, stopped after each step of `at` and gone on with by a new process's worth of objects."""
    lines, resume = [], None
    for stop in [*at, None]:
        config = settings(KINDS[kind], pictures, run, *overrides, f"train.checkpoint_every={stop or 100}")
        played = play(config, resume, until=stop, between=disturbed)
        lines, resume = lines + played.lines, "latest"
    return Played(lines, played.weights)


@pytest.mark.parametrize("parts", [1, 2], ids=["whole-batches", "accumulated"])
@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted(kind, parts, pictures, whole, tmp_path):
    micro = f"train.micro_batch={8 // parts}"
    expected, run = whole(kind, micro)
    found = cut_and_resumed(kind, pictures, tmp_path / "run", (3, 4), micro)  # an epoch's last batch, and its first
    assert found == expected
    assert tensors_of(tmp_path / "run" / LAST) == tensors_of(run / LAST)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # ... more workers than this machine has cores
@pytest.mark.parametrize("kind", ["kl", "text"])
def test_workers_change_nothing(kind, pictures, whole, tmp_path):
    expected, run = whole(kind, "train.micro_batch=8")
    found = cut_and_resumed(kind, pictures, tmp_path / "run", (5,), "train.micro_batch=8", "train.workers=2")
    assert found == expected
    assert tensors_of(tmp_path / "run" / LAST) == tensors_of(run / LAST)


def test_bfloat16_resumes_too(pictures, whole, tmp_path):
    precise = ("train.precision=bf16", "train.channels_last=false", "ema.kind=constant")
    expected, run = whole("kl", *precise)
    assert cut_and_resumed("kl", pictures, tmp_path / "run", (5,), *precise) == expected
    assert tensors_of(tmp_path / "run" / LAST) == tensors_of(run / LAST)


@pytest.mark.parametrize("kind", ["vq", "text"])
def test_muon_resumes_too(kind, pictures, whole, tmp_path):
    wide = {"vq": "autoencoder.widths=[8,64]", "text": "unet.widths=[8,64]"}[kind]  # narrower weights are AdamW's
    expected, run = whole(kind, "optim.muon={}", wide)
    assert any(name.endswith(".muon.safetensors") for name in tensors_of(run / LAST))
    assert cut_and_resumed(kind, pictures, tmp_path / "run", (4,), "optim.muon={}", wide) == expected
    assert tensors_of(tmp_path / "run" / LAST) == tensors_of(run / LAST)


def test_a_resumed_run_says_where_it_goes_on(pictures, tmp_path, capsys):
    play(settings(CLASSIFIER, pictures, tmp_path / "run", "train.checkpoint_every=2"), until=2)
    assert "going on" not in capsys.readouterr().err
    play(settings(CLASSIFIER, pictures, tmp_path / "run"), "latest", until=3)
    path = tmp_path / "run" / "checkpoint-00000002"
    assert f"going on from step 2, {path}" in capsys.readouterr().err


def test_another_tokenizer_is_noticed_and_other_versions_are_told(pictures, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    play(settings(TEXT, pictures, run, "train.checkpoint_every=2"), until=2)
    prepare = TextConditioner.prepare
    monkeypatch.setattr(TextConditioner, "prepare", lambda self, raw: {"ids": prepare(self, raw)["ids"].flip(1)})
    with pytest.raises(UserError, match=r"condition \(its tokens or classes\) is not what it was when it was saved"):
        play(settings(TEXT, pictures, run), "latest")
    monkeypatch.setattr(TextConditioner, "prepare", prepare)
    play(settings(TEXT, pictures, run), "latest", until=3)
    assert "note:" not in capsys.readouterr().err
    others = {**run_folder.versions(), "torch": "9.9"}
    monkeypatch.setattr("ldm_kit.training.training_state.versions", lambda: others)
    play(settings(TEXT, pictures, run), "latest", until=3)
    note = f"note: checkpoint-00000002 was saved with torch {version('torch')}, now 9.9: later steps may differ"
    assert note in capsys.readouterr().err


def contents(run: Path) -> dict[str, bytes]:
    """All files of a run but its lock, which names the process that holds it."""
    files = [path for path in run.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def test_a_moved_autoencoder_goes_on_and_another_does_not(world, tmp_path):
    moved, run = tmp_path / "moved", tmp_path / "run"
    tree = world.ldm("plain", "unused") | {"run": str(run)}
    tree["train"] = {**tree["train"], "steps": 1}
    assert through("train_ldm", world.write(tree, "moved.yaml")).status == 0
    shutil.copytree(Path(tree["autoencoder"]) / "model", moved)
    again = world.write(tree | {"autoencoder": str(moved)}, "moved.yaml")
    assert through("train_ldm", again, "--resume", "latest").status == 0
    weights = moved / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_out.bias"] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    (moved / "manifest.json").unlink(missing_ok=True)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "denoiser_loss": 1.0}\n')  # of steps after the checkpoint, which a resume makes again
    before = contents(run)
    refused = through("train_ldm", again, "--resume", "latest", "sample.steps=7", "log.tensorboard=true")
    assert refused.status == 2
    assert "the pictures, their captions or the autoencoder have changed" in refused.errors[0]
    assert contents(run) == before, "refused, so untouched"


def test_other_data_is_refused(pictures, tmp_path):
    play(settings(CLASSES, pictures, tmp_path / "run", "train.checkpoint_every=2"), until=2)
    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved)
    play(settings(CLASSES, moved, tmp_path / "run", "train.checkpoint_every=3"), "latest", until=3)  # the same data
    captions = (moved / "metadata.jsonl").read_text()
    (moved / "metadata.jsonl").write_text(captions.replace('"label": "a"', '"label": "b"', 1))
    with pytest.raises(UserError, match=r"cannot go on from step 3: the pictures, their captions or the autoencoder"):
        play(settings(CLASSES, moved, tmp_path / "run"), "latest")
