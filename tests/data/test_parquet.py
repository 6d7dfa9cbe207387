import json
import logging
import sys

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.data import parquet
from ldm_kit.data.batches import PictureBatches
from ldm_kit.data.parquet import ParquetConfig, load
from ldm_kit.data.sources import load as load_source
from ldm_kit.training.batches import BatchSplit, StepBatchSampler, loader
from tests.data.archive_files import encoded, noise

arrow = pytest.importorskip("pyarrow")
tables = pytest.importorskip("pyarrow.parquet")
NAMES = {"info": {"features": {"label": {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}}}}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    parquet._read_row_group.cache_clear()


def write(path, columns, group=4, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = arrow.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": metadata})
    tables.write_table(table, path, row_group_size=group)
    return path


def struct(*contents, path="/etc/passwd"):
    """A column as `datasets` writes it; the paths lead where nobody may look."""
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    return arrow.array([{"bytes": c, "path": path} for c in contents], kind)


def greys(path, first, count, **more):
    numbers = range(first, first + count)
    columns = {"text": [f"grey {i}" for i in numbers], "label": [i % 3 for i in numbers]}
    return write(path, {"image": struct(*(encoded(i) for i in numbers)), **columns}, **more)


def everything(path, **more):
    return load(ParquetConfig(path=path, resolution=8, heldout=0.0, **more)).train


def test_rows_give_pictures_captions_and_classes(tmp_path):
    greys(tmp_path / "in" / "a.parquet", 0, 10)
    greys(tmp_path / "in" / "b.parquet", 10, 3)
    pictures = everything(tmp_path / "in")
    assert [r.name for r in pictures.records][9:11] == ["a.parquet/00000009", "b.parquet/00000000"]
    assert [r.text for r in pictures.records] == [f"grey {i}" for i in range(13)]
    assert pictures.classes == ["0", "1", "2"]
    assert [r.label for r in pictures.records] == [i % 3 for i in range(13)]
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0)).tolist()
    assert pictures.pictures(order)[:, 0, 0, 0].tolist() == order


def test_columns_may_have_other_names_and_types(tmp_path):
    more = {"words": ["one", None], "kind": ["x", "y"], "mood": [{"calm": 1}, None], "text": ["not", "these"]}
    write(tmp_path / "a.parquet", {"img": [encoded(3), encoded(4)], **more})
    names = {"image_column": "img", "text_column": "words", "label_column": "kind"}
    pictures = everything(tmp_path / "a.parquet", **names, fields=("mood",))
    assert [(r.text, r.label) for r in pictures.records] == [("one", 0), ("", 1)]
    assert [dict(r.fields) for r in pictures.records] == [{"mood": '{"calm": 1}'}, {"mood": "null"}]
    assert pictures.classes == ["x", "y"]
    assert pictures.pictures([0, 1])[:, 0, 0, 0].tolist() == [3, 4]
    write(tmp_path / "b.parquet", {"image": arrow.array([encoded(5)], arrow.large_binary())})
    plain = everything(tmp_path / "b.parquet")
    assert [(r.text, r.label) for r in plain.records] == [("", None)]


def test_class_names_come_from_the_metadata_of_data_sets(tmp_path):
    path = greys(tmp_path / "a.parquet", 0, 3, metadata=json.dumps(NAMES))
    assert everything(path).classes == ["cat", "dog", "owl"]
    for strange in ("{", "[]", '{"info": 3}', "[" * 99_999):
        assert everything(greys(path, 0, 3, metadata=strange)).classes == ["0", "1", "2"]
    labels = [2, -1, 7]
    write(path, {"image": [encoded(i) for i in range(3)], "label": labels}, metadata=json.dumps(NAMES))
    assert [r.label for r in everything(path).records] == [1, None, 0]  # 7 has no name


