import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm_kit.config import UserError
from ldm_kit.data import latent_shards
from ldm_kit.data import latents as cache
from ldm_kit.data.images import InMemory, Record, subset, to_unit
from ldm_kit.data.latents import LatentBatches, cached, fingerprint, pixels
from ldm_kit.data.tensor_store import StoredTable, _indexed
from ldm_kit.training.batches import BatchSplit, StepBatchSampler, loader

COUNT = 20
PIXELS = torch.randint(0, 256, (COUNT, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
PICTURES = InMemory([Record(str(i), "", None) for i in range(COUNT)], [], PIXELS, "print")
NET = nn.Conv2d(3, 4, 3, 2, 1).requires_grad_(False)
KEY = fingerprint(NET, PICTURES, True)


def encode(x):
    mean, logvar = NET(x).chunk(2, dim=1)
    return mean, logvar - 3


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 8)


def made(folder, key=KEY, flip=True, how=encode):
    return cached(folder, PICTURES, how, key, flip=flip, batch=3)


def refuse(x):
    raise AssertionError("nothing is left to encode")


def test_latents_are_those_of_the_picture_and_of_its_mirror_image(tmp_path):
    found = made(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"latents-0000{i}.safetensors" for i in range(3)]
    assert (len(found), found.shape, found.fingerprint) == (COUNT, (2, 4, 4), KEY)
    for view, x in enumerate([to_unit(PIXELS), to_unit(PIXELS.flip(3))]):
        mean, logvar = encode(x)
        torch.testing.assert_close(found.mean[:, view].float(), mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.logvar[:, view].float(), logvar, rtol=1e-3, atol=1e-3)
    assert found.mean.dtype == torch.float16
    again = made(tmp_path, how=refuse)
    assert torch.equal(again.mean, found.mean)
    assert torch.equal(again.logvar, found.logvar)


def test_without_flip_there_is_one_view(tmp_path):
    assert made(tmp_path, flip=False).mean.shape == (COUNT, 1, 2, 4, 4)


def test_the_fingerprint_is_of_all_that_latents_depend_on():
    other = nn.Conv2d(3, 4, 3, 2, 1)
    other.load_state_dict(NET.state_dict())
    assert fingerprint(other, PICTURES, True) == KEY
    with torch.no_grad():
        other.weight[0, 0, 0, 0] += 1e-6
    prints = {
        KEY,
        fingerprint(other, PICTURES, True),
        fingerprint(NET, PICTURES, False),
        fingerprint(NET, subset(PICTURES, range(COUNT - 1)), True),
        fingerprint(NET, PICTURES, True, '{"scaling_factor": 0.2}'),
        fingerprint(nn.BatchNorm2d(3), PICTURES, True),  # has a tensor without dimensions
    }
    assert len(prints) == 6


def test_a_stale_cache_is_refused_in_a_sentence(tmp_path):
    made(tmp_path)
    with pytest.raises(
        UserError, match=r"the latents in .* are stale: another autoencoder, other pictures or other pre"
    ):
        made(tmp_path, key="another")


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_cut_shard_is_told_in_a_sentence(tmp_path, keep):
    made(tmp_path)
    path = tmp_path / "latents-00001.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"latents-00001\.safetensors is damaged \(.*\); delete it and it is made anew"):
        made(tmp_path)
    path.unlink()
    assert len(made(tmp_path)) == COUNT


def test_any_flipped_bit_is_found(tmp_path):
    made(tmp_path)
    path = tmp_path / "latents-00002.safetensors"
    whole = path.read_bytes()
    for bit in torch.randint(len(whole) * 8, (60,), generator=torch.Generator().manual_seed(1)).tolist():
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"damaged|stale"):
            made(tmp_path)


def test_a_killed_fill_is_gone_on_with(tmp_path):
    whole = made(tmp_path)
    (tmp_path / "latents-00001.safetensors").unlink()
    (tmp_path / ".abc.tmp").write_text("half")
    seen = []

    def counting(x):
        seen.append(len(x))
        return encode(x)

    again = made(tmp_path, how=counting)
    assert sum(seen) == 2 * 8  # one shard, two views
    assert torch.equal(again.mean, whole.mean)


