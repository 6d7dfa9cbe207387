"""Frozen states are computed once under a key, and again if the file is damaged."""

import pytest
import torch

from ldm_kit.data.tensor_cache import cached, key_of


class Counted:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> dict[str, torch.Tensor]:
        self.times += 1
        return {"states": torch.arange(6.0).view(2, 3).T, "mask": torch.ones(2, dtype=torch.bool)}


def test_the_second_call_reads_what_the_first_one_made(tmp_path):
    make = Counted()
    first, second = cached(tmp_path, "a" * 64, make), cached(tmp_path, "a" * 64, make)
    assert make.times == 1
    assert all(torch.equal(first[name], second[name]) for name in ("states", "mask"))
    cached(tmp_path, "b" * 64, make)
    assert make.times == 2
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"] * 2


def test_a_damaged_file_is_remade(tmp_path):
    make = Counted()
    cached(tmp_path, "a" * 64, make)
    next(tmp_path.iterdir()).write_bytes(b"cut")
    assert torch.equal(cached(tmp_path, "a" * 64, make)["mask"], torch.ones(2, dtype=torch.bool))
    assert make.times == 2


def test_where_nothing_can_be_kept_the_tensors_are_computed_again(tmp_path, caplog):
    make = Counted()
    (tmp_path / "file").touch()
    for times in (1, 2):
        assert torch.equal(
            cached(tmp_path / "file" / "states", "a" * 64, make)["mask"], torch.ones(2, dtype=torch.bool)
        )
        assert make.times == times
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        f"cannot keep tensors in {tmp_path / 'file' / 'states'}"
    ] * 2


@pytest.mark.parametrize(
    "other", [("n", {"length": 9}, ["x"]), ("m", {"length": 8}, ["x"]), ("m", {"length": 9}, ["y"])]
)
def test_every_part_is_in_the_key(other):
    assert key_of(*other) != key_of("m", {"length": 9}, ["x"])
