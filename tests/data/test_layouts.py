"""Folders and shards as other tools lay them out: splits, kohya's repeats, caption files; what is taken for what."""

import json
import re
from collections import Counter

import pytest

from ldm_kit.config import UserError
from ldm_kit.data.folder import load, load_all
from ldm_kit.data.sources import load as load_source
from ldm_kit.data.splits import file_role, folder_role
from tests.data.archive_files import encoded, shard
from tests.data.test_folder import config, draw, table
from tests.data.test_webdataset import config as tar_config
from tests.data.test_webdataset import load as load_tar


def tree(root, **texts):
    """Pictures by path without .png, and the caption beside each, None for none."""
    for i, (name, text) in enumerate(texts.items()):
        draw(root / f"{name}.png", i)
        if text is not None:
            (root / f"{name}.txt").write_text(text, encoding="utf-8")
    return root


def several(*folders, count=2):
    return {f"{folder}/{i}": None for folder in folders for i in range(count)}


def seen(pictures):
    return [(record.name, record.text, None if record.label is None else pictures.classes[record.label])
            for record in pictures.records]  # fmt: skip


@pytest.mark.parametrize("held", ["test", "val", "valid", "Validation", "val2017", "test_set"])
@pytest.mark.parametrize("inside", ["{part}/{name}", "images/{part}/{name}", "{name}/{part}"])
def test_split_folders_hold_out_their_own_pictures(tmp_path, held, inside):
    folders = [inside.format(part=part, name=name) for part in ("train", held) for name in ("cat", "dog")]
    split = load(config(tree(tmp_path, **several(*folders))))
    assert split.train.classes == split.heldout.classes == ["cat", "dog"]
    for pictures, part in ((split.train, "train"), (split.heldout, held)):
        assert len(pictures) == 4
        for name, text, label in seen(pictures):
            assert part in name.split("/")
            assert label in name.split("/")
            assert text == label


def test_with_val_and_test_the_test_pictures_are_left_out(tmp_path, caplog):
    split = load(config(tree(tmp_path, **several("train/cat", "train/dog", "val/cat", "test/dog"))))
    assert [name for name, *_ in seen(split.heldout)] == ["val/cat/0.png", "val/cat/1.png"]
    assert len(split.train) == 4
    assert "train is trained on, val held out and test left out" in caplog.text


def test_splits_without_classes_and_of_unknown_classes(tmp_path, caplog):
    split = load(config(tree(tmp_path / "a", **several("train", "test"))))
    assert [*map(len, split[:2]), split.train.classes] == [2, 2, []]
    split = load(config(tree(tmp_path / "b", **several("train/cat", "test/cat", "test/owl"))))
    assert split.train.classes == ["cat"]
    assert {label for *_, label in seen(split.heldout)} == {"cat"}
    assert "2 of 4 held-out pictures" in caplog.text
    split = load(config(tree(tmp_path / "c", **several("train/cat", count=12), **several("test")), heldout=0.2))
    assert all(name.startswith("train/") for part in split[:2] for name, *_ in seen(part))
    assert len(split.heldout) > 0, "pictures without the labels that are trained on are of no use"


def test_metadata_names_splits_too(tmp_path):
    tree(tmp_path / "top", **several("train", "test"))
    names = [f"{part}/{i}.png" for part in ("train", "test") for i in range(2)]
    table(tmp_path / "top", *({"file_name": name, "text": name} for name in names))
    inner = tree(tmp_path / "inner", **several("train", "test"))
    for part in ("train", "test"):
        table(inner / part, *({"file_name": f"{i}.png", "text": f"{part}/{i}.png"} for i in range(2)))
    for root in (tmp_path / "top", inner):
        split = load(config(root))
        assert [seen(part) for part in split[:2]] == [
            [(f"{part}/{i}.png", f"{part}/{i}.png", None) for i in range(2)] for part in ("train", "test")
        ]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train", "test", "cat"), "holds splits (test, train) beside others (cat); move those into a split"),
        (("val", "test"), "holds test and val pictures, but none named train; say data.layout: classes"),
    ],
)
def test_unclear_splits_are_named_with_the_way_out(tmp_path, folders, message):
    root = tree(tmp_path, **several(*folders))
    with pytest.raises(UserError, match=re.escape(message)):
        load(config(root))
    assert load(config(root, layout="classes")).train.classes == sorted(folders)


