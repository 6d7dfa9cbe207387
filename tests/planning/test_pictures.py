"""Summary of a folder of pictures: counts, sizes, captions, classes, colours."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ldm_kit.config import UserError
from ldm_kit.planning.pictures import summarise_folder


def save(path: Path, size: tuple[int, int] = (40, 30), colour: str = "red", mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_sizes_are_of_the_shorter_side(tmp_path):
    for number, size in enumerate([(40, 30), (50, 90), (70, 70)]):
        save(tmp_path / f"{number}.png", size)
    summary = summarise_folder(tmp_path)
    assert (summary.count, summary.smallest, summary.side, summary.largest) == (3, 30, 50, 70)
    assert summary.condition == "none"
    assert str(summary) == "3 pictures of 30 to 70 px (shorter side, median 50), no captions and no classes"


def test_folders_are_classes_and_their_names_are_no_captions(tmp_path):
    for number in range(4):
        save(tmp_path / ("black_cat" if number % 2 else "dog") / f"{number}.png")
    summary = summarise_folder(tmp_path)
    assert summary.classes == ("black_cat", "dog")
    assert summary.captioned == 0
    assert summary.condition == "class"


def test_one_class_is_no_condition(tmp_path):
    for number in range(4):
        save(tmp_path / "cat" / f"{number}.png")
    assert summarise_folder(tmp_path).condition == "none"


def test_captions_are_a_condition_if_half_of_the_pictures_have_one(tmp_path):
    for number in range(4):
        save(tmp_path / f"{number}.png")
    texts = {0: "a red wall at night", 1: "a wall"}
    lines = [json.dumps({"file_name": f"{number}.png", "text": texts.get(number, "")}) for number in range(4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    summary = summarise_folder(tmp_path)
    assert (summary.captioned, summary.words, summary.condition) == (0.5, 5, "text")
    (tmp_path / "metadata.jsonl").write_text("\n".join([lines[0], *lines[2:]]))
    assert summarise_folder(tmp_path).condition == "none"


@pytest.mark.parametrize(("colour", "grey"), [("#808080", True), ("#848080", True), ("#a08080", False)])
def test_grey_pictures_may_be_saved_in_colour(tmp_path, colour, grey):
    save(tmp_path / "0.png", colour="white")
    save(tmp_path / "1.png", colour=colour)
    assert summarise_folder(tmp_path).grey is grey


def test_an_alpha_channel_that_hides_nothing_is_not_transparent(tmp_path):
    save(tmp_path / "0.png", colour="#ff0000ff", mode="RGBA")
    assert summarise_folder(tmp_path).transparent == 0
    save(tmp_path / "1.png", colour="#ff000080", mode="RGBA")
    assert summarise_folder(tmp_path).transparent == 0.5


def test_unreadable_pictures_are_left_to_the_training(tmp_path):
    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="none of the pictures"):
        summarise_folder(tmp_path)
    save(tmp_path / "1.png")
    assert summarise_folder(tmp_path).side == 30


def test_no_folder_and_no_pictures_are_sentences(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        summarise_folder(tmp_path / "absent")
    with pytest.raises(UserError, match=str(tmp_path)):
        summarise_folder(tmp_path)
