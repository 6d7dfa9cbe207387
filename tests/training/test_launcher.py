import signal
import subprocess
import sys
import time

import pytest

from ldm_kit.training.launcher import launched

WORKER = """
import os, signal, sys, time
from ldm_kit.training import launcher
if {stubborn}:
    signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
launcher.watch(every=0.02, grace=0.2)
print(os.getpid(), flush=True)
while True:
    time.sleep(0.01)
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_worker_whose_launcher_is_killed_ends(stubborn):
    command = [sys.executable, "-c", LAUNCHER, WORKER.format(stubborn=stubborn)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0  # the worker lives
        time.sleep(0.1)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read()  # ends when the last holder of the pipe, the worker, is gone
    assert said == ("asked\n" if stubborn else "")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, False), ({"TORCHELASTIC_RUN_ID": "none"}, True), ({"ACCELERATE_MIXED_PRECISION": "no"}, True)],
)
def test_only_launchers_are_watched(environment, expected):
    assert launched(environment) == expected