def test_one_class_may_be_called_train(tmp_path):
    assert load(config(tree(tmp_path, **several("train", "car")))).train.classes == ["car", "train"]


def test_classes_below_a_common_folder(tmp_path):
    assert load_all(config(tree(tmp_path / "a", **several("set/cat", "set/dog")))).classes == ["cat", "dog"]
    assert seen(load_all(config(tree(tmp_path / "b", **several("images")))))[0] == ("images/0.png", "", None)
    assert load_all(config(tree(tmp_path / "c", **several("a/b", "c/d")), layout="plain")).classes == []


def test_deeper_folders_that_mean_nothing_are_said(tmp_path, caplog):
    root = tree(tmp_path, **several("animal/cat", "animal/dog", "car/bus", "car/van"))
    assert load_all(config(root)).classes == ["animal", "car"]
    assert "the classes are the folders animal, car; folders within them, such as animal/cat, mean" in caplog.text


def test_captions_beside_pictures_are_read(tmp_path, caplog):
    (tmp_path / "json").mkdir()
    draw(tmp_path / "json" / "a.png")
    (tmp_path / "json" / "a.json").write_text(json.dumps({"caption": "from json", "label": 3}))
    assert seen(load_all(config(tmp_path / "json"))) == [("a.png", "from json", "3")]
    plain = tree(tmp_path / "plain", a="\ufeffa ball\n", b=None)
    assert [text for _, text, _ in seen(load_all(config(plain)))] == ["a ball", ""]
    assert "1 of 2 pictures have no caption file beside them" in caplog.text
    classes = tree(tmp_path / "classes", **{"red_fox/0": "a fox at night", "red_fox/1": None, "owl/0": None})
    assert seen(load_all(config(classes))) == [
        ("owl/0.png", "owl", "owl"),
        ("red_fox/0.png", "a fox at night", "red_fox"),
        ("red_fox/1.png", "red fox", "red_fox"),
    ]
    assert {text for _, text, _ in seen(load_all(config(classes, captions=False)))} == {"owl", "red fox"}


def test_captions_that_lie_elsewhere_are_said(tmp_path, caplog):
    root = tree(tmp_path, **several("images"))
    (root / "captions").mkdir()
    (root / "captions" / "0.txt").write_text("a ball")
    load_all(config(root))
    assert "1 captions such as captions/0.txt lie beside no picture of their name" in caplog.text


def test_a_caption_without_its_picture_is_counted_and_a_licence_is_not(tmp_path, caplog):
    root = tree(tmp_path / "in", a="a ball", b="a box")
    (root / "lonely.txt").write_text("a cone")
    load_all(config(root))
    assert "1 captions such as lonely.txt lie beside no picture of their name" in caplog.text
    caplog.clear()
    plain = tree(tmp_path / "plain", a=None)
    (plain / "LICENSE.txt").write_text("do as you like")
    load_all(config(plain))
    assert "lie beside no picture" not in caplog.text


def test_a_caption_that_cannot_be_read_is_a_bad_picture(tmp_path, caplog):
    root = tree(tmp_path, **{"a": "a ball", "b": "a box"})
    (root / "b.txt").write_bytes(b"\xe9")
    assert [name for name, *_ in seen(load_all(config(root)))] == ["a.png"]
    assert "skipped b.png: its caption file (.txt) cannot be read" in caplog.text


def test_a_run_without_captions_takes_the_picture_of_a_caption_that_cannot_be_read(tmp_path, caplog):
    """Kohya's repeats are those of the run with captions: which folders mean what does not depend on the run."""
    root = tree(tmp_path, **{"1_cat/a": "a ball", "2_cat/b": "a box", "2_cat/c": "a cone"})
    (root / "2_cat" / "b.txt").write_bytes(b"\xe9")
    settings = config(root, heldout=0)
    ignored = load_source(settings, captions=False).train
    assert [name for name, *_ in seen(ignored)] == ["1_cat/a.png"] + ["2_cat/b.png"] * 2 + ["2_cat/c.png"] * 2
    assert "2_cat/b.png: its caption file (.txt) cannot be read" in caplog.text
    assert "used without a caption" in caplog.text
    assert [name for name, *_ in seen(load_source(settings).train)] == ["1_cat/a.png"] + ["2_cat/c.png"] * 2
    assert seen(load_source(config(root, heldout=0, on_bad_caption="ignore")).train) == seen(ignored)