@pytest.mark.parametrize("workers", [0, 1])
def test_training_walks_it_in_the_addressed_order(tmp_path, workers):
    greys(tmp_path / "a.parquet", 0, 20)
    data = PictureBatches(everything(tmp_path / "a.parquet"), seed=5)
    order = StepBatchSampler(BatchSplit(4), 5, 20, 3, 9)
    seen = [
        pair
        for batch in loader(data, order, workers)
        for pair in zip(
            batch["position"].tolist(), ((batch["x"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist(), strict=True
        )
    ]
    assert seen == [place for batch in order for place in batch]


def test_one_row_group_is_kept_at_a_time_and_read_once_a_batch(tmp_path, monkeypatch):
    greys(tmp_path / "a.parquet", 0, 40, group=4)
    pictures = everything(tmp_path / "a.parquet")
    assert pictures.pictures([39, 0, 20, 38, 1, 21])[:, 0, 0, 0].tolist() == [39, 0, 20, 38, 1, 21]
    assert parquet._read_row_group.cache_info()[:2] == (3, 3)  # hits, misses: three groups for six pictures
    assert parquet._read_row_group.cache_info().currsize == 1


def test_only_the_bytes_are_read(tmp_path, monkeypatch):
    """A path inside the table leads to a picture, which must never be opened."""
    (tmp_path / "secret.png").write_bytes(encoded(99))
    path = str(tmp_path / "secret.png")
    image = struct(*(encoded(i) for i in range(10)), None, b"", path=path)
    write(tmp_path / "a.parquet", {"image": image})
    opened = []
    monkeypatch.setattr("builtins.open", lambda *a, **k: opened.append(a))
    pictures = everything(tmp_path / "a.parquet", max_bad_share=0.3)
    assert len(pictures) == 10
    assert 99 not in pictures.pictures(range(10))
    assert not opened
    columns = parquet._read_row_group(tmp_path / "a.parquet", (0, 0), 0, "image").type
    assert [columns.field(i).name for i in range(columns.num_fields)] == ["bytes"]


def test_bad_pictures_are_named_counted_and_skipped(tmp_path, caplog):
    bad = {b"no picture": "not an image", noise(0)[:300]: "broken or truncated", b"": "holds no bytes"}
    write(tmp_path / "a.parquet", {"image": [encoded(i) for i in range(30)] + list(bad)})
    with caplog.at_level(logging.WARNING, "ldm_kit.data"):
        assert len(everything(tmp_path / "a.parquet", max_bad_share=0.1)) == 30
    for number, reason in enumerate(bad.values(), 30):
        assert f"a.parquet/{number:08d}: {reason}" in caplog.text
    with pytest.raises(UserError, match=r"3 of 33 .* allows 1\)"):
        everything(tmp_path / "a.parquet")
    pictures = everything(tmp_path / "a.parquet", verify=False, max_bad_share=0.1)
    assert pictures.picture(30)[0, 0, 0] == 0, "the next that can be read"
    assert "skipped a.parquet/00000031: broken" in caplog.text


def test_a_changed_file_is_read_anew(tmp_path):
    path = greys(tmp_path / "a.parquet", 0, 4)
    before = everything(path)
    assert before.picture(0)[0, 0, 0] == 0
    greys(path, 50, 4)
    after = everything(path)
    assert after.picture(0)[0, 0, 0] == 50
    assert after.fingerprint != before.fingerprint


def test_wrong_tables_are_told_in_a_sentence(tmp_path, caplog, monkeypatch):
    path = greys(tmp_path / "a.parquet", 0, 4)
    with pytest.raises(UserError, match="has no column 'img'; name another image_column of image, text, label"):
        everything(path, image_column="img")
    with pytest.raises(UserError, match="column 'text' is string; expected bytes, or a struct with bytes"):
        everything(path, image_column="text")
    with pytest.raises(UserError, match="has no column 'mood'; its columns are image, text, label"):
        everything(path, fields=("mood",))
    write(tmp_path / "b.parquet", {"image": [encoded()] * 3, "text": [1, 2, 3]})
    with pytest.raises(UserError, match=r"all 3 pictures are bad, first .*00000000: its text is 1; expected a text"):
        everything(tmp_path / "b.parquet")
    whole = path.read_bytes()
    for wrong in (b"", b"no table", whole[: len(whole) // 2], whole[:100] + b"\0" * 400 + whole[500:]):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=r"a\.parquet is no parquet file, or damaged|pictures are bad"):
            everything(path)
    path.write_bytes(whole)
    monkeypatch.setattr(parquet, "GROUP_SLOW", 10)
    assert len(everything(path)) == 4
    assert "each picture costs reading a row group" in caplog.text
    monkeypatch.setattr(parquet, "GROUP_LIMIT", 10)
    path.touch()
    with pytest.raises(UserError, match="row_group_size=100"):
        everything(path)


def test_without_pyarrow_the_line_to_install_it_is_said(tmp_path, monkeypatch):
    path = greys(tmp_path / "a.parquet", 0, 4)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"needs the package pyarrow; pip install 'ldm_kit\[parquet\]'"):
        load_source(ParquetConfig(path=path))
