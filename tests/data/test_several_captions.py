"""Several captions a picture: read from every source, drawn by seed and position alone, all of them equally often."""

import json

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.data import folder as folders
from ldm_kit.data.caption_rows import CaptionRows
from ldm_kit.data.code_batches import CodeBatches
from ldm_kit.data.folder import FolderConfig, load, load_all
from ldm_kit.data.parquet import ParquetConfig
from ldm_kit.data.records import Record, Records, others_of
from ldm_kit.data.sources import load as load_source
from ldm_kit.data.webdataset import WebDatasetConfig
from ldm_kit.methods.conditions import split_conditions
from ldm_kit.methods.train import open_method
from tests.data.archive_files import encoded, shard
from tests.training.helpers import TEXT, play, settings


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))


def folder(path, *texts, **columns):
    """A picture for each value of texts, whatever kind of value it is; columns hold a value for each picture."""
    path.mkdir(parents=True)
    rows = []
    for i, text in enumerate(texts):
        (path / f"{i:03d}.png").write_bytes(encoded(i))
        rows.append(
            {"file_name": f"{i:03d}.png", "text": text, **{name: column[i] for name, column in columns.items()}}
        )
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def captions(pictures):
    return [record.captions for record in pictures.records]


def everything(config):
    return captions(load_source(config).train)


def test_a_table_lists_several_captions(tmp_path):
    root = folder(tmp_path / "in", ["a cat", "", "a kitten"], "a dog", [], None, mood=[["x", "y"], "b", "c", "d"])
    pictures = load_all(FolderConfig(path=root, resolution=8))
    assert captions(pictures) == [("a cat", "a kitten"), ("a dog",), ("",), ("",)]
    assert pictures.records[0].fields == {"mood": '["x", "y"]'}
    assert [*pictures.records] == [*Records.of(pictures.records)]


@pytest.mark.parametrize("value", [3, {"a": 1}, ["a", 3], [["a"]]])
def test_other_values_are_no_captions(tmp_path, value):
    with pytest.raises(UserError, match=r"line 1: text is .*; expected a text, or a list of texts"):
        load_all(FolderConfig(path=folder(tmp_path / "in", value), resolution=8))


def test_a_large_folder_keeps_them_in_its_index(tmp_path, monkeypatch):
    root = folder(tmp_path / "in", ["a", "b"], "c", ["d", "e", "f"])
    monkeypatch.setattr(folders, "INDEXED", 1)
    for _ in range(2):  # the second time from the cache
        assert captions(load_all(FolderConfig(path=root, resolution=8))) == [("a", "b"), ("c",), ("d", "e", "f")]
    assert [*others_of(load_all(FolderConfig(path=root, resolution=8)).records)] == [("b",), (), ("e", "f")]


def test_lines_of_a_caption_file_are_captions_only_if_asked(tmp_path, monkeypatch):
    root = tmp_path / "in"
    root.mkdir()
    (root / "a.png").write_bytes(encoded(0))
    (root / "a.txt").write_text("one\n\n  two \r\nthree\n")
    whole = "one\n\n  two \nthree"
    for indexed in (1000, 1):
        monkeypatch.setattr(folders, "INDEXED", indexed)
        assert everything(FolderConfig(path=root, resolution=8)) == [(whole,)]
        assert everything(FolderConfig(path=root, resolution=8, caption_lines=True)) == [("one", "two", "three")]


def test_tar_shards_have_lists_or_lines(tmp_path):
    sample = ("0.png", encoded(0)), ("0.json", json.dumps({"text": ["a", "b"], "mood": "calm"}).encode())
    more = ("1.png", encoded(1)), ("1.txt", b"one\ntwo\n")
    path = shard(tmp_path / "a.tar", *sample, *more)
    config = {"path": path, "resolution": 8, "heldout": 0.0}
    assert everything(WebDatasetConfig(**config)) == [("a", "b"), ("one\ntwo",)]
    assert everything(WebDatasetConfig(**config, caption_lines=True)) == [("a", "b"), ("one", "two")]
    lines = WebDatasetConfig(**config, caption_lines=True, fields=("mood",))
    for _ in range(2):
        assert everything(lines) == [("a", "b"), ("one", "two")]
    assert [dict(record.fields) for record in load_source(lines).train.records] == [{"mood": "calm"}, {}]


def test_parquet_has_a_column_of_lists(tmp_path):
    arrow, tables = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"image": [encoded(i) for i in range(3)], "caption": [["a", "b"], [], ["c"]]}
    tables.write_table(arrow.table(columns), tmp_path / "a.parquet")
    assert everything(ParquetConfig(path=tmp_path / "a.parquet", resolution=8, heldout=0.0)) == [
        ("a", "b"),
        ("",),
        ("c",),
    ]


