"""Captions from templates: filled from caption, class and columns; refused, before any work, where a value lacks."""

import json

import pytest
from PIL import Image

from ldm_kit.config import UserError, check
from ldm_kit.data import folder as folders
from ldm_kit.data.digits import DigitsConfig
from ldm_kit.data.factors import known_factors
from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.joined import whole
from ldm_kit.data.parquet import ParquetConfig
from ldm_kit.data.shapes.dataset import ShapesConfig
from ldm_kit.data.sources import load
from ldm_kit.data.webdataset import WebDatasetConfig
from tests.data.archive_files import encoded, shard


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))


def folder(path, *rows):
    path.mkdir(parents=True, exist_ok=True)
    for i, _ in enumerate(rows):
        (path / f"{i}.png").write_bytes(encoded(i))
    lines = [json.dumps({"file_name": f"{i}.png", **row}) for i, row in enumerate(rows)]
    (path / "metadata.jsonl").write_text("\n".join(lines))
    return path


def captions(root, template, kind=FolderConfig, **more):
    split = load(kind(path=root, resolution=8, caption_template=template, **{"heldout": 0.0, **more}))
    return [record.captions for record in split.train.records]


def test_names_stand_for_values(tmp_path, monkeypatch):
    rows = {"text": "a cat", "label": "tom_cat", "the style": "oil", "year": 1}, {"text": "b", "label": "x", "year": 2}
    root = folder(tmp_path / "in", *rows)
    for indexed in (1000, 1):
        monkeypatch.setattr(folders, "INDEXED", indexed)
        assert captions(root, "a photo of {class}") == [("a photo of tom cat",), ("a photo of x",)]
        assert captions(root, "{caption}, {year}{year} {{x}}") == [("a cat, 11 {x}",), ("b, 22 {x}",)]
        assert captions(root, "always so") == [("always so",)] * 2
        with pytest.raises(UserError, match=r"but 1.png has no the style; expected a value for every picture"):
            captions(root, "{caption}, {the style}")


def test_class_folders_have_their_names(tmp_path):
    for name in ("red_fox", "owl"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "0.png").write_bytes(encoded(0))
    assert captions(tmp_path / "in", "a photo of a {class}") == [("a photo of a owl",), ("a photo of a red fox",)]


def test_each_of_several_captions_is_put_in(tmp_path):
    root = folder(tmp_path / "in", {"text": ["a", "b"], "style": "oil"}, {"text": "c", "style": "ink"})
    assert captions(root, "{caption}, {style}") == [("a, oil", "b, oil"), ("c, ink",)]
    assert captions(root, "in {style}") == [("in oil",), ("in ink",)]


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("a {", "is no template: "),
        ("a {}", "{} is no name"),
        ("a {0}", "{0} is no name"),
        ("a {class.__doc__}", "{class.__doc__} is no name"),
        ("a {class[0]}", "{class[0]} is no name"),
        ("a {class!r}", "{class} is no name"),
        ("a {class:>9}", "{class} is no name"),
        ("", "expected at least 1 item"),
    ],
)
def test_templates_with_anything_but_names_are_refused(template, fault, tmp_path):
    tree = {"source": "folder", "path": str(tmp_path), "caption_template": template}
    with pytest.raises(UserError) as error:
        check(FolderConfig, tree, "x.yaml")
    assert fault in str(error.value)
    assert "caption_template" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "tree", "known"),
    [
        (WebDatasetConfig, {"path": "x", "fields": ["mood"]}, "source webdataset has only caption, class, mood"),
        (ParquetConfig, {"path": "x"}, "source parquet has only caption, class"),
        (DigitsConfig, {}, "source digits has only caption, class"),
        (ShapesConfig, {}, "source shapes has only caption, class, floor, wall, object, scale, shape, orientation"),
    ],
)
def test_columns_that_a_source_has_not_are_refused_in_the_config(kind, tree, known):
    with pytest.raises(UserError) as error:
        check(kind, {**tree, "caption_template": "{caption} of {style}"}, "x.yaml")
    assert f"caption_template has {{style}}, but {known}" in str(error.value)


def test_a_missing_value_is_said_before_any_picture_is_read(tmp_path, monkeypatch):
    root = folder(tmp_path / "in", {"text": "a", "style": "oil"}, {"text": "b"}, {"text": "c"})
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("a picture was opened"))
    for indexed in (1000, 1):
        monkeypatch.setattr(folders, "INDEXED", indexed)
        with pytest.raises(UserError, match=r"but 1.png has no style, and 1 more like it; expected a value"):
            captions(root, "{caption}, {style}")
        with pytest.raises(UserError, match=r"but 0.png has no class, and 2 more like it"):
            captions(root, "{class}")


def two(path, first, second):
    return shard(path, ("0.png", encoded(0)), ("0.json", first), ("1.png", encoded(1)), ("1.json", second))


def test_archives_fill_templates_from_their_fields(tmp_path):
    values = json.dumps({"text": "a", "label": "b_c", "mood": "calm"}).encode()
    path = shard(
        tmp_path / "a.tar", ("0.png", encoded(0)), ("0.json", values), ("1.png", encoded(1)), ("1.json", values)
    )
    more = {"kind": WebDatasetConfig, "fields": ("mood",)}
    assert captions(path, "{mood} {class} {caption}", **more) == [("calm b c a",)] * 2
    path = shard(
        tmp_path / "b.tar", ("0.png", encoded(0)), ("0.json", values), ("1.png", encoded(1)), ("1.json", b"{}")
    )
    with pytest.raises(UserError, match=r"but b.tar/1.png has no mood"):
        captions(path, "{mood}", **more)


def test_rendered_pictures_have_their_factors():
    config = ShapesConfig(resolution=8, count=40, caption_template="{object} {shape}, {scale}; {class}")
    split = load(config)
    for pictures in (split.train, split.heldout, whole(split)):
        factors = known_factors(pictures)
        for i, record in enumerate(pictures.records):
            values = factors.values(i)
            assert record.text == f"{values['object']} {values['shape']}, {values['scale']}; {values['shape']}"
    assert split.train.fingerprint == load(ShapesConfig(resolution=8, count=40)).train.fingerprint


def test_runs_that_need_no_captions_need_no_values(tmp_path):
    root = folder(tmp_path / "in", {"text": "a"}, {"text": "b"})
    config = FolderConfig(path=root, resolution=8, heldout=0.0, caption_template="{style}")
    assert [record.text for record in load(config, captions=False).train.records] == ["a", "b"]
