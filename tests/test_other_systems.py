"""Windows and macOS, as far as Linux can play them: what they lack is taken away in a process of its own."""

import errno
import os
import pickle
from pathlib import Path

import pytest

from ldm_kit import locks
from ldm_kit.config import UserError
from ldm_kit.data import atomic
from ldm_kit.locks import LockResult
from ldm_kit.methods.train import open_method
from ldm_kit.training.run_folder import Lock
from tests.processes import script
from tests.training.helpers import CLASSIFIER, DIFFAE, KL, TEXT, picture_folder, settings

WITHOUT = """
import os, signal, sys
import accelerate, PIL.Image, torch, torch.utils.data  # others' modules, which on Linux want what Linux has
from diffusers import AutoencoderKL, DDIMPipeline, DPMSolverMultistepScheduler, UNet2DConditionModel, VQModel
from transformers import CLIPTextModel, CLIPTokenizer
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
del signal.SIGUSR1, signal.SIGUSR2, signal.SIGKILL, signal.SIGHUP
del os.register_at_fork, os.pread, os.sched_getaffinity, os.fork, os.getuid, os.getgid, os.link
opened = os.open
def open_no_folder(path, flags, *more, **others):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return opened(path, flags, *more, **others)
os.open = open_no_folder
"""
IMPORTS = """
import importlib, pkgutil
import autoencoder, conditioning, ldm_kit
for package in (autoencoder, conditioning, ldm_kit):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
for script in ("train_ae", "train_ldm", "sample", "edit"):
    importlib.import_module(script)
"""
COMMANDS = """
from pathlib import Path
from tests.world import World, make_pictures, through
root = Path(sys.argv[1])
make_pictures(root / "pictures")
world = World(root)
run = world.model("class_pixels")
config = root / "class_pixels.yaml"
out = root / "out"
for script, *words in (
    ("train_ldm", config, "train.steps=9", "--resume", "latest"),
    ("sample", run, "red", "--steps", "1", "--out", out),
    ("sample", run / "checkpoint-00000009", "red", "--steps", "1", "--out", out),
    ("edit", "img2img", "--model", run, "--image", root / "pictures" / "00.png", "--prompt", "blue", "--steps", "2",
     "--out", out),
):
    found = through(script, *words)
    assert found.status == 0, (script, found.err)
    assert "Traceback" not in found.err
from ldm_kit.data.tensor_store import StoredTable, locate
from safetensors.torch import save_file
save_file({"x": torch.arange(12.0).view(6, 2)}, root / "x.safetensors")
assert StoredTable([locate(root / "x.safetensors", "x")])[torch.tensor([4, 1])].tolist() == [[8.0, 9.0], [2.0, 3.0]]
from ldm_kit.training.run_folder import Lock
with Lock(root / "alone"):
    pass
print("all of them")
"""


def test_everything_starts_without_what_windows_lacks(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(WITHOUT + IMPORTS + COMMANDS)
    found = script(program, tmp_path, cwd=tmp_path, LDM_KIT_CACHE=str(tmp_path / "cache"))
    assert found.returncode == 0, found.stderr
    assert "all of them" in found.stdout
    assert "has no file locks, so a second run in this folder would not be noticed" in found.stderr


class Msvcrt:
    """Locks of bytes as on Windows: each belongs to an open file, and goes when that is closed."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.held: dict[tuple[int, int], tuple[int, int]] = {}  # file and byte -> descriptor and file of the holder

    def locking(self, file: int, mode: int, count: int) -> None:
        assert (mode, count) == (self.LK_NBLCK, 1)
        inode, byte = os.fstat(file).st_ino, os.lseek(file, 0, os.SEEK_CUR)
        if (inode, byte) in self.held:
            holder = self.held[inode, byte][0]
            if holder != file and _is_open(holder, inode):
                raise PermissionError(errno.EACCES, "Permission denied")
        self.held[inode, byte] = (file, inode)


@pytest.fixture
def windows(monkeypatch) -> Msvcrt:
    """The locks of Windows, which cannot rename a file that is open."""
    system, replace = Msvcrt(), Path.replace

    def replace_closed(path: Path, target: Path) -> Path:
        assert not any(_is_open(file, inode) for (file, inode) in system.held.values() if inode == path.stat().st_ino)
        return replace(path, target)

    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "msvcrt", system)
    monkeypatch.setattr(atomic, "RENAMES_OPEN", False)
    monkeypatch.setattr(Path, "replace", replace_closed)
    return system


def _is_open(file: int, inode: int) -> bool:
    try:
        return os.fstat(file).st_ino == inode
    except OSError:
        return False


def test_a_run_s_folder_is_locked_on_windows(windows, tmp_path, capsys):
    with Lock(tmp_path):
        with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on "):
            Lock(tmp_path)
        (_, byte), *others = windows.held
        assert others == []
        assert byte > (tmp_path / ".lock").stat().st_size, "or nobody could read who holds it"
    with Lock(tmp_path):
        pass
    assert "file locks" not in capsys.readouterr().err


def test_cache_files_are_written_and_swept_on_windows(windows, tmp_path):
    atomic.write(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert windows.held, "the temporary file was locked while it was written"
    owned, dead = tmp_path / ".owned.tmp", tmp_path / ".dead.tmp"
    dead.touch()
    with owned.open("wb") as file:
        assert locks.try_lock(file) is LockResult.LOCKED
        assert file.tell() == 0
        for path in (owned, dead):
            os.utime(path, (0, 0))
        atomic.remove_stale_tmp(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".owned.tmp", "a"]


@pytest.mark.parametrize("tree", [KL, TEXT, CLASSIFIER, DIFFAE], ids=["kl", "text", "classifier", "diffae"])
def test_batches_reach_loader_processes_that_are_spawned(tree, tmp_path, monkeypatch):
    """A system without fork, or where it is not safe, pickles the batch source for `train.workers`."""
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    batches = open_method(settings(tree, picture_folder(tmp_path / "set", count=4), tmp_path / "run")).batches
    again = pickle.loads(pickle.dumps(batches))
    assert again.fingerprint == batches.fingerprint
    assert len(again.__getitems__([(0, 1)])["position"]) == 1
