"""Mutation testing: replace one text at a time in a copy of the repository, and run tests on the copy."""

import importlib
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from ldm_kit.config import Config, UserError, read

LIMIT = 900  # seconds for the tests of one mistake
_OURS = ("ldm_kit", "autoencoder", "conditioning", "benchmarks", "tests", "train_ae", "train_ldm", "sample", "edit")
_IMPORTED = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"  # plugins, by the libraries
_LIBRARIES = (  # they bring diffusers, accelerate and the rest of their own imports
    "transformers.models.clip.modeling_clip",
    "ldm_kit.methods.autoencoder",
    "ldm_kit.methods.classifier",
    "ldm_kit.methods.latent",
    "ldm_kit.methods.pdae",
    "ldm_kit.methods.prior",
    "ldm_kit.convert.diffae",
    "ldm_kit.editing.commands",
    "ldm_kit.inference.generate",
    "ldm_kit.inference.likelihood",
)


class Mutant(Config):
    """A mistake to plant: a text in a file, the text that replaces it, and tests of which one must then fail."""

    mistake: str = Field(min_length=1, description="what is wrong, in a few words")
    file: str = Field(min_length=1, description="file, from the repository's root")
    old: str = Field(min_length=1, description="the text, which stands once in the file")
    new: str = Field(description="what takes its place")
    tests: tuple[str, ...] = Field(min_length=1, description="tests, by file or FILE::NAME")


class _Table(Config):
    mutants: tuple[Mutant, ...]


class Verdict(NamedTuple):
    """The outcome of planting a mistake, or of only looking for its text.

    Args:
        kind: caught: a test failed; survived: all tests passed; stale: the text to replace is not in its file exactly
            once; unclear: the tests took too long or broke off; there: the text is in its file, and no test was run.
        detail: the test that failed, or the reason; "" if there is nothing to add.
    """

    kind: Literal["caught", "survived", "stale", "unclear", "there"]
    detail: str = ""

    @property
    def good(self) -> bool:
        """Whether all is well: the mistake was caught, or its text is there."""
        return self.kind in ("caught", "there")

    @property
    def cell(self) -> str:
        """Text of the cell "noticed by" in the table of results."""
        return f"`{self.detail}`" if self.good else f"**{self}**"

    def __str__(self) -> str:
        return self.kind if self.kind in ("caught", "survived") else f"{self.kind}: {self.detail}"


@dataclass(frozen=True)
class Copy:
    """A copy of a repository's files, in which mistakes are planted."""

    root: Path  # folder of the copy

    @classmethod
    def of(cls, tree: Path, folder: Path) -> "Copy":
        """Copy all files of the repository `tree` that git does not ignore into the empty folder `folder`.

        Raises:
            UserError: `tree` is no git repository.
        """
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=tree,
            capture_output=True,
            check=False,
        )
        if listed.returncode:
            raise UserError(f"{tree} is no git repository; run from the repository's root")
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (tree / name).is_file():  # a deleted one is still listed
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(tree / name, folder / name)
        return cls(folder)

    def find(self, mutant: Mutant) -> Verdict:
        """Look for the text that a mistake replaces; return the verdict "there", or "stale" with the reason."""
        path = self.root / mutant.file
        if not path.is_file():
            return Verdict("stale", "there is no such file")
        if (count := path.read_text(encoding="utf-8").count(mutant.old)) != 1:
            return Verdict("stale", f"its text stands {count} times in the file; expected once")
        return Verdict("there")

    def plant(self, mutant: Mutant) -> Verdict:
        """Plant a mistake, run its tests, and restore the file; return the verdict."""
        if not (found := self.find(mutant)).good:
            return found
        path = self.root / mutant.file
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        try:
            return self.test(mutant.tests)
        finally:
            path.write_text(text, encoding="utf-8")

    def test(self, tests: Sequence[str]) -> Verdict:
        """Run tests (FILE or FILE::NAME) on the copy up to the first that fails; return the verdict.

        They run in a fork of this process, which has imported the libraries already.
        """
        log = self.root / ".mutants.log"
        child = multiprocessing.get_context("fork").Process(target=_run_pytest, args=(self.root, log, list(tests)))
        child.start()
        child.join(LIMIT)
        if child.is_alive():
            child.kill()
            child.join()
            return Verdict("unclear", f"its tests took more than {LIMIT} s")
        text = log.read_text(encoding="utf-8", errors="replace")
        failed = re.search(r"^(?:FAILED|ERROR) \S*?([^/\s]+)::(\w+)", text, re.MULTILINE)
        if child.exitcode == 1 and failed is not None:
            return Verdict("caught", f"{failed[1]}::{failed[2]}")
        if child.exitcode == 0:
            return Verdict("survived")
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "nothing was printed")
        return Verdict("unclear", f"pytest ended with status {child.exitcode} ({last[:160]})")


def import_libraries() -> None:
    """Import the packages that tests need, once, before `Copy.test` forks; threads are off, as forks must have none."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in _LIBRARIES:
        importlib.import_module(name)


def _run_pytest(root: Path, log: Path, tests: list[str]) -> None:
    """Run pytest on the copy in `root`, whose modules are imported anew, and exit the process with pytest's status.

    `log` is the file for all output; `tests` are FILE or FILE::NAME.
    """
    for name in list(sys.modules):
        if name.partition(".")[0] in _OURS:
            del sys.modules[name]
    sys.path[:] = [str(root), *(path for path in sys.path if path not in ("", str(Path.cwd())))]
    os.environ["PYTHONPATH"] = str(root)  # of the processes that tests start
    cache = root / ".mutants.cache"  # neither the user's, nor what another planted mistake has left
    shutil.rmtree(cache, ignore_errors=True)
    os.environ["LDM_KIT_CACHE"] = str(cache)
    os.chdir(root)
    sys.dont_write_bytecode = True
    file = log.open("w", encoding="utf-8", errors="replace")
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
    import pytest

    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-W", _IMPORTED, *tests])
    sys.stdout.flush()
    os._exit(int(code))


def read_mutants(path: Path) -> tuple[Mutant, ...]:
    """Read the mistakes that a YAML file lists; raises UserError if it is not valid."""
    return read(_Table, path).mutants


def tests_of(mutants: Sequence[Mutant]) -> list[str]:
    """Return the tests that are named for any of the mistakes, each once, sorted."""
    return sorted({tests for mutant in mutants for tests in mutant.tests})
