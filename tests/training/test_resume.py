"""Resumed equals uninterrupted bit for bit: losses and norms of later steps, tensors of the last checkpoint."""

import shutil

import pytest
import torch

from ldm_kit.config import UserError
from tests.training.helpers import (
    CLASSES,
    CLASSIFIER,
    DIFFAE,
    KL,
    TEXT,
    VQ,
    Played,
    picture_folder,
    play,
    settings,
    tensors_of,
)

KINDS = {"kl": KL, "vq": VQ, "text": TEXT, "class": CLASSES, "classifier": CLASSIFIER, "diffae": DIFFAE}
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


def test_other_data_is_refused(pictures, tmp_path):
    play(settings(CLASSES, pictures, tmp_path / "run", "train.checkpoint_every=2"), until=2)
    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved)
    play(settings(CLASSES, moved, tmp_path / "run", "train.checkpoint_every=3"), "latest", until=3)  # the same data
    captions = (moved / "metadata.jsonl").read_text()
    (moved / "metadata.jsonl").write_text(captions.replace('"label": "a"', '"label": "b"', 1))
    with pytest.raises(UserError, match=r"cannot go on from step 3: the pictures, their captions or the autoencoder"):
        play(settings(CLASSES, moved, tmp_path / "run"), "latest")
