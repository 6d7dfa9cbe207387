import json

import numpy as np
import pytest

from ldm_kit.data.archive_rows import Rows
from ldm_kit.data.records import Numbers, Record, Records, Strings, compact

TEXTS = ["", "añ", "\ud800.png", "nul\0", "山", ""]
RECORDS = [Record(name, name[::-1], None if i % 2 else i, {"k": name} if i else {}) for i, name in enumerate(TEXTS)]


def test_strings_are_returned_as_they_were():
    strings = Strings.of(TEXTS)
    assert list(strings) == [strings[i] for i in range(6)] == TEXTS
    assert (strings[-2], list(strings[1:5:2])) == ("山", ["añ", "nul\0"])
    with pytest.raises(IndexError):
        strings[6]


def test_records_are_returned_as_they_were():
    records = Records.of(RECORDS)
    assert list(records) == [records[i] for i in range(6)] == RECORDS
    assert records == RECORDS
    assert records != [*RECORDS[:5], RECORDS[0]]
    assert records[4:1:-1] == RECORDS[4:1:-1]


def test_a_choice_of_a_choice_of_records():
    records = Records.of(RECORDS).take(np.array([5, 0, 3, 1])).take(np.array([2, 0]))
    assert list(records) == [RECORDS[3], RECORDS[5]] == [records[0], records[1]]
    assert list(records.labels) == [RECORDS[3].label, RECORDS[5].label]


def test_nothing_is_stored_of_nothing():
    assert (list(Strings.of([])), list(Records.of([])), list(Rows.of([]))) == ([], [], [])


def test_compact_values_are_the_same_values():
    assert list(compact(["a", "b", ""])) == ["a", "b", ""]
    assert isinstance(compact([3, 1]), Numbers)
    assert (list(compact([3, 1])), compact([3, 1])[1]) == ([3, 1], 1)
    assert compact([1, "a"]) == [1, "a"]


def test_rows_of_an_index_are_returned_as_they_were():
    rows = [
        (f"{i}.png", "text", "a" if i else None, {"n": "1"} if i else {}, [i, 2**40], f"{i:064x}") for i in range(3)
    ]
    assert list(Rows.of(rows)) == rows
    assert Rows.of(rows)[1:] == rows[1:]
    assert json.dumps(list(Rows.of(rows))) == json.dumps(rows)
