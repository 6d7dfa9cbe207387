"""Try the promises, print one table, write it where asked; the exit code is 1 if anything failed."""

import argparse
import json
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.torture import warm
from benchmarks.torture.bench import Bench
from benchmarks.torture.promises import PROMISES
from benchmarks.torture.table import page, table
from benchmarks.torture.trial import Case, Clock, Result, attempt

NAMES = [promise.name for promise in PROMISES]


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torture", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="share of the trials, 0 to 1")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="promises to try")
    parser.add_argument("--match", default="", help="regular expression that names of trials must contain")
    parser.add_argument("--budget", type=float, default=4 * 3600, help="seconds after which no trial is begun")
    parser.add_argument("--folder", type=Path, help="where to work; kept, with what failed trials have left")
    parser.add_argument("--results", type=Path, help="a .json that keeps results; what is tried now replaces its own")
    parser.add_argument("--page", type=Path, help="where to write the table, such as docs/torture.md")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try, tell, and say by the exit code whether all went well."""
    given = options(arguments)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as scratch:
        results = tried(given, given.folder or Path(scratch))
    if given.results is not None:
        results = kept(given.results, results)
    print(table(results))
    if given.page is not None:
        given.page.write_text(page(results, given.share), encoding="utf-8")
    return (
        1 if any(result.failures or result.trials + len(result.missing) < result.planned for result in results) else 0
    )


def tried(given: argparse.Namespace, folder: Path) -> list[Result]:
    """What came of every promise that was asked for."""
    clock, results = Clock(given.budget), []
    bench = Bench(folder.resolve() / f"torture-{time.strftime('%H%M%S')}", given.share)
    for promise in PROMISES:
        if promise.name in given.only:
            share = given.share if promise.sampled else 1.0
            results.append(attempt(promise.name, lambda p=promise: named(p.cases(bench), given.match), share, clock))
    return results


def kept(file: Path, results: Sequence[Result]) -> list[Result]:
    """The file's results and these, which replace those of the same promises; writes all of them."""
    earlier = [Result(**one) for one in json.loads(file.read_text())] if file.exists() else []
    found = {result.promise: result for result in (*earlier, *results)}
    whole = [found[name] for name in NAMES if name in found]
    file.write_text(json.dumps([asdict(result) for result in whole], indent=1))
    return whole


def named(cases: Iterable[Case], pattern: str) -> list[Case]:
    """Those whose names contain a pattern."""
    return [case for case in cases if re.search(pattern, case.name)]


if __name__ == "__main__":
    warm.after_step()
    sys.exit(main())
