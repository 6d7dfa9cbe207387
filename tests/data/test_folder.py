import json
import logging

import pytest
import torch
from PIL import Image

from ldm_kit.config import UserError, check
from ldm_kit.data.folder import FolderConfig, load, load_all
from ldm_kit.data.sources import load as load_source


def draw(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (shade, shade, shade)).save(path)


def table(root, *rows):
    (root / "metadata.jsonl").write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))


def config(root, **more):
    return FolderConfig(path=root, resolution=8, **more)


def plain(root, n):
    for i in range(n):
        draw(root / f"{i:03d}.png", i)
    return root


def test_metadata_gives_captions_labels_and_fields(tmp_path):
    draw(tmp_path / "deep/er/b.png")
    draw(tmp_path / "a.png")
    table(
        tmp_path,
        {"file_name": "deep/er/b.png", "text": "a ball", "label": "round", "mood": "calm", "age": 3},
        "",
        {"file_name": "./a.png", "text": "a box", "label": "angular"},
    )
    pictures = load_all(config(tmp_path))
    assert [r.name for r in pictures.records] == ["a.png", "deep/er/b.png"]
    assert [r.text for r in pictures.records] == ["a box", "a ball"]
    assert (pictures.classes, [r.label for r in pictures.records]) == (["angular", "round"], [0, 1])
    assert pictures.records[1].fields == {"mood": "calm", "age": "3"}


def test_a_csv_says_the_same_as_a_jsonl(tmp_path):
    """The other form of Hugging Face's imagefolder, with what spreadsheets write: a BOM, CRLF, quotes, empty cells."""
    draw(tmp_path / "deep/er/b.png")
    draw(tmp_path / "a.png")
    rows = [
        "file_name,text,label,mood",
        '"deep/er/b.png","a ""ball"", red\nand blue",round,',
        "./a.png,a box,,calm",
        "",
    ]
    (tmp_path / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    pictures = load_all(config(tmp_path))
    assert [(r.name, r.text, r.label, dict(r.fields)) for r in pictures.records] == [
        ("a.png", "a box", None, {"mood": "calm"}),
        ("deep/er/b.png", 'a "ball", red\nand blue', 0, {}),
    ]
    assert pictures.classes == ["round"]


def test_a_csv_in_the_folder_of_each_split(tmp_path):
    for name in ("train", "test"):
        draw(tmp_path / name / "a.png")
        (tmp_path / name / "metadata.csv").write_text(f"file_name,text\na.png,{name}\n")
    split = load(config(tmp_path))
    assert [[(r.name, r.text) for r in s.records] for s in (split.train, split.heldout)] == [
        [("train/a.png", "train")],
        [("test/a.png", "test")],
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"metadata.csv, line 1: the columns are none; expected file_name"),
        (b"file_name;text\na.png;x\n", r"line 1: the columns are file_name;text; .* commas between"),
        (b"image,text\na.png,x\n", "line 1: the columns are image, text; expected file_name"),
        (b"file_name,text,text\na.png,x,y\n", "line 1: .* each once"),
        (b"file_name,text\na.png,x,y\n", "line 2: has 3 cells; expected 2"),
        (b"file_name,text\na.png,x\n\n,y\n", "line 4: file_name is None"),
        (b"file_name,text\na.png,x\n./a.png,y\n", "line 3: names 'a.png' a second time"),
        (b'file_name,text\na.png,"x\n', "not valid CSV"),
        (b"file_name,text\na.png,\xe9\n", r"not UTF-8 text \(byte 21\)"),
    ],
)
def test_a_broken_csv_is_refused_with_its_line(content, message, tmp_path):
    draw(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(config(tmp_path))


def test_of_two_tables_one_is_read_and_both_are_named(tmp_path, caplog):
    plain(tmp_path, 1)
    table(tmp_path, {"file_name": "000.png", "text": "jsonl"})
    (tmp_path / "metadata.csv").write_text("file_name,text\n000.png,csv\n")
    assert [r.text for r in load_all(config(tmp_path)).records] == ["jsonl"]
    assert "holds metadata.jsonl and metadata.csv; the first is read" in caplog.text


def test_number_labels_are_in_number_order(tmp_path):
    plain(tmp_path, 2)
    table(tmp_path, {"file_name": "000.png", "label": 10}, {"file_name": "001.png", "label": 9})
    assert load_all(config(tmp_path)).classes == ["9", "10"]


def test_subfolders_are_classes(tmp_path):
    for name in ("red_fox", "sea-lion"):
        for i in range(8):
            draw(tmp_path / name / "more" / f"{i}.png", i)
    (tmp_path / "red_fox" / ".hidden.png").write_text("passed over")
    (tmp_path / "README.md").write_text("passed over")
    split = load(config(tmp_path))
    assert split.train.classes == ["red_fox", "sea-lion"]
    assert {r.text for r in split.train.records} == {"red fox", "sea lion"}
    assert {r.label for r in split.train.records} == {0, 1}
    assert len(split.train) + len(split.heldout) == 16
    assert len(split.heldout) >= 1
    assert split.compositional is None


def test_plain_images_in_memory_and_on_demand_agree(tmp_path):
    plain(tmp_path, 12)
    kept, demanded = load_all(config(tmp_path)), load_all(config(tmp_path, memory_limit=0))
    assert not hasattr(demanded, "pixels")
    assert torch.equal(kept.pictures(range(12)), demanded.pictures(range(12)))
    assert torch.equal(kept.picture(7), demanded.picture(7))
    assert kept.fingerprint == demanded.fingerprint
    assert [r.label for r in kept.records] == [None] * 12
    assert demanded.pictures([]).shape == (0, 3, 8, 8)
    assert load_source(config(tmp_path, channels=1)).train.picture(0).shape == (1, 8, 8)


def test_the_fingerprint_sees_contents_and_settings(tmp_path):
    plain(tmp_path, 2)
    before = load_all(config(tmp_path)).fingerprint
    assert load_all(config(tmp_path)).fingerprint == before
    assert load_all(config(tmp_path, background="black")).fingerprint != before
    draw(tmp_path / "001.png", 99)
    assert load_all(config(tmp_path)).fingerprint != before


def cut(path):
    """A picture whose file ends in the middle."""
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil(root, outside):
    """A hundred good pictures and one of every bad kind, listed in metadata.jsonl; returns the bad names."""
    plain(root, 100)
    draw(outside / "secret.png")
    (root / "link.png").symlink_to(outside / "secret.png")
    (root / "linked").symlink_to(outside)
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "text.png").write_text("no image")
    cut(root / "cut.png")
    Image.new("L", (300, 300)).save(root / "huge.png")
    bad = ["../o/secret.png", str(outside / "secret.png"), "link.png", "linked/secret.png", "loop.png", "text.png"]
    bad += ["cut.png", "huge.png", "absent.png", "nul\0.png", "n" * 300, "\ud800.png"]
    table(root, *({"file_name": name} for name in [*(f"{i:03d}.png" for i in range(100)), *bad]))
    return bad


