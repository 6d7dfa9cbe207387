"""Launch modes that are refused with advice, a worker whose launcher is killed, and threads per process on a CPU."""

import signal
import subprocess
import sys
import time

import pytest
import torch
from accelerate.utils import DistributedType

from ldm_kit.config import UserError
from ldm_kit.methods import check_run
from ldm_kit.methods.train import train
from ldm_kit.training import launch
from ldm_kit.training.config import TrainConfig
from ldm_kit.training.launch import (
    SUPPORTED,
    check_distributed_type,
    check_environment,
    is_launched,
    launched_precision,
)
from ldm_kit.training.session import session
from tests.training.helpers import TEXT, reset, settings

ASKED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed is not supported",
    "ACCELERATE_USE_FSDP": "FSDP is not supported",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is not supported",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config .* is not supported",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's own data parallelism is not supported",
    "ACCELERATE_IN_TPU_POD": "a TPU is not supported",
}


@pytest.mark.parametrize(("variable", "said"), ASKED.items())
def test_a_launch_that_is_not_supported_is_refused_at_the_start(tmp_path, monkeypatch, variable, said):
    reset()
    config = settings(TEXT, tmp_path, tmp_path / "run")
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match=rf"{said} \({variable} is set.*(--multi_gpu|use GPUs)"), session(config, None):
        pass
    assert not (tmp_path / "run").exists()


def test_a_tpu_is_refused_by_its_device(tmp_path, monkeypatch):
    monkeypatch.setenv("PJRT_DEVICE", "TPU")
    config = settings(TEXT, tmp_path, tmp_path / "run")
    with pytest.raises(UserError, match="a TPU is not supported"), session(config, None):
        pass


def test_plain_launches_pass():
    check_environment({})
    check_environment({"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "false", "PJRT_DEVICE": "CUDA"})
    check_environment(dict.fromkeys(ASKED, "false"))


@pytest.mark.parametrize("kind", [kind for kind in DistributedType if kind not in SUPPORTED])
def test_every_other_kind_is_refused_by_name(kind):
    with pytest.raises(UserError, match=rf"{kind.value} is not supported: .*--multi_gpu"):
        check_distributed_type(kind)


@pytest.mark.parametrize("kind", SUPPORTED)
def test_data_parallelism_is_known(kind):
    check_distributed_type(kind)


WORKER = """
import os, signal, sys, time
from ldm_kit.training import launch
if {stubborn}:
    signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
launch.watch_parent(interval=0.02, grace=0.2)
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
    assert is_launched(environment) == expected


@pytest.fixture
def threads(monkeypatch):
    """What `torch.set_num_threads` was called with, on a machine of 8 cores without an accelerator."""
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(launch, "cores", lambda: 8)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return asked


@pytest.mark.parametrize(("processes", "expected"), [(1, 8), (2, 4), (16, 1)])
def test_accelerates_single_thread_is_undone(threads, monkeypatch, processes, expected):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch.use_all_cores(processes)
    assert threads == [expected]


@pytest.mark.parametrize(
    "environment", [{}, {"OMP_NUM_THREADS": "1"}, {"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "3"}]
)
def test_a_chosen_number_of_threads_stands(threads, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    launch.use_all_cores(1)
    assert threads == []


def test_an_accelerator_needs_no_threads(threads, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    launch.use_all_cores(1)
    assert threads == []


@pytest.mark.parametrize(
    ("given", "asked", "expected"),
    [
        ({}, "bf16", "bf16"),
        ({}, "FP16", "fp16"),
        ({"precision": "auto"}, "bf16", "bf16"),
        ({"precision": "bf16"}, "bf16", "bf16"),
        ({"precision": "bf16"}, "no", "bf16"),
        ({"precision": "auto"}, "no", "auto"),
        ({}, "no", "no"),
        ({}, None, "no"),
    ],
)
def test_the_launcher_decides_what_the_config_leaves_open(tmp_path, monkeypatch, given, asked, expected):
    trees = {"run": str(tmp_path / "run"), "train": {"steps": 1, "batch_size": 1, **given}}
    config = check_run({**TEXT, **trees, "data": {"source": "digits"}}, "the test's config")
    if asked is None:
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    else:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    opened = []
    monkeypatch.setattr("ldm_kit.methods.train.session", lambda settings, resume: opened.append(settings) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(config)
    assert opened[0].train.precision == expected, "and so config.yaml says it"


@pytest.mark.parametrize(
    ("precision", "asked", "said"),
    [
        ("no", "bf16", "train.precision is no, but the launcher asks for bf16 .*accelerate config.*; make them equal"),
        ("fp16", "bf16", "train.precision is fp16, but the launcher asks for bf16"),
        ("auto", "fp8", "mixed precision fp8 is not supported .*; expected no, bf16 or fp16"),
    ],
)
def test_a_launcher_that_disagrees_is_refused(precision, asked, said):
    config = TrainConfig(steps=1, batch_size=1, precision=precision)
    with pytest.raises(UserError, match=said):
        launched_precision(config, {"ACCELERATE_MIXED_PRECISION": asked})


def test_accumulation_is_not_the_launchers():
    with pytest.raises(UserError, match=r"not the launcher's .*train\.micro_batch"):
        check_environment({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"})


def test_fp16_on_a_cpu_is_refused_at_the_door(tmp_path, monkeypatch):
    reset()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    config = settings(TEXT, tmp_path, tmp_path / "run", "train.precision=fp16")
    with pytest.raises(UserError, match="fp16 needs a GPU, and this run is on a CPU; take bf16"), session(config, None):
        pass
    assert not (tmp_path / "run").exists()
