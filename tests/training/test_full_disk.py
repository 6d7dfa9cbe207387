"""A full disk costs a checkpoint, not the run: what was there stays, training goes on, and the next save is tried."""

import contextlib
import json
import resource
import shutil
import signal
import subprocess
from collections import namedtuple

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.training import checkpoint
from ldm_kit.training import log as logging_of_runs
from ldm_kit.training.log import Log, LogConfig
from ldm_kit.training.task import TrainStep
from tests.training.helpers import CLASSES, picture_folder, play, settings, tensors_of
from tests.training.toy import Toy, trainer


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("pictures") / "set")


@contextlib.contextmanager
def largest_file(size):
    """No file may grow beyond this many bytes, as on a disk without room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill(folder):
    checkpoint.save_tensors({"w": torch.arange(100_000.0)}, folder / "model" / "net.safetensors")


def test_a_file_that_cannot_be_written_leaves_the_old_checkpoint_and_no_draft(tmp_path):
    folder = checkpoint.write(tmp_path / "checkpoint-1", fill)
    with largest_file(300_000), pytest.raises(UserError, match=r"cannot write .*checkpoint-1 \(it takes 0\.4 MB\): .*"):
        checkpoint.write(folder, fill, 400_000)
    checkpoint.verify(folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_room_is_looked_for_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9e9, 0, int(20e6)))
    asked = []
    with pytest.raises(UserError, match=r"it takes 51 MB, but .* has 20 MB left; make room there"):
        checkpoint.write(tmp_path / "checkpoint-1", asked.append, int(50e6))
    assert asked == list(tmp_path.iterdir()) == []
    checkpoint.write(tmp_path / "checkpoint-1", fill, int(19e6))


def test_a_real_disk_that_is_full_is_told_and_stays_clean(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        folder = checkpoint.write(disk / "checkpoint-1", fill, 400_000)
        (disk / "other").write_bytes(bytes(400_000))
        with pytest.raises(UserError, match=r"checkpoint-2: it takes 0\.7 MB, but .*disk has 0\.2 MB left; make room"):
            checkpoint.write(disk / "checkpoint-2", fill, 400_000)
        with pytest.raises(UserError, match=r"cannot write .*checkpoint-2: .*[Nn]o space left"):
            checkpoint.write(disk / "checkpoint-2", fill)  # as when it fills up meanwhile
        checkpoint.verify(folder)
        assert {path.name for path in disk.iterdir()} == {folder.name, "other"}
    finally:
        subprocess.run(["umount", disk], check=True)


def failing(monkeypatch, *numbers):
    """Let the saves with these numbers (1 = the first) fail."""
    write, count = checkpoint.write, []

    def sometimes(folder, fill, size=0):
        count.append(folder)
        if len(count) in numbers:
            raise UserError(f"no room for {folder.name}")
        return write(folder, fill, size)

    monkeypatch.setattr(checkpoint, "write", sometimes)


def test_training_goes_on_and_saves_when_there_is_room_again(pictures, tmp_path, monkeypatch, capsys):
    every = "train.checkpoint_every=1"
    expected = play(settings(CLASSES, pictures, tmp_path / "whole", every))
    failing(monkeypatch, 2, 3, 5, 6)
    found = play(settings(CLASSES, pictures, tmp_path / "run", every))
    assert found == expected
    said = [line for line in capsys.readouterr().err.splitlines() if "no room" in line]
    assert [line[:40] for line in said] == [f"warning: no room for checkpoint-0000000{n}" for n in (2, 3, 5, 6)]
    assert list(checkpoint.steps(tmp_path / "run")) == [7, 8]
    last = "checkpoint-00000008"
    assert tensors_of(tmp_path / "run" / last) == tensors_of(tmp_path / "whole" / last)


def test_the_checkpoint_before_stays_when_saves_fail(pictures, tmp_path, monkeypatch):
    failing(monkeypatch, 2, 3, 4)
    keep = ("train.checkpoint_every=1", "train.keep_last=1")
    with pytest.raises(
        UserError, match=r"^no room for checkpoint-00000004, 3 times in a row; the run stops after step 4"
    ):
        play(settings(CLASSES, pictures, tmp_path / "run", *keep))
    ((step, path),) = checkpoint.steps(tmp_path / "run").items()
    assert step == 1
    checkpoint.verify(path)
    assert not list((tmp_path / "run").glob(".tmp-*"))


def test_the_last_checkpoint_must_be_written(pictures, tmp_path, monkeypatch):
    failing(monkeypatch, 2)
    with pytest.raises(
        UserError, match=r"^no room for checkpoint-00000008; the run stops after step 8, --resume latest"
    ):
        play(settings(CLASSES, pictures, tmp_path / "run", "train.checkpoint_every=4"))
    assert list(checkpoint.steps(tmp_path / "run")) == [4]


def test_one_that_was_asked_to_stop_says_that_it_could_not_save(pictures, tmp_path, monkeypatch):
    failing(monkeypatch, 1)
    with pytest.raises(UserError, match=r"^no room for checkpoint-00000002; the run stops after step 2"):
        play(
            settings(CLASSES, pictures, tmp_path / "run"),
            between=lambda number: number == 1 and signal.raise_signal(signal.SIGTERM),
        )


def test_metrics_wait_for_room(tmp_path, capsys):
    log = Log(trainer(Toy()).accelerator, tmp_path, LogConfig(every=1), first=0, total=3)
    path = tmp_path / "metrics.jsonl"
    log.write(1, {"loss": 1.0})
    with largest_file(path.stat().st_size + 5):
        log.step(TrainStep(2, 0.1, {}, {"loss": torch.tensor(2.0)}))
        assert path.read_text() == '{"step": 1, "loss": 1.0}\n'
    assert "cannot write metrics at step 2" in capsys.readouterr().out
    log.write(3, {"loss": 3.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_the_last_line_is_tried_again_at_the_end(tmp_path, monkeypatch):
    log = Log(trainer(Toy()).accelerator, tmp_path, LogConfig(), first=0, total=3)

    def full(path, text):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(logging_of_runs, "_append", full)
        log.write(3, {"loss": 1.0})
    log.flush()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 3, "loss": 1.0}\n'


def test_an_evaluation_that_cannot_be_written_does_not_end_the_run(tmp_path):
    log = Log(trainer(Toy()).accelerator, tmp_path, LogConfig(), first=0, total=3)

    def full(number):
        raise OSError(28, "No space left on device")

    assert log.evaluate(1, full) is None
    assert log.evaluate(2, lambda number: {"heldout_loss": 3.0}) == {"heldout_loss": 3.0}
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 2, "heldout_loss": 3.0}