@pytest.mark.parametrize("more", [{}, {"memory_limit": 0}])
def test_bad_pictures_are_named_counted_and_skipped(tmp_path, caplog, more):
    bad = spoil(tmp_path / "in", tmp_path / "o")
    with caplog.at_level(logging.WARNING, "ldm_kit.data"):
        pictures = load_all(config(tmp_path / "in", max_bad_share=0.2, pixel_limit=80_000, **more))
    assert len(pictures) == 100
    assert pictures.pictures([99])[0, 0, 0, 0] == 99
    for name in bad:
        assert f"skipped {name}: " in caplog.text
    assert f"skipped {len(bad)} of {100 + len(bad)}" in caplog.text


def test_too_many_bad_pictures_stop(tmp_path):
    spoil(tmp_path / "in", tmp_path / "o")
    with pytest.raises(UserError, match=r"11 of 112 .*data\.max_bad_share 0\.01 allows 1\), first .*; the log"):
        load_all(config(tmp_path / "in"))
    with pytest.raises(UserError, match=r"set data\.on_bad: skip"):
        load_all(config(tmp_path / "in", on_bad="raise"))


def test_one_bad_picture_is_allowed_unless_none_may_be(tmp_path):
    plain(tmp_path, 3)
    (tmp_path / "bad.png").touch()
    assert len(load_all(config(tmp_path))) == 3
    with pytest.raises(UserError, match="1 of 4"):
        load_all(config(tmp_path, max_bad_share=0))


def test_headers_alone_leave_broken_bodies_for_later(tmp_path):
    plain(tmp_path, 3)
    cut(tmp_path / "001.png")
    pictures = load_all(config(tmp_path, memory_limit=0, verify=False))
    assert len(pictures) == 3
    with pytest.raises(UserError, match=r"001\.png: broken or truncated"):
        pictures.picture(1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"file_name": "000.png"', "line 2: not valid JSON"),
        ("[1]", "line 2: holds a list"),
        ('{"text": "x"}', "line 2: file_name is None"),
        ('{"file_name": "000.png", "text": 3}', "line 2: text is 3"),
        ('{"file_name": "000.png", "label": [1]}', "line 2: label is"),
        ('{"file_name": "./001.png"}', "line 2: names '001.png' a second time"),
    ],
)
def test_faulty_metadata_is_named_by_its_line(tmp_path, row, message):
    plain(tmp_path, 2)
    table(tmp_path, {"file_name": "001.png"}, row)
    with pytest.raises(UserError, match=message):
        load_all(config(tmp_path))


def test_hopeless_folders_are_told_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="is no such folder"):
        load_all(config(tmp_path / "absent"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a folder"):
        load_all(config(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="offers no pictures"):
        load_all(config(tmp_path / "empty"))
    (tmp_path / "rotten").mkdir()
    (tmp_path / "rotten/a.png").touch()
    with pytest.raises(UserError, match=r"nothing usable: all 1 pictures are bad, first a\.png: an empty file"):
        load_all(config(tmp_path / "rotten"))
    draw(tmp_path / "mixed/class/a.png")
    draw(tmp_path / "mixed/b.png")
    with pytest.raises(UserError, match="mixes images at its top"):
        load_all(config(tmp_path / "mixed"))
    (tmp_path / "mixed/class/metadata.csv").touch()
    with pytest.raises(UserError, match=r"holds class/metadata\.csv but"):
        load_all(config(tmp_path / "mixed"))
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin/metadata.jsonl").write_bytes(b'{"file_name": "\xe9.png"}')
    with pytest.raises(UserError, match="not UTF-8"):
        load_all(config(tmp_path / "latin"))


def test_a_config_checks_itself(tmp_path):
    with pytest.raises(UserError, match="unknown colour 'whit'"):
        check(FolderConfig, {"path": str(tmp_path), "background": "whit"}, "here")
    assert FolderConfig.model_validate(config(tmp_path).model_dump(mode="json")) == config(tmp_path)
