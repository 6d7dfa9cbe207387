"""Pytest plugin of the stress trials: options, one subtest per trial, and the table at the end."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.subtests import SubtestReport

from tests.stress import report
from tests.stress.harness import Harness, sample_trials
from tests.stress.promises import PROMISES, Promise

QUICK = 0.02
RESULTS = pytest.StashKey[dict[str, report.Result]]()
OPTIONS: dict[str, dict[str, Any]] = {
    "--quick": {"action": "store_true", "help": "a fixed 2 %% of each promise's trials, at least one (--share 0.02)"},
    "--share": {"type": float, "default": 1.0, "help": "share of each promise's trials, 0 to 1; always the same ones"},
    "--trial": {"default": "", "metavar": "TEXT", "help": "try only trials whose name contains TEXT"},
    "--results": {"type": Path, "help": "a .json that keeps results; a promise tried again replaces its own"},
    "--page": {"type": Path, "help": f"write the table between its markers in this page, such as {report.PAGE}"},
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the trials; they are known where tests/stress is named on the command line."""
    group = parser.getgroup("stress")
    for name, settings in OPTIONS.items():
        group.addoption(name, **settings)


def pytest_configure(config: pytest.Config) -> None:
    """Prepare for results."""
    config.stash[RESULTS] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count every trial; trials are subtests whose keyword `promise` names what they try."""
    if isinstance(report, SubtestReport) and "promise" in report.context.kwargs:
        _current[0].add(report.outcome, f"{report.context.msg}: {_reason(report)}")


_current: list[report.Result] = []


def _reason(report: pytest.TestReport) -> str:
    """Return in one line why a trial failed or was skipped."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        return " ".join(str(report.longrepr).split())[:400]
    return f"{' '.join(crash.message.split())[:400]} ({Path(crash.path).name}:{crash.lineno})"


@pytest.fixture(scope="session")
def harness(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """Provide the harness of all trials; this process has one thread, since bits depend on the number."""
    threads = torch.get_num_threads()
    root = tmp_path_factory.mktemp("stress")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDM_KIT_CACHE", str(root / "cache"))
        torch.set_num_threads(1)
        yield Harness(root, share(request.config))
    torch.set_num_threads(threads)


def share(config: pytest.Config) -> float:
    """Return the share of the trials that was asked for."""
    return QUICK if config.getoption("quick", False) else config.getoption("share", 1.0)


@pytest.fixture
def run_trials(request: pytest.FixtureRequest, harness: Harness, subtests: pytest.Subtests) -> Any:
    """Return a function that tries a promise and counts the outcomes."""

    def run(promise: Promise) -> None:
        start, config = time.monotonic(), request.config
        trials = [trial for trial in promise.trials(harness) if config.getoption("trial", "") in trial[0]]
        trials = sample_trials(trials, share(config) if promise.sampled else 1.0)
        result = report.Result(promise.name, promise.sentence, len(trials))
        config.stash[RESULTS][promise.name] = result
        _current[:] = [result]
        for name, check in trials:
            with subtests.test(name, promise=promise.name):
                try:
                    check()
                except SystemExit as end:
                    raise AssertionError(f"exit with {end.code}") from end
            result.seconds = time.monotonic() - start

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, and write it where asked."""
    results = config.stash[RESULTS]
    if not results:
        return
    if (file := config.getoption("results", None)) is not None:
        results = report.merge(file, results, [promise.name for promise in PROMISES])
    terminalreporter.section("trials")
    terminalreporter.write_line(report.table(results.values()))
    if (page := config.getoption("page", None)) is not None:
        report.write_page(results.values(), share(config), page)