@pytest.mark.parametrize("first", [True, False])
def test_an_index_made_with_bad_captions_ignored_is_another(first, tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ldm_kit.data.folder.INDEXED", 1)
    root = tree(tmp_path / "in", a="a ball", b="a box")
    (root / "b.txt").write_bytes(b"\xe9")
    found = {
        captions: len(load_source(config(root, heldout=0), captions=captions).train) for captions in (first, not first)
    }
    assert found == {True: 1, False: 2}


def test_kohya_s_folders(tmp_path, caplog):
    root = tree(tmp_path, **{"30_sks dog/0": "a dog", "30_sks dog/1": None, "10_dog/2": "a grey dog"})
    split = load(config(root, heldout=0))
    assert Counter(seen(split.train)) == {
        ("30_sks dog/0.png", "a dog", "sks dog"): 3,
        ("30_sks dog/1.png", "sks dog", "sks dog"): 3,
        ("10_dog/2.png", "a grey dog", "dog"): 1,
    }, "three of one to one of the other, as 30 to 10"
    assert split.train.pictures([1, 2, 3])[:, 0, 0, 0].tolist() == [0, 0, 0]
    assert "read as kohya's, their numbers as repeats" in caplog.text
    assert len(load_all(config(root))) == 3


def test_a_numbered_list_of_classes_is_no_repeat(tmp_path):
    root = tree(tmp_path / "a", **several("1_cat", "2_dog"))
    assert load(config(root)).train.classes == ["1_cat", "2_dog"]
    assert load(config(root, layout="repeats")).train.classes == ["cat", "dog"]
    assert load(config(tree(tmp_path / "b", **several("10_cat", "10_dog")))).train.classes == ["cat", "dog"]
    with pytest.raises(UserError, match=r"data.layout is repeats, but .* holds the folder cat"):
        load(config(tree(tmp_path / "c", **several("cat", "1_dog")), layout="repeats"))


def test_shards_named_as_splits(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    for part in ("train", "validation", "test"):
        shard(tmp_path / "in" / f"set-{part}-00000.tar", *((f"{i}.png", encoded(i)) for i in range(3)))
    split = load_tar(tar_config(tmp_path / "in"))
    assert [{record.name.partition("/")[0] for record in pictures.records} for pictures in split[:2]] == [
        {"set-train-00000.tar"},
        {"set-validation-00000.tar"},
    ]
    assert split.heldout.pictures([2])[0, 0, 0, 0] == 2
    assert "validation" not in caplog.text
    assert "val held out and test left out" in caplog.text
    whole = load_tar(tar_config(tmp_path / "in", named_splits=False))
    assert len(whole.train) + len(whole.heldout) == 9
    shard(tmp_path / "in" / "more.tar", ("0.png", encoded()))
    with pytest.raises(UserError, match=r"beside others \(more.tar\).*say data.named_splits: false"):
        load_tar(tar_config(tmp_path / "in"))


def test_splits_within_a_shard(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    names = [f"x/{part}/{i}.png" for part in ("train", "val", "test") for i in range(2)]
    shard(tmp_path / "in" / "x.tar", *((name, encoded(i)) for i, name in enumerate(names)))
    split = load_tar(tar_config(tmp_path / "in"))
    assert [record.name for part in split[:2] for record in part.records] == [f"x.tar/{name}" for name in names[:4]]


def test_names_of_splits():
    assert [folder_role(name) for name in ("Train", "training_images", "images-val", "dev", "test1")] == [
        *("train", "train", "val", "val", "test")
    ]
    assert [folder_role(name) for name in ("trains", "latest", "testicle", "evaluation", "train station")] == [None] * 5
    assert [file_role(name) for name in ("data/train-00000-of-2.parquet", "imagenet-val.0.tar", "test/a.tar")] == [
        *("train", "val", "test")
    ]
    assert [file_role(name) for name in ("latest-0.tar", "a.tar", "contest.tar")] == [None] * 3
