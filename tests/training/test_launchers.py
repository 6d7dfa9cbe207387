"""The real scripts under the real launchers, on two processes that talk gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldm_kit import config as configs
from ldm_kit.training import checkpoint, run_folder
from tests.training.helpers import KL, ROOT, TEXT, picture_folder, settings

BIN = Path(sys.executable).parent
PLAIN = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
LAUNCHERS = {
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": [str(BIN / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2", *PLAIN],
}
SCRIPTS = {"train_ae.py": KL, "train_ldm.py": TEXT}
pytestmark = pytest.mark.slow


def launch(launcher, script, folder, *overrides, resume=None):
    config = settings(SCRIPTS[script], folder / "pictures", folder / "run", *overrides)
    configs.write(config, folder / "config.yaml")
    more = ["--resume", resume] if resume else []
    command = [*LAUNCHERS[launcher], str(ROOT / script), str(folder / "config.yaml"), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def steps_logged(run):
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["step"] for line in lines if "lr" in line]


def await_a_step(process, run):
    deadline = time.monotonic() + 120
    while not steps_logged(run) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.parametrize(("launcher", "script"), [("torchrun", "train_ae.py"), ("accelerate", "train_ldm.py")])
def test_two_processes_write_one_run_and_go_on(launcher, script, tmp_path):
    picture_folder(tmp_path / "pictures")
    for steps, resume in [(4, None), (6, "latest")]:
        process = launch(launcher, script, tmp_path, f"train.steps={steps}", "log.every=1", resume=resume)
        said = process.communicate(timeout=900)
        assert process.returncode == 0, said
    assert steps_logged(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
    for path in checkpoint.steps(tmp_path / "run").values():
        checkpoint.verify(path)
    state = json.loads((tmp_path / "run" / "checkpoint-00000006" / "trainer_state.json").read_text())
    assert (state["step"], state["world_size"]) == (6, 2)
    assert (tmp_path / "run" / "model").is_dir()


def test_a_launcher_that_is_asked_to_stop_leaves_a_checkpoint(tmp_path):
    picture_folder(tmp_path / "pictures")
    process = launch("torchrun", "train_ldm.py", tmp_path, "train.steps=100000", "log.every=1")
    await_a_step(process, tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=900)
    assert process.returncode != 0
    ((step, path),) = checkpoint.steps(tmp_path / "run").items()
    checkpoint.verify(path)
    assert f"stopped by SIGTERM after step {step}, saved" in said[1]


def test_two_runs_in_one_folder_are_refused(tmp_path):
    picture_folder(tmp_path / "pictures")
    first = launch("torchrun", "train_ldm.py", tmp_path, "train.steps=100000", "log.every=1")
    await_a_step(first, tmp_path / "run")
    second = launch("torchrun", "train_ldm.py", tmp_path, "train.steps=100000", "log.every=1")
    said = second.communicate(timeout=900)
    first.terminate()
    first.communicate(timeout=900)
    assert second.returncode != 0
    assert "is in use by process" in said[1]
    assert f'File "{ROOT / "train_ldm.py"}"' not in said[1]  # torchrun has a traceback of its own, the script has none


def workers_of(process):
    """Pids of a process's children, as the kernel lists them."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in listed.split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_workers_whose_launcher_is_killed_save_and_leave(launcher, tmp_path):
    picture_folder(tmp_path / "pictures")
    process = launch(launcher, "train_ldm.py", tmp_path, "train.steps=100000", "log.every=1")
    await_a_step(process, tmp_path / "run")
    workers = workers_of(process)
    assert len(workers) == 2
    process.kill()
    deadline = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))
    process.communicate()
    ((_, path),) = checkpoint.steps(tmp_path / "run").items()
    checkpoint.verify(path)
    with run_folder.Lock(tmp_path / "run"):
        pass
