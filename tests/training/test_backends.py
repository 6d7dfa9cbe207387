"""torch's process-wide switches: set within a run as its config asks, and as they were before afterwards."""

import os

import pytest
import torch

from ldm_kit.training.backends import CUBLAS_VARIABLE, CUBLAS_WORKSPACE, backends
from ldm_kit.training.config import TrainConfig

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def _state() -> tuple[bool, str, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.benchmark,
    )


@pytest.fixture(autouse=True)
def no_cublas_variable(monkeypatch):
    monkeypatch.delenv(CUBLAS_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("settings", "device", "expected"),
    [
        ({}, CUDA, (False, "highest", True)),
        ({"deterministic": True}, CUDA, (True, "highest", False)),
        ({"tf32": True}, CUDA, (False, "high", True)),
        ({}, CPU, (False, "highest", False)),
        ({"deterministic": True, "tf32": True}, CPU, (True, "highest", False)),
    ],
)
def test_a_run_sets_the_switches_that_its_config_asks_for(settings, device, expected):
    before = _state()
    with backends(TrainConfig(steps=1, batch_size=1, **settings), device):
        assert _state() == expected
        assert os.environ.get(CUBLAS_VARIABLE) == (CUBLAS_WORKSPACE if expected[0] else None)
    assert _state() == before


def test_a_program_that_only_warns_of_other_algorithms_does_so_again():
    torch.set_deterministic_debug_mode("warn")
    try:
        with backends(TrainConfig(steps=1, batch_size=1, deterministic=True), CPU):
            assert torch.get_deterministic_debug_mode() == 2
        assert torch.get_deterministic_debug_mode() == 1
    finally:
        torch.set_deterministic_debug_mode("default")


def test_switches_are_restored_when_a_run_fails():
    before = _state()
    with (
        pytest.raises(ValueError, match="stop"),
        backends(TrainConfig(steps=1, batch_size=1, deterministic=True), CUDA),
    ):
        raise ValueError("stop")
    assert _state() == before


def test_a_program_may_have_set_tf32_by_the_newer_switch():
    """Reading the older one is then an error of torch."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with backends(TrainConfig(steps=1, batch_size=1), CUDA):
            pass
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
