"""Make the repository's root importable, and provide the fixtures that every room's tests share."""

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.suite_cache import cache_name, drop_unused
from tests.world import world as world  # (for the session: synthetic pictures and tiny trained models)


def pytest_configure(config: pytest.Config) -> None:
    """Give the suite a cache of its own, which its processes share.

    What the code that is tested has cached, such as rasterised OpenMoji, stays for the next session; other code has
    another cache. Caches that no session has used for a day are removed, and of the present one what is a day old and
    belongs to a session's own folders. With pytest's cache switched off, LDM_KIT_CACHE stays as it is.
    """
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return
    shared = Path(config.cache.mkdir(cache_name(Path(__file__).parents[1])))
    os.environ["LDM_KIT_CACHE"] = str(shared)
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    os.utime(shared)  # the time of last use
    drop_unused([*shared.parent.glob("ldm_kit*"), *shared.glob("*/*")])


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