def test_a_picture_s_captions_are_drawn_equally_often_and_by_position_alone():
    rows = CaptionRows.of([1, 3, 2], seed=4)
    position = torch.arange(6000)
    index = position % 3
    drawn = rows.drawn(index, position)
    counts = torch.stack([(drawn[index == 1] == row).sum() for row in range(6)]).tolist()
    assert (counts[0], counts[4], counts[5]) == (0, 0, 0)
    assert min(counts[1:4]) > 2000 / 3 - 5 * (2000 * 2 / 9) ** 0.5, "five standard deviations"
    assert set(drawn[index == 0].tolist()) == {0}
    assert set(drawn[index == 2].tolist()) == {4, 5}
    shuffled = torch.randperm(6000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rows.drawn(index[shuffled], position[shuffled]), drawn[shuffled])
    assert not torch.equal(CaptionRows.of([1, 3, 2], seed=5).drawn(index, position), drawn)
    assert torch.equal(
        rows.take(torch.tensor([2, 0])).drawn(index % 2, position), rows.drawn(2 - index % 2 * 2, position)
    )


def test_codes_of_a_prior_have_a_caption_drawn_in_the_same_way():
    rows = CaptionRows.of([2, 1], seed=3)
    batches = CodeBatches(torch.zeros(2, 4), {"ids": torch.arange(3)[:, None]}, "print", rows)
    samples = [(position, position % 2) for position in range(40)]
    ids = batches.__getitems__(samples)["inputs"]["ids"][:, 0]
    position, index = torch.tensor(samples).unbind(1)
    assert torch.equal(ids, rows.drawn(index, position))
    assert {*ids.tolist()} == {0, 1, 2}


def text_run(tmp_path, root, *overrides):
    return settings(TEXT, root, tmp_path / "run", "data.resolution=16", *overrides)


def test_batches_hold_a_caption_of_the_picture(tmp_path):
    root = folder(tmp_path / "in", *([f"first {i}", f"second {i}"] if i % 2 else f"only {i}" for i in range(12)))
    method = open_method(text_run(tmp_path, root))
    tokens = method.conditions.conditioner
    seen = set()
    for position in range(240):
        batch = method.batches.__getitems__([(position, position % 12)])
        texts = method.data.train.records[position % 12].captions
        rows = [text for text in texts if torch.equal(tokens.prepare([text])["ids"], batch["inputs"]["ids"])]
        assert len(rows) == 1
        seen.add(rows[0])
    assert len(seen) == 6 + 12, "every caption"
    assert [*method.conditions.train] == [record.text for record in method.data.train.records]
    assert len({*method.conditions.all_train}) == 18


def test_other_captions_are_other_data(tmp_path):
    same = folder(tmp_path / "a", ["x", "y"], ["z"])
    other = folder(tmp_path / "b", ["x"], ["y", "z"])
    prints = [open_method(text_run(tmp_path, root)).batches.fingerprint for root in (same, other)]
    assert prints[0] != prints[1]


def test_held_out_pictures_have_their_first_caption(tmp_path):
    root = folder(tmp_path / "in", *[[f"first {i}", f"second {i}"] for i in range(20)])
    split = load(FolderConfig(path=root, resolution=8, heldout=0.3))
    config = text_run(tmp_path, root)
    train, heldout = split_conditions(config.condition, split)
    assert len(heldout) > 2
    assert all(text.startswith("first") for text in [*train, *heldout])


def _trained(root, run, until):
    return play(settings(TEXT, root, run, "train.checkpoint_every=3"), until=until)


def test_a_resumed_run_draws_the_same(tmp_path):
    root = folder(tmp_path / "in", *[[f"one {i}", f"two {i}", f"three {i}"] for i in range(16)])
    whole = play(settings(TEXT, root, tmp_path / "whole", "train.steps=6"))
    _trained(root, tmp_path / "part", until=3)
    rest = play(settings(TEXT, root, tmp_path / "part", "train.steps=6"), resume="latest")
    assert rest.weights == whole.weights
    assert rest.lines == whole.lines[3:]


def test_records_keep_several_captions():
    records = [Record("a", "x", None, {"mood": "m"}, ("y",)), Record("b", "", 1), Record("c", "z", None, {}, ("ü", ""))]
    packed = Records.of(records)
    assert [*packed] == records
    assert [*others_of(packed)] == [*others_of(records)] == [("y",), (), ("ü", "")]
    assert [*packed.take(torch.tensor([2, 0]).numpy())] == [records[2], records[0]]