def test_two_that_fill_one_cache_do_no_harm(tmp_path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(made(tmp_path / "cache"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(found[0].mean, other.mean) for other in found)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_cache_that_cannot_be_written_is_told_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write the latents' cache .*: Not a directory"):
        made(tmp_path / "file" / "cache")


def test_a_batch_takes_the_view_of_its_position(tmp_path):
    found = made(tmp_path)
    batches = LatentBatches(found, {"ids": torch.arange(COUNT)[:, None]}, list(range(COUNT)), seed=4)
    places = [(position, position % COUNT) for position in range(50)]
    whole = batches.__getitems__(places)
    views = [
        int(not torch.equal(whole["mean"][i], found.mean[p % COUNT, 0].float())) for i, (p, _) in enumerate(places)
    ]
    assert 10 < sum(views) < 40
    for i, (place, view) in enumerate(zip(places, views, strict=True)):
        assert torch.equal(whole["mean"][i], found.mean[place[1], view].float())
        assert torch.equal(whole["logvar"][i], found.logvar[place[1], view].float())
        assert torch.equal(batches.__getitems__([place])["mean"][0], whole["mean"][i])
    assert whole["inputs"]["ids"][:, 0].tolist() == [index for _, index in places]
    assert (whole["mean"].dtype, whole["position"].tolist()) == (torch.float32, list(range(50)))


def test_batches_are_told_apart_by_their_conditions(tmp_path):
    found = made(tmp_path)
    assert LatentBatches(found, {}, ["a", "b"], 1).fingerprint != LatentBatches(found, {}, ["a", "c"], 1).fingerprint


def test_pixels_are_their_own_latents():
    found = pixels(PICTURES, batch=7)
    assert torch.equal(found.mean[:, 0], to_unit(PIXELS))
    assert found.logvar.shape == found.mean.shape
    assert found.logvar.unique().tolist() == [-30]
    assert found.fingerprint == "print"


def test_pixels_are_their_own_latents_in_both_views():
    plain, both = pixels(PICTURES), pixels(PICTURES, flip=True)
    assert torch.equal(both.mean[:, 0], plain.mean[:, 0])
    assert torch.equal(both.mean[:, 1], to_unit(PIXELS.flip(3)))
    assert both.logvar.shape == both.mean.shape
    assert plain.fingerprint != both.fingerprint


def both(folder, monkeypatch):
    """The same cache in memory and on disk."""
    held = made(folder)
    monkeypatch.setattr(cache, "IN_MEMORY", 0)
    return held, made(folder, how=refuse)


def test_a_large_cache_stays_on_disk_and_says_the_same(tmp_path, monkeypatch):
    held, stored = both(tmp_path, monkeypatch)
    assert isinstance(held.mean, torch.Tensor)
    assert isinstance(stored.mean, StoredTable)
    assert (len(stored), stored.shape, stored.fingerprint) == (len(held), held.shape, held.fingerprint)
    assert (stored.mean.shape, stored.mean.dtype) == (held.mean.shape, held.mean.dtype)
    rows = torch.tensor([19, 0, 7, 8, 15, 16, 7, -1])  # over all shards, one twice
    view = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    for place in [
        rows,
        (rows, view),
        (rows, 0),
        (rows, 1),
        slice(None, 9),
        slice(5, 18),
        (slice(None), 1),
        17,
        rows[:0],
    ]:
        for name in ("mean", "logvar"):
            assert torch.equal(getattr(stored, name)[place], getattr(held, name)[place]), place
    with pytest.raises(IndexError):
        stored.mean[torch.tensor([COUNT])]


@pytest.mark.parametrize("workers", [0, 1])
def test_training_on_a_large_cache_gives_the_same_batches(tmp_path, monkeypatch, workers):
    inputs = {"ids": torch.arange(COUNT)[:, None]}
    held, stored = (
        list(
            loader(
                LatentBatches(found, inputs, range(COUNT), seed=4),
                StepBatchSampler(BatchSplit(6), 4, COUNT, 2, 9),
                workers,
            )
        )
        for found in both(tmp_path, monkeypatch)
    )
    assert len(held) == 7
    for a, b in zip(held, stored, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in ("mean", "logvar", "position"))
        assert torch.equal(a["inputs"]["ids"], b["inputs"]["ids"])


def test_a_large_cache_is_checked_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    made(tmp_path)
    monkeypatch.setattr(cache, "IN_MEMORY", 0)
    checked, check = [], latent_shards.streamed_checksum
    monkeypatch.setattr(latent_shards, "streamed_checksum", lambda path: checked.append(path.name) or check(path))
    for _ in range(3):
        made(tmp_path, how=refuse)
    assert checked == [f"latents-0000{i}.safetensors" for i in range(3)]
    path = tmp_path / "latents-00001.safetensors"
    whole = path.read_bytes()
    for bit in (-1, -1000, -len(whole) * 4):  # in the tensors
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"latents-00001\.safetensors is damaged \(its checksum differs\)"):
            made(tmp_path, how=refuse)
    path.write_bytes(whole)
    (tmp_path / latent_shards.VERIFIED).write_text("[damaged")
    checked.clear()
    made(tmp_path, how=refuse)
    assert len(checked) == 3
    with pytest.raises(UserError, match="stale"):
        made(tmp_path, key="another")
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"latents-00001\.safetensors is damaged"):
        made(tmp_path, how=refuse)


