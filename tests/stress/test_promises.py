"""Trials of every promise of the trainer: `pytest -m stress tests/stress` (`--quick`, `-k kills`, `--trial TEXT`)."""

import pytest

from tests.stress.promises import PROMISES


@pytest.mark.stress
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.name)
def test_promise(promise, run_trials):
    run_trials(promise)
