"""Labels as other tools write them, and that reading them takes time in proportion to their rows."""

import pytest

from ldm_kit.config import UserError
from ldm_kit.editing import labels

NAMES = [f"{i}.png" for i in range(4)]


def columns(path, text, names=NAMES, **options):
    path.write_text(text, encoding="utf-8")
    return {column.name: column for column in labels.from_file(path, names, **options)}


@pytest.mark.parametrize(
    ("yes", "no", "missing"),
    [("1.0", "0.0", ""), ("True", "False", "nan"), ("yes", "no", "NA"), ("1", "-1", "NaN"), ("Y", "N", "<NA>")],
)
def test_yes_and_no_in_every_spelling(tmp_path, yes, no, missing):
    table = f",file_name,smile\n0,0.png,{yes}\n1,1.png,{no}\n2,2.png,{missing}\n3,3.png,{yes}\n"
    found = columns(tmp_path / "a.csv", table)
    assert list(found) == ["smile"], "the index of pandas is no attribute"
    assert found["smile"].kinds == ["yes"]
    assert found["smile"].positive("yes") == [True, False, None, True]


def test_celeba_s_list(tmp_path):
    text = "3\nSmiling  Young \n0.jpg -1  1\n1.jpg  1 -1\n3.jpg  1  1\n"
    found = columns(tmp_path / "list_attr_celeba.txt", text)
    assert found["Smiling"].positive("yes") == [False, True, None, True]
    assert found["Young"].positive("yes") == [True, False, None, True]
    found = columns(tmp_path / "a.csv", "image_id,Smiling\n0.jpg,-1\n1.jpg,1\n")
    assert found["Smiling"].positive("yes") == [False, True, None, None]
    with pytest.raises(UserError, match="line 4: expected a name and 2 values as in line 2"):
        columns(tmp_path / "b.txt", "2\nSmiling Young\n0.jpg 1 1\n1.jpg 1\n")


def test_rows_of_other_pictures_are_said_in_one_line(tmp_path, caplog):
    rows = "".join(f"{i}.png,{i % 2}\n" for i in range(9))
    assert columns(tmp_path / "a.csv", f"file_name,smile\n{rows}")["smile"].values == ("0", "1", "0", "1")
    assert "has 5 rows of pictures that the folder does not hold, first 4.png" in caplog.text


def test_rows_may_name_the_file_alone(tmp_path):
    names = ["deep/a.png", "deep/b.png", "x/c.png", "y/c.png"]
    found = columns(tmp_path / "a.csv", "file_name;smile\na.png;1\nb.png;0\nc.png;1\n", names)
    assert found["smile"].values == ("1", "0", None, None), "two pictures of one name have no label"


def test_many_numbers_are_split_at_their_median(tmp_path, caplog):
    names = [f"{i}.png" for i in range(60)]
    rows = "".join(f"{name},{20 + i / 2},{i},{i % 2}\n" for i, name in enumerate(names))
    found = columns(tmp_path / "a.csv", f"file_name,age,id,smile\n{rows}", names)
    assert list(found) == ["age above 34.75", "smile"]
    assert found["age above 34.75"].positive("yes") == [i >= 30 for i in range(60)]
    assert "left out the column id, which has 60 values" in caplog.text


def test_text_that_is_cut_is_cleaned(tmp_path):
    found = columns(tmp_path / "a.jsonl", '{"file_name": "0.png", "a": "x\\ud83d"}\n{"file_name": "1.png", "a": "y"}')
    assert found["a"].kinds == ["x\ufffd", "y"]


def test_no_set_of_all_pictures_is_made_for_each_row(tmp_path):
    """A set for every row made 202,599 rows take half an hour; lookups of names are counted here, not timed."""
    count = [0]

    class Name(str):
        __slots__ = ()

        def __hash__(self):
            count[0] += 1
            return str.__hash__(self)

        def __eq__(self, other):
            return str.__eq__(self, other)

    names = [Name(f"{i}.png") for i in range(500)]
    columns(
        tmp_path / "a.csv", "file_name,smile\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate(names)), names
    )
    assert count[0] <= 10 * len(names)
