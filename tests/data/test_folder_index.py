import logging
import os

import pytest
import torch
from PIL import Image

from ldm_kit.config import UserError
from ldm_kit.data import folder, folder_check
from ldm_kit.data.folder import FolderConfig, load, load_all


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folder, "INDEXED", 1)
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    for i in range(20):
        path = tmp_path / "in" / ("cat" if i % 2 else "a_dog") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), 10 * i).save(path)
    return tmp_path / "in"


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that are decoded, in any order."""
    names, decode = [], folder._decode
    monkeypatch.setattr(folder, "_decode", lambda path, config: (names.append(path.name), decode(path, config))[1])
    return names


def config(root, **more):
    return FolderConfig(path=root, resolution=8, channels=1, **{"memory_limit": 0, **more})


def test_a_second_start_decodes_nothing_and_yields_the_same(root, decoded):
    first = load_all(config(root))
    assert sorted(decoded) == [f"{i:02d}.png" for i in range(20)]
    decoded.clear()
    second = load_all(config(root))
    assert decoded == []
    assert second.fingerprint == first.fingerprint
    assert list(second.records) == list(first.records)
    assert list(second.classes) == ["a_dog", "cat"]
    assert [r.label for r in second.records] == [0] * 10 + [1] * 10
    assert {r.text for r in second.records} == {"a dog", "cat"}
    assert second.pictures([0, 19])[:, 0, 0, 0].tolist() == [0, 190]


def test_an_index_agrees_with_a_folder_read_at_once(root, monkeypatch):
    indexed, held = load(config(root, heldout=0.3)), load(config(root, heldout=0.3, memory_limit=2**30))
    monkeypatch.setattr(folder, "INDEXED", 1000)
    direct = load(config(root, heldout=0.3, memory_limit=2**30))
    for part in (indexed, held):
        assert [p.fingerprint for p in part[:2]] == [p.fingerprint for p in direct[:2]]
        assert list(part.heldout.records) == list(direct.heldout.records)
        assert torch.equal(part.train.pictures(range(5)), direct.train.pictures(range(5)))


def test_pictures_that_fit_in_memory_are_decoded_once(root, decoded):
    load_all(config(root, memory_limit=2**30))
    decoded.clear()
    pictures = load_all(config(root, memory_limit=2**30))
    assert pictures.pictures([3])[0, 0, 0, 0] == 60
    assert decoded == []


def test_what_changes_is_checked_again_and_nothing_else(root, decoded):
    before = load_all(config(root))
    decoded.clear()
    Image.new("L", (9, 9), 77).save(root / "cat" / "05.png")
    Image.new("L", (9, 9), 78).save(root / "cat" / "99.png")
    (root / "a_dog" / "02.png").unlink()
    after = load_all(config(root))
    assert sorted(decoded) == ["05.png", "99.png"]
    assert after.fingerprint != before.fingerprint
    assert after.fingerprint == fresh(root).fingerprint
    assert [r.name for r in after.records] == [r.name for r in fresh(root).records]
    assert after.pictures([11])[0, 0, 0, 0] == 77


def fresh(root):
    """Load a folder without its index."""
    for path in (root.parent / "cache" / "folders").iterdir():
        path.unlink()
    return load_all(config(root))


def test_a_changed_file_of_one_size_and_a_changed_caption_are_noticed(root, decoded):
    (root / "metadata.jsonl").write_text('{"file_name": "cat/01.png", "text": "one"}\n')
    path = root / "cat" / "01.png"
    before = load_all(config(root))
    decoded.clear()
    (root / "metadata.jsonl").write_text('{"file_name": "cat/01.png", "text": "two"}\n')
    assert [r.text for r in load_all(config(root)).records] == ["two"]
    assert decoded == []  # the picture is the same
    content = bytearray(path.read_bytes())
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    assert load_all(config(root)).fingerprint == before.fingerprint
    assert decoded == ["01.png"]


def test_a_stopped_start_goes_on(root, decoded, monkeypatch):
    monkeypatch.setattr(folder_check, "ROUND", 4)
    monkeypatch.setattr(folder_check, "KEEP_EVERY", -1.0)
    decode = folder._decode

    def stopping(path, settings):
        if path.name == "05.png":
            raise KeyboardInterrupt
        return decode(path, settings)

    monkeypatch.setattr(folder, "_decode", stopping)
    with pytest.raises(KeyboardInterrupt):
        load_all(config(root))
    monkeypatch.setattr(folder, "_decode", decode)
    decoded.clear()
    assert len(load_all(config(root))) == 20
    assert sorted(decoded) == ["05.png", "07.png", "09.png", *(f"{i}.png" for i in (11, 13, 15, 17, 19))]


def test_bad_pictures_are_named_at_every_start(root, caplog):
    (root / "cat" / "bad.png").write_text("no picture")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "ldm_kit.data"):
            assert len(load_all(config(root))) == 20
        assert "skipped cat/bad.png: not an image" in caplog.text
        assert "skipped 1 of 21" in caplog.text
    with pytest.raises(UserError, match=r"bad picture .*cat/bad\.png"):
        load_all(config(root, on_bad="raise"))


def test_a_damaged_index_is_made_again(root, cache, caplog):
    before = load_all(config(root)).fingerprint
    (path,) = (cache / "folders").iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "ldm_kit.data"):
        assert load_all(config(root)).fingerprint == before
    assert "is damaged (its checksum differs) and is made again" in caplog.text


def test_a_cache_that_cannot_be_written_costs_a_warning(root, cache, caplog):
    cache.mkdir()
    (cache / "folders").write_text("in the way")
    assert len(load_all(config(root))) == 20
    assert "cannot keep an index" in caplog.text
