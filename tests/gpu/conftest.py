"""The device of a test: `device` is CUDA in the tests marked gpu, and the CPU with LDM_KIT_REHEARSE=1.

A test that is `rehearsed` also runs on the CPU in the ordinary suite. On CUDA warnings are shown, not errors: torch
and accelerate have some that depend on the card.
"""

import os
from collections.abc import Iterator

import pytest
import torch

from tests.gpu.devices import REHEARSAL

if torch.cuda.is_available():
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts; deterministic tests need it


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test that has a device the one under test, and a rehearsed one the CPU too."""
    if "device" in metafunc.fixturenames:
        devices = [pytest.param("cpu" if REHEARSAL else "cuda", marks=pytest.mark.gpu, id="gpu")]
        if getattr(metafunc.function, "rehearsed", False):
            devices.append(pytest.param("cpu", id="rehearsal"))
        metafunc.parametrize("device", devices, indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Show warnings of tests on CUDA without failing."""
    for item in items:
        if "tests/gpu" in item.path.as_posix() and item.get_closest_marker("gpu") and not REHEARSAL:
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device under test."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA")
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """Compute float32 in float32: by default convolutions on CUDA have TF32's ten bits."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
