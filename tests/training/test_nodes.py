"""Two machines on the loopback: one is cut off in the middle, the other ends by itself, both go on to the same bits."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldm_kit import config as configs
from ldm_kit.training import checkpoint
from tests.training.helpers import ROOT, TEXT, picture_folder, settings, tensors_of

STEPS, EVERY = 100, 10
PATIENCE = 60  # seconds that the other machine has to end in
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


def launcher(kind: str, machine: int, port: int) -> list[str]:
    """The line that docs/scale.md gives, for two machines with a process each."""
    if kind == "torchrun":
        place = ["--nnodes", "2", "--node_rank", str(machine), "--master_addr", "127.0.0.1", "--master_port", str(port)]
        return [sys.executable, "-m", "torch.distributed.run", *place, "--nproc_per_node", "1"]
    place = ["--num_machines", "2", "--machine_rank", str(machine), "--main_process_ip", "127.0.0.1"]
    plain = ["--multi_gpu", "--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [str(Path(sys.executable).parent / "accelerate"), "launch", *place, "--main_process_port", str(port), *plain]


@contextlib.contextmanager
def launched(kind: str, folder: Path, *more: str) -> Iterator[list[subprocess.Popen]]:
    """Both machines' launchers, gone when the block ends; what they say goes to a file each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    machines = []
    for machine in (0, 1):
        command = [*launcher(kind, machine, port), str(ROOT / "train_ldm.py"), str(folder / "config.yaml"), *more]
        with (folder / f"machine-{machine}.txt").open("a") as said:
            machines.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
    try:
        yield machines
    finally:
        for machine in machines:
            if machine.poll() is None:
                cut_off(machine)


def prepared(folder: Path, pictures: Path) -> Path:
    """A folder with a config that trains for STEPS."""
    folder.mkdir()
    often = [f"train.steps={STEPS}", f"train.checkpoint_every={EVERY}", f"log.evaluate_every={STEPS}"]
    configs.write(settings(TEXT, pictures, folder / "run", *often), folder / "config.yaml")
    return folder


def finished(kind: str, folder: Path, *more: str) -> dict[str, str]:
    """Train on both machines until they are done; the hashes of all tensors in the last checkpoint."""
    with launched(kind, folder, *more) as machines:
        for number, machine in enumerate(machines):
            assert machine.wait(300) == 0, (folder / f"machine-{number}.txt").read_text()
    return tensors_of(folder / "run" / f"checkpoint-{STEPS:08d}")


def below(parent: int) -> list[int]:
    """All processes that descend from one."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        if int(after_name[1]) == parent:
            child = int(stat.parent.name)
            found += [child, *below(child)]
    return found


def cut_off(machine: subprocess.Popen) -> None:
    """Kill -9 everything that runs on a machine: the launcher first, so that it can say nothing."""
    for process in [machine.pid, *below(machine.pid)]:
        os.kill(process, signal.SIGKILL)
    machine.wait(10)


def await_checkpoint(machines: list[subprocess.Popen], run: Path) -> None:
    deadline = time.monotonic() + 120
    while not checkpoint.steps(run) and time.monotonic() < deadline:
        assert [machine.poll() for machine in machines] == [None, None]
        time.sleep(0.02)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return picture_folder(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> dict[str, str]:
    folder = prepared(tmp_path_factory.mktemp("whole") / "nodes", pictures)
    return finished("accelerate", folder)


@pytest.mark.parametrize(("kind", "lost"), [("accelerate", 1), ("torchrun", 0)])
def test_a_machine_cut_off_ends_the_other_and_both_go_on_to_the_same_bits(kind, lost, tmp_path, pictures, undisturbed):
    folder = prepared(tmp_path / "nodes", pictures)
    with launched(kind, folder) as machines:
        await_checkpoint(machines, folder / "run")
        left = machines[1 - lost]
        workers = below(left.pid)
        assert below(machines[lost].pid)
        cut_off(machines[lost])
        assert left.wait(PATIENCE) != 0
        assert not [process for process in workers if Path(f"/proc/{process}").exists()]
    saved = checkpoint.steps(folder / "run")
    assert saved
    assert max(saved) < STEPS, "it was over before it was cut off"
    assert finished(kind, folder, "--resume", "latest") == undisturbed
