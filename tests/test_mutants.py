"""The planting of mistakes: what is caught, what survives, and what cannot be planted; and the table's own names."""

import re
from pathlib import Path

import pytest

from benchmarks.mutants.__main__ import TABLE
from benchmarks.mutants.planting import Copy, Mutant, read_mutants

ROOT = Path(__file__).parent.parent
THING = "def double(x):\n    return 2 * x\n\n\ndef half(x):\n    return x / 2\n"
TEST = "from thing import double\n\n\ndef test_double():\n    assert double(3) == 6\n"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of a fork beside threads, Python 3.12
def test_a_mistake_is_caught_or_survives_or_cannot_be_planted(tmp_path):
    (tmp_path / "thing.py").write_text(THING)
    (tmp_path / "test_thing.py").write_text(TEST)

    def planted(old: str, new: str, file: str = "thing.py") -> tuple[str, str]:
        return Copy(tmp_path).plant(Mutant(mistake="it", file=file, old=old, new=new, tests=("test_thing.py",)))

    assert planted("2 * x", "3 * x") == ("caught", "test_thing.py::test_double")
    assert planted("x / 2", "x / 3") == ("survived", "")
    assert planted("return 2 * x", "return 2 *")[0] == "unclear", "no test of it was run"
    assert planted("4 * x", "x") == ("stale", "its text stands 0 times in the file; expected once")
    assert planted("return", "yield") == ("stale", "its text stands 2 times in the file; expected once")
    assert planted("x", "y", "absent.py") == ("stale", "there is no such file")
    assert (tmp_path / "thing.py").read_text() == THING


CACHE = """
import os
from pathlib import Path


def test_cache():
    file = Path(os.environ["LDM_KIT_CACHE"]) / "made"
    assert not file.exists()
    file.parent.mkdir(parents=True)
    file.touch()
"""


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of a fork beside threads, Python 3.12
def test_what_a_mistake_leaves_in_a_cache_is_read_by_nothing_else(tmp_path, monkeypatch):
    users = tmp_path / "users"
    users.mkdir()
    monkeypatch.setenv("LDM_KIT_CACHE", str(users))
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "thing.py").write_text(THING)
    (tmp_path / "copy" / "test_thing.py").write_text(CACHE)
    for _ in range(2):
        mutant = Mutant(mistake="it", file="thing.py", old="2 * x", new="3 * x", tests=("test_thing.py",))
        assert Copy(tmp_path / "copy").plant(mutant) == ("survived", "")
    assert not [*users.iterdir()]


def test_the_table_names_files_and_tests_that_are_there():
    mutants = read_mutants(TABLE)
    assert len({mutant.mistake for mutant in mutants}) == len(mutants) > 50
    for mutant in mutants:
        assert (ROOT / mutant.file).is_file(), mutant.file
        assert mutant.old != mutant.new
        for test in mutant.tests:
            file, _, name = test.partition("::")
            assert re.search(rf"^def {name}", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), test
