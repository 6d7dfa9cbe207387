"""Pictures that turn out to be broken in training: named, counted, replaced alike everywhere, with their conditions."""

import logging

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.data import latents
from ldm_kit.data.batches import PictureBatches
from ldm_kit.data.code_batches import PicturedLatents
from ldm_kit.data.folder import load
from ldm_kit.data.latents import LatentBatches
from tests.data.archive_files import encoded, noise, shard
from tests.data.test_folder import config, cut, draw
from tests.data.test_webdataset import config as tar_config
from tests.data.test_webdataset import load as load_tar

COUNT = 8
SHADES = torch.arange(COUNT)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))


def training_set(root, broken=(), **more):
    """Greys 0..7 on demand; those named are broken, with headers that are whole."""
    for i in range(COUNT):
        draw(root / f"{i}.png", i)
    for i in broken:
        cut(root / f"{i}.png")
    return opened(root, **more)


def opened(root, **more):
    return load(config(root, memory_limit=0, verify=False, heldout=0, max_bad_share=0.5, **more)).train


def greys(batch):
    return ((batch["x" if "x" in batch else "mean"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def batches(pictures, **more):
    return LatentBatches(latents.pixels(pictures), {"label": SHADES}, SHADES.tolist(), seed=0, **more)


def everything(source):
    return source.__getitems__([(i, i) for i in range(COUNT)])


def test_a_broken_picture_is_replaced_by_the_next_that_can_be_read(tmp_path, caplog):
    pictures = training_set(tmp_path, broken=(2, 6, 7))
    with caplog.at_level(logging.WARNING, "ldm_kit.data"):
        expected = [0, 1, 3, 3, 4, 5, 0, 0]
        assert greys(everything(PictureBatches(pictures, 0))) == expected
        assert greys(everything(PictureBatches(pictures, 0))) == expected
    assert caplog.text.count("skipped 2.png: broken or truncated") == 1
    other = opened(tmp_path)
    assert greys(PictureBatches(other, 0).__getitems__([(0, 6)])) == [0], "on another process, in another order"
    assert other.fingerprint == pictures.fingerprint


@pytest.mark.parametrize("in_memory", [True, False])
def test_conditions_are_those_of_the_picture_that_is_seen(tmp_path, monkeypatch, in_memory):
    if not in_memory:
        monkeypatch.setattr(latents, "PIXELS", 0)
    batch = everything(batches(training_set(tmp_path, broken=(2, 6))))
    assert greys(batch) == batch["inputs"]["label"].tolist() == [0, 1, 3, 3, 4, 5, 7, 7]


@pytest.mark.parametrize("in_memory", [True, False])
def test_cached_latents_remember_what_they_show(tmp_path, monkeypatch, in_memory):
    """The cache is read by a process that has never met the broken picture."""
    if not in_memory:
        monkeypatch.setattr(latents, "IN_MEMORY", 0)
    monkeypatch.setattr(latents, "SHARD", 3)

    def encode(x):
        return x[:, :1, :1, :1], torch.zeros(len(x), 1, 1, 1)

    for _ in range(2):
        pictures = training_set(tmp_path / "in", broken=(2, 6))
        cached = latents.cached(tmp_path / "latents", pictures, encode, "key", flip=False)
        batch = everything(LatentBatches(cached, {"label": SHADES}, [], seed=0))
        assert greys(batch) == batch["inputs"]["label"].tolist() == [0, 1, 3, 3, 4, 5, 7, 7]
    cut(tmp_path / "in" / "4.png")  # after its latents were cached
    both = everything(PicturedLatents(cached, pictures, seed=0))
    assert greys({"x": both["picture"]}) == greys(both) == [0, 1, 3, 3, 5, 5, 7, 7]


def test_too_many_broken_pictures_stop_the_run(tmp_path):
    with pytest.raises(UserError, match=r"5 of 8 pictures in .* are bad \(data.max_bad_share 0.5 allows 4\)"):
        everything(PictureBatches(training_set(tmp_path / "a", broken=range(5)), 0))
    with pytest.raises(UserError, match=r"bad picture in .*set data.on_bad: skip"):
        everything(PictureBatches(training_set(tmp_path / "b", broken=(1,), on_bad="raise"), 0))


def test_a_broken_picture_is_replaced_within_its_own_part(tmp_path):
    for part in ("train", "val"):
        for i in range(3):
            draw(tmp_path / part / f"{i}.png", 100 * (part == "val") + i)
    cut(tmp_path / "train" / "2.png")
    split = load(config(tmp_path, memory_limit=0, verify=False))
    assert split.train.pictures([2])[0, 0, 0, 0] == 0
    assert split.heldout.pictures([2])[0, 0, 0, 0] == 102


def test_broken_members_of_shards_are_replaced_too(tmp_path):
    shard(tmp_path / "0.tar", ("a.png", encoded(7)), ("b.png", noise(0)[:300]), ("c.png", encoded(9)))
    pictures = load_tar(tar_config(tmp_path, verify=False, heldout=0.0)).train
    assert pictures.pictures([0, 1, 2])[:, 0, 0, 0].tolist() == [7, 9, 9]
