import json
import os
import signal
import stat
import time
from pathlib import Path

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.training import checkpoint
from tests.training.helpers import context


def fill(folder: Path) -> None:
    checkpoint.save_tensors({"w": torch.arange(1000.0)}, folder / "model" / "net.safetensors")
    checkpoint.save_tensors({"w": torch.zeros(10)}, folder / "optimizer" / "net.safetensors")
    (folder / "trainer_state.json").write_text('{"step": 1}')


def saved(run: Path, *steps: int) -> list[Path]:
    return [checkpoint.write(run / f"checkpoint-{step:08d}", fill) for step in steps]


def test_the_manifest_lists_every_file_with_the_modes_that_the_umask_asks_for(tmp_path):
    before = os.umask(0o027)
    try:
        (folder,) = saved(tmp_path, 1)
    finally:
        os.umask(before)
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(listed) == {"model/net.safetensors", "optimizer/net.safetensors", "trainer_state.json"}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o640}
    checkpoint.verify(folder)
    assert torch.equal(checkpoint.load_tensors(folder / "model" / "net.safetensors")["w"], torch.arange(1000.0))


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_a_fault_while_saving_leaves_nothing(tmp_path, fault):
    def broken(folder):
        fill(folder)
        raise fault("in the middle")

    with pytest.raises(fault, match="in the middle"):
        checkpoint.write(tmp_path / "checkpoint-00000001", broken)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_in_a_sentence_and_what_was_there_stays(tmp_path):
    (folder,) = saved(tmp_path, 1)

    def full(draft):
        raise OSError(28, "No space left on device")

    with pytest.raises(
        UserError, match=r"cannot write .*checkpoint-00000001: .*No space left on device; what was saved"
    ):
        checkpoint.write(folder, full)
    checkpoint.verify(folder)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_what_was_there_is_put_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    (folder,) = saved(tmp_path, 1)
    before = (folder / "trainer_state.json").read_text()
    rename = Path.rename

    def refusing(self, target):
        if self.name.startswith(".tmp-"):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(UserError, match="untouched"):
        checkpoint.write(folder, lambda draft: (draft / "trainer_state.json").write_text("{}"))
    assert (folder / "trainer_state.json").read_text() == before
    checkpoint.verify(folder)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_writing_again_replaces(tmp_path):
    (folder,) = saved(tmp_path, 1)
    checkpoint.write(folder, lambda draft: (draft / "new").write_text("x"))
    checkpoint.verify(folder)
    assert {path.name for path in folder.iterdir()} == {"new", "manifest.json"}
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def endless_saves(run: Path, first: int) -> None:
    def slow(folder: Path) -> None:
        fill(folder)
        (folder / "slow").write_text("x")
        time.sleep(0.01)

    for step in range(first, 10**6):
        checkpoint.write(run / f"checkpoint-{step:08d}", slow)
        checkpoint.prune(run, keep=2)


@pytest.mark.parametrize("pause", [0.0, 0.013, 0.027, 0.052])
def test_a_killed_save_leaves_the_one_before(tmp_path, pause):
    saved(tmp_path, 1)
    child = context().Process(target=endless_saves, args=(tmp_path, 2))
    child.start()
    while 3 not in checkpoint.steps(tmp_path) and not list(tmp_path.glob("checkpoint-0000000[4-9]")):
        time.sleep(0.002)
    time.sleep(pause)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    for path in checkpoint.steps(tmp_path).values():
        checkpoint.verify(path)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert int(found.name[-8:]) >= 3
    checkpoint.remove_stale_tmp(tmp_path)
    assert all(path.name.startswith("checkpoint-") for path in tmp_path.iterdir())


