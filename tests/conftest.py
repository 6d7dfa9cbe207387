"""Make the repository's root importable, and provide the fixtures that every room's tests share."""

import os
import shutil
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.world import world as world  # (for the session: synthetic pictures and tiny trained models)


def pytest_configure(config: pytest.Config) -> None:
    """Give the suite a cache of its own, which its processes share.

    Rasterised OpenMoji stays for the next session; what was cached of a session's folders a day ago is removed. With
    pytest's own cache switched off, the user's cache is used.
    """
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return
    shared = Path(config.cache.mkdir("ldm_kit"))
    os.environ["LDM_KIT_CACHE"] = str(shared)
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    for path in shared.glob("*/*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > 86400:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(params=["contiguous", "channels_last"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test under both memory layouts, whichever this machine would choose."""
    monkeypatch.setenv("LDM_KIT_CHANNELS_LAST", str(int(request.param == "channels_last")))
    return request.param


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give a module of tests a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDM_KIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what UTF-8 cannot hold: reports travel between processes, and tests print file names with any bytes."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
