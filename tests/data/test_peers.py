"""Several processes make caches together; here they are threads that exchange values at a barrier."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from PIL import Image

from ldm_kit.config import UserError
from ldm_kit.data import archives, folder, folder_check, latent_shards, latents, peers, tensor_cache, webdataset
from ldm_kit.data.folder import FolderConfig, load_all
from ldm_kit.data.images import InMemory, Record
from ldm_kit.data.webdataset import WebDatasetConfig
from tests.data.archive_files import encoded, shard


@dataclass
class Exchange:
    """What the members of a group share."""

    size: int
    timeout: float
    values: list = field(default_factory=list)

    def __post_init__(self):
        self.values, self.barrier = [None] * self.size, threading.Barrier(self.size, timeout=self.timeout)


@dataclass
class Member:
    rank: int
    exchange: Exchange

    @property
    def size(self):
        return self.exchange.size

    def gather(self, value):
        self.exchange.values[self.rank] = value
        self.exchange.barrier.wait()
        values = [*self.exchange.values]
        self.exchange.barrier.wait()
        return values


def together(function, hosts=(0, 0), timeout=600):
    """Call function(rank) in one thread for each of `hosts`, and return results or errors.

    A thread that waits for others more than `timeout` seconds raises a BrokenBarrierError.
    """
    world = Exchange(len(hosts), timeout)
    local = {host: Exchange(hosts.count(host), timeout) for host in hosts}

    def run(rank):
        host = hosts[rank]
        with peers.shared_by(Member(rank, world), Member(hosts[:rank].count(host), local[host])):
            try:
                return function(rank)
            except (UserError, OSError) as error:
                return error

    with ThreadPoolExecutor(len(hosts)) as pool:
        return list(pool.map(run, range(len(hosts))))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(latents, "SHARD", 4)
    monkeypatch.setattr(folder_check, "ROUND", 5)


def pictures(count=18):
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return InMemory([Record(f"{i}", "", None) for i in range(count)], [], pixels, "set")


def counting(seen):
    def encode(x):
        seen.extend(((x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist())
        return x, x

    return encode


def test_two_processes_encode_every_picture_once(tmp_path):
    seen = [[], []]
    made = together(
        lambda rank: latents.cached(tmp_path / "latents", pictures(), counting(seen[rank]), "k", flip=False)
    )
    assert sorted(seen[0] + seen[1]) == list(range(18))
    assert [len(share) for share in seen] == [4 + 4 + 2, 4 + 4]
    alone = latents.cached(tmp_path / "alone", pictures(), counting([]), "k", flip=False)
    assert all(torch.equal(one.mean, alone.mean) for one in made)


def test_machines_that_share_no_files_encode_what_they_lack(tmp_path):
    """Ranks 0 and 1 are on one machine, rank 2 on another."""
    seen = [[], [], []]

    def make(rank):
        return latents.cached(tmp_path / "ab"[rank // 2], pictures(), counting(seen[rank]), "k", flip=False)

    made = together(make, hosts=(0, 0, 1))
    assert sorted(seen[0] + seen[1]) == sorted(seen[2]) == list(range(18))
    assert all(torch.equal(one.mean, made[0].mean) for one in made)


def test_two_processes_check_every_shard_once(tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "IN_MEMORY", 0)
    latents.cached(tmp_path, pictures(), counting([]), "k", flip=False)
    (tmp_path / "verified.json").unlink()
    checked, checksum = [], latent_shards.streamed_checksum
    monkeypatch.setattr(latent_shards, "streamed_checksum", lambda path: (checked.append(path.name), checksum(path))[1])
    for _ in range(2):
        together(lambda rank: latents.cached(tmp_path, pictures(), counting([]), "k", flip=False))
        assert sorted(checked) == [f"latents-{i:05d}.safetensors" for i in range(5)]


def test_a_failure_is_every_processs_failure(tmp_path):
    def encode(x):
        if x.max() > -0.97:  # in the second process's shard
            raise UserError("picture 4 is odd")
        return x, x

    errors = together(lambda rank: latents.cached(tmp_path, pictures(8), encode, "k", flip=False))
    assert [str(error) for error in errors] == ["picture 4 is odd"] * 2


def test_two_processes_check_every_picture_of_a_folder_once(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for i in range(18):
        Image.new("L", (8, 8), i).save(tmp_path / "in" / f"{i:02d}.png")
    (tmp_path / "in" / "bad.png").write_text("no picture")
    names, check = [], folder._check
    monkeypatch.setattr(folder, "_check", lambda path, *more: (names.append(path.name), check(path, *more))[1])
    config = FolderConfig(path=tmp_path / "in", resolution=8, channels=1, memory_limit=0, max_bad_share=0.2)
    first, second = together(lambda rank: load_all(config))
    assert sorted(names) == [f"{i:02d}.png" for i in range(18)] + ["bad.png"]
    assert first.fingerprint == second.fingerprint
    assert list(first.records) == list(second.records)
    assert [first.picture(i)[0, 0, 0].item() for i in range(18)] == list(range(18))


def test_two_processes_index_every_archive_once(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for i in range(5):
        shard(tmp_path / "in" / f"{i}.tar", ("a.png", encoded(i)), ("b.png", encoded(i + 9)))
    scanned, scan = [], archives._scan
    monkeypatch.setattr(archives, "_scan", lambda path, *more: (scanned.append(path.name), scan(path, *more))[1])
    config = WebDatasetConfig(path=tmp_path / "in", resolution=8)
    first, second = together(lambda rank: webdataset.load(config))
    assert sorted(scanned) == [f"{i}.tar" for i in range(5)]
    assert first.train.fingerprint == second.train.fingerprint


def test_one_process_computes_tensors_and_all_read_them(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"x": torch.arange(3)}

    results = together(lambda rank: tensor_cache.cached(tmp_path, "key", compute))
    assert len(calls) == 1
    assert all(torch.equal(result["x"], torch.arange(3)) for result in results)
