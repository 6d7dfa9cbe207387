"""What a session of tests may read of an earlier one's cache."""

import os
import time

from tests.suite_cache import DAY, PRODUCERS, cache_name, drop_unused


def test_other_code_of_a_producer_has_another_cache(tmp_path):
    for name in (*PRODUCERS, "tests"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "some.py").write_text("a = 1\n")
    names = [cache_name(tmp_path)]
    (tmp_path / "tests" / "some.py").write_text("a = 2\n")
    assert cache_name(tmp_path) == names[0], "no producer"
    for name in PRODUCERS:
        (tmp_path / name / "some.py").write_text("a = 2\n")
        names.append(cache_name(tmp_path))
    (tmp_path / PRODUCERS[0] / "some.py").rename(tmp_path / PRODUCERS[0] / "other.py")
    names.append(cache_name(tmp_path))
    assert len({*names}) == len(PRODUCERS) + 2


def test_what_was_not_used_for_a_day_is_dropped(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
        (tmp_path / f"{name}.file").touch()
    for name in ("old", "old.file"):
        os.utime(tmp_path / name, (time.time() - DAY - 60,) * 2)
    drop_unused(tmp_path.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "new.file"]
