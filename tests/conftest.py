"""Make the repository's root importable, and provide the fixtures that every room's tests share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.world import world as world  # (for the session: synthetic pictures and tiny trained models)


@pytest.fixture(params=["contiguous", "channels_last"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test under both memory layouts, whichever this machine would choose."""
    monkeypatch.setenv("LDM_KIT_CHANNELS_LAST", str(int(request.param == "channels_last")))
    return request.param
