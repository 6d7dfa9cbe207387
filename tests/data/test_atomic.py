import errno
import os
import subprocess
import sys
import time

import pytest

from ldm_kit.data import atomic

OWNER = """
import fcntl, sys, time
file = open(sys.argv[1], "wb")
fcntl.flock(file, fcntl.LOCK_EX)
print("mine", flush=True)
time.sleep(60)
"""


def aged(path, seconds=3600):
    path.touch()
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_only_drafts_that_nobody_owns_are_swept(tmp_path):
    owned, dead = tmp_path / ".a.tmp", aged(tmp_path / ".b.tmp")
    young, whole, other = tmp_path / ".c.tmp", aged(tmp_path / "latents.safetensors"), aged(tmp_path / ".hidden")
    young.touch()
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(owned)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"mine\n"
    aged(owned)
    atomic.remove_stale_tmp(tmp_path)
    assert set(tmp_path.iterdir()) == {owned, young, whole, other}
    owner.kill()
    owner.communicate()
    atomic.remove_stale_tmp(tmp_path)
    assert not owned.exists()
    assert not dead.exists()


def test_a_file_is_whole_or_absent_and_its_folder_clean(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    atomic.write(path, b"one")
    aged(path.with_name(".killed.tmp"))
    atomic.write(path, b"two")
    assert [(found.name, found.read_bytes()) for found in path.parent.iterdir()] == [("file", b"two")]
    monkeypatch.setattr(type(path), "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        atomic.write(path, b"three")
    assert [(found.name, found.read_bytes()) for found in path.parent.iterdir()] == [("file", b"two")]


def test_without_locks_files_are_written_and_drafts_kept_for_a_day(tmp_path, monkeypatch):
    def flock(*arguments):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    hour, day = aged(tmp_path / ".a.tmp"), aged(tmp_path / ".b.tmp", 90_000)
    atomic.write(tmp_path / "file", b"one")
    assert (tmp_path / "file").read_bytes() == b"one"
    assert (hour.exists(), day.exists()) == (True, False)
