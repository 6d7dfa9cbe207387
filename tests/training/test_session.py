"""Opening a run on a CPU: threads."""

import pytest
import torch

from ldm_kit.training import session


@pytest.fixture
def threads(monkeypatch):
    """What `torch.set_num_threads` was called with, on a machine of 8 cores without an accelerator."""
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(session, "cores", lambda: 8)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return asked


@pytest.mark.parametrize(("processes", "expected"), [(1, 8), (2, 4), (16, 1)])
def test_accelerates_single_thread_is_undone(threads, monkeypatch, processes, expected):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    session.use_all_cores(processes)
    assert threads == [expected]


@pytest.mark.parametrize(
    "environment", [{}, {"OMP_NUM_THREADS": "1"}, {"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "3"}]
)
def test_a_chosen_number_of_threads_stands(threads, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    session.use_all_cores(1)
    assert threads == []


def test_an_accelerator_needs_no_threads(threads, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    session.use_all_cores(1)
    assert threads == []