def every_file(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


FILES = ["manifest.json", "model/net.safetensors", "optimizer/net.safetensors", "trainer_state.json"]


@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_and_the_file_is_named(tmp_path, name):
    (folder,) = saved(tmp_path, 1)
    assert every_file(folder) == FILES
    path, whole = folder / name, (folder / name).read_bytes()
    for size in range(0, len(whole), max(1, len(whole) // 20)):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=name):
            checkpoint.verify(folder)
    if name != "manifest.json":
        generator = torch.Generator().manual_seed(0)
        for bit in torch.randint(len(whole) * 8, (50,), generator=generator).tolist():
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            with pytest.raises(UserError, match=rf"{name} have changed|{name} has"):
                checkpoint.verify(folder)
    path.unlink()
    with pytest.raises(UserError, match=name):
        checkpoint.verify(folder)
    path.write_bytes(whole)
    checkpoint.verify(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": 3}', '{"files": {"a": {"size": "x"}}}', "\udcff"])
def test_a_broken_manifest_is_no_traceback(tmp_path, text):
    (folder,) = saved(tmp_path, 1)
    (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"manifest\.json is missing or unreadable"):
        checkpoint.verify(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "model/../../secret"])
def test_a_manifest_cannot_point_outside(tmp_path, name):
    (folder,) = saved(tmp_path, 1)
    (tmp_path / "secret").write_text("x")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"size": 1, "sha256": "0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="lies outside"):
        checkpoint.verify(folder)


def test_latest_falls_back_with_a_warning(tmp_path):
    _, older, newest = saved(tmp_path, 1, 2, 3)
    (newest / "trainer_state.json").write_text("cut")
    with pytest.warns(UserWarning, match=r"trainer_state\.json has 3 bytes.*trying the one before"):
        assert checkpoint.latest(tmp_path) == older


def test_latest_is_by_number_and_other_names_are_ignored(tmp_path):
    short = checkpoint.write(tmp_path / "checkpoint-10", fill)
    saved(tmp_path, 9)
    for name in ("checkpoint-foo", "checkpoint-12-old", "checkpoint-", "my-checkpoint-99", "checkpoint-99\n"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-77").write_text("a file")
    assert list(checkpoint.steps(tmp_path)) == [9, 10]
    assert checkpoint.latest(tmp_path) == short
    assert checkpoint.latest(tmp_path / "nowhere") is None


def test_prune_spares_the_newest_and_whatever_it_is_told(tmp_path):
    _, second, _, fourth = saved(tmp_path, 1, 2, 3, 4)
    checkpoint.prune(tmp_path, keep=1, spare=[None, second])
    assert list(checkpoint.steps(tmp_path).values()) == [second, fourth]
    checkpoint.prune(tmp_path, keep=1)
    checkpoint.prune(tmp_path, keep=1)
    assert list(checkpoint.steps(tmp_path).values()) == [fourth]
    assert [path.name for path in tmp_path.iterdir()] == [fourth.name]


def test_sweep_takes_only_what_is_half_done(tmp_path):
    (whole,) = saved(tmp_path, 1)
    for name in (".tmp-checkpoint-2.abc", ".del-checkpoint-0.abc", ".tmp-model.abc"):
        (tmp_path / name / "model").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    checkpoint.remove_stale_tmp(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {whole.name, "notes"}


def test_everything_is_flushed_before_the_rename_and_the_rename_after_it(tmp_path, monkeypatch):
    """Else a machine that loses power may keep the name of a checkpoint without its contents."""
    events, fsync, rename = [], os.fsync, Path.rename

    def flushed(descriptor):
        events.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def renamed(path, target):
        events.append(("rename", Path(target)))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "rename", renamed)
    (folder,) = saved(tmp_path, 1)
    moment = events.index(("rename", folder))
    before = [path for kind, path in events[:moment] if kind == "fsync"]
    (draft,) = (path for path in before if path.name.startswith(".tmp-"))
    assert {path.relative_to(draft) for path in before} >= {path.relative_to(folder) for path in folder.rglob("*")}
    assert ("fsync", tmp_path) in events[moment:]
