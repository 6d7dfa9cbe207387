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


def test_the_table_names_files_and_tests_that_are_there():
    mutants = read_mutants(TABLE)
    assert len({mutant.mistake for mutant in mutants}) == len(mutants) > 50
    for mutant in mutants:
        assert (ROOT / mutant.file).is_file(), mutant.file
        assert mutant.old != mutant.new
        for test in mutant.tests:
            file, _, name = test.partition("::")
            assert re.search(rf"^def {name}", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), test