def test_a_shard_that_is_cut_while_in_use_is_told(tmp_path, monkeypatch):
    _, stored = both(tmp_path, monkeypatch)
    path = tmp_path / "latents-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-200])
    assert stored.mean[torch.tensor([3])].shape == (1, 2, 2, 4, 4)
    with pytest.raises(UserError, match="has been cut since the run began"):
        stored.mean[torch.tensor([19])]


class OnDemand:
    """The pictures again, read one by one; `reads` has the index of each that was read."""

    records, classes, fingerprint = PICTURES.records, PICTURES.classes, PICTURES.fingerprint
    resolution, channels = PICTURES.resolution, PICTURES.channels

    def __init__(self):
        self.reads = []

    def __len__(self):
        return COUNT

    def pictures(self, indices):
        self.reads += [int(index) for index in indices]
        return PICTURES.pictures(indices)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("limit", ["bytes", "pictures"])
def test_large_sets_of_pixels_are_decoded_when_asked_for(monkeypatch, flip, limit):
    pictures = OnDemand()
    held = pixels(pictures, flip=flip, batch=3, most=COUNT)
    assert pictures.reads == [*range(COUNT)], "a small set is decoded once"
    if limit == "bytes":
        monkeypatch.setattr(cache, "PIXELS", 100)
    lazy = pixels(pictures, flip=flip, most=COUNT - 1 if limit == "pictures" else None)
    assert (lazy.mean.shape, lazy.fingerprint, len(lazy)) == (held.mean.shape, held.fingerprint, COUNT)
    inputs = {"ids": torch.arange(COUNT)}
    places = [(position, position * 7 % COUNT) for position in range(30)]
    a, b = (LatentBatches(found, inputs, range(COUNT), 3).__getitems__(places) for found in (held, lazy))
    assert torch.equal(a["mean"], b["mean"])
    assert torch.equal(a["logvar"], b["logvar"])
    assert pictures.reads[COUNT:] == [index for _, index in places]


class Many:
    """A million pictures that nobody looks at."""

    def __len__(self):
        return 1_000_000


def resident():
    """Bytes of this process in memory, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat_over_a_million_records(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 16384)
    monkeypatch.setattr(cache, "IN_MEMORY", 64 * 2**20)
    count = len(Many())
    for shard, start in enumerate(range(0, count, 16384)):
        number = torch.arange(start, min(start + 16384, count))
        digits = torch.stack([number // 1000, number % 1000], dim=1).half()  # exact: below 2048
        mean = digits.view(-1, 1, 2, 1, 1).expand(-1, 1, 2, 4, 8).contiguous()  # 128 bytes each
        latent_shards.write_shard(tmp_path / f"latents-{shard:05d}.safetensors", (mean, -mean), "key")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 240 * 2**20
    ids = torch.arange(count)
    order = StepBatchSampler(BatchSplit(64), 0, count, 0, 2500)
    next(iter(order))  # the permutation is there
    before = resident()
    batches = LatentBatches(cached(tmp_path, Many(), refuse, "key", flip=False), {"ids": ids}, range(count), seed=0)
    for step, places in enumerate(order):
        batch = batches.__getitems__(places)
        if step % 100 == 0:
            thousands, rest = batch["mean"][:, :, 3, 7].long().unbind(1)
            assert torch.equal(thousands * 1000 + rest, batch["inputs"]["ids"])
    assert resident() - before < 32 * 2**20


def test_an_index_costs_its_rows_and_not_the_table():
    """Of a table so long that a number for each row would fill any memory."""

    def read(rows):
        return torch.tensor(rows).view(-1, 1)

    count = 10**15
    assert _indexed(read, count, torch.tensor([3, -1]))[:, 0].tolist() == [3, count - 1]
    assert _indexed(read, count, slice(-2, None))[:, 0].tolist() == [count - 2, count - 1]
    assert _indexed(read, count, 7).tolist() == [7]
    assert _indexed(read, 3, torch.tensor([True, False, True]))[:, 0].tolist() == [0, 2]
    for outside in (torch.tensor([0, count]), -count - 1):
        with pytest.raises(IndexError, match="is outside a table"):
            _indexed(read, count, outside)


def test_one_view_of_one_picture_is_indexed_as_in_a_tensor():
    table = pixels(PICTURES, flip=True).mean
    whole = table[:]
    for view in (0, 1, -1):
        assert torch.equal(table[5, view], whole[5, view])
        assert torch.equal(table[torch.tensor(5), view], whole[5, view])
