import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from ldm_kit import config as configs
from ldm_kit.training import checkpoint
from ldm_kit.training.signals import Signals, Stopped, ignore_signals
from tests.training.helpers import KL, ROOT, TEXT, picture_folder, play, settings, tensors_of


@pytest.fixture
def watched():
    signals = Signals()
    signals.watch()
    yield signals
    signals.release()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_only_raises_a_flag(watched, number):
    assert watched.caught_by_any() == 0
    os.kill(os.getpid(), number)
    assert watched.caught_by_any() == number
    assert Stopped(number).code == 128 + number


def test_the_second_interrupt_is_at_once(watched):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_signals_return_to_their_owner():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]  # a job in the background ignores SIGINT
    signals = Signals()
    signals.watch()
    during = [signal.getsignal(number) for number in numbers]
    signals.release()
    assert all(owner != ours for owner, ours in zip(before, during, strict=True))
    assert [signal.getsignal(number) for number in numbers] == before


def test_another_thread_may_train_but_not_watch():
    signals = Signals()
    thread = threading.Thread(target=signals.watch)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_workers_leave_signals_alone():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        ignore_signals()
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def started(script, config, folder):
    """A script in a process group of its own, once it trains."""
    configs.write(config, folder / "config.yaml")
    command = [sys.executable, str(ROOT / script), str(folder / "config.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # bits depend on the number
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    metrics, deadline = folder / "run" / "metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(
    ("script", "tree", "number", "everyone"),
    [
        ("train_ldm.py", TEXT, signal.SIGTERM, True),
        pytest.param("train_ae.py", KL, signal.SIGINT, False, marks=pytest.mark.slow),
        pytest.param("train_ae.py", KL, signal.SIGUSR1, True, marks=pytest.mark.slow),
    ],
)
def test_a_script_saves_and_leaves_and_goes_on_bit_for_bit(script, tree, number, everyone, tmp_path):
    pictures, run = picture_folder(tmp_path / "pictures"), tmp_path / "run"
    endless = settings(tree, pictures, run, "train.steps=100000", "train.workers=2", "log.every=1")
    process = started(script, endless, tmp_path)
    (os.killpg if everyone else os.kill)(process.pid, number)  # a scheduler asks workers of the data loader as well
    _, said = process.communicate(timeout=900)
    assert process.returncode == 128 + number, said
    assert "Warning" not in said
    ((stopped, path),) = checkpoint.steps(run).items()
    assert f"stopped by {signal.Signals(number).name} after step {stopped}, saved; add --resume latest to go on" in said
    checkpoint.verify(path)
    end = f"train.steps={stopped + 2}"
    play(settings(tree, pictures, run, end), resume="latest")
    play(settings(tree, pictures, tmp_path / "whole", end))
    last = f"checkpoint-{stopped + 2:08d}"
    assert tensors_of(run / last) == tensors_of(tmp_path / "whole" / last)
