import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.data.images import InMemory, Record, heldout_split, split_off, subset, to_bytes, to_unit, unit_hash


def pictures(n=12, labels=None):
    records = [Record(f"{i}.png", "", labels[i] if labels else None) for i in range(n)]
    return InMemory(records, ["a", "b"], torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 4, 4), "f")


def test_bytes_survive_the_unit_interval():
    every = torch.arange(256, dtype=torch.uint8)
    assert to_unit(every).dtype == torch.float32
    assert (to_unit(every).min(), to_unit(every).max()) == (-1, 1)
    assert torch.equal(to_bytes(to_unit(every)), every)


def test_floats_outside_are_clamped():
    x = torch.tensor([-3.0, 3.0, float("nan"), float("inf")])
    assert to_bytes(x).tolist() == [0, 255, 0, 255]
    assert to_bytes(torch.zeros(2, dtype=torch.bfloat16)).tolist() == [128, 128]


def test_a_subset_is_a_view_with_its_own_fingerprint():
    whole = pictures()
    part = subset(subset(whole, [5, 3, 9]), [2, 0])
    assert [r.name for r in part.records] == ["9.png", "5.png"]
    assert part.pictures([1, 0]).shape == (2, 3, 4, 4)
    assert part.pictures([1, 0])[:, 0, 0, 0].tolist() == [5, 9]
    assert part.picture(0)[0, 0, 0] == 9
    assert (len(part), part.resolution, part.channels, part.classes) == (2, 4, 3, ["a", "b"])
    prints = {whole.fingerprint, part.fingerprint, subset(whole, [5, 9]).fingerprint, subset(whole, [9, 5]).fingerprint}
    assert len(prints) == 4
    assert subset(whole, [9, 5]).fingerprint == subset(whole, [9, 5]).fingerprint


@pytest.mark.parametrize("index", [-1, 12])
def test_a_subset_refuses_indices_outside(index):
    with pytest.raises(IndexError, match=r"outside 0\.\.11"):
        subset(pictures(), [index])


def test_nothing_of_nothing():
    assert len(subset(pictures(), [])) == 0
    assert subset(pictures(), []).pictures([]).shape == (0, 3, 4, 4)


def test_the_heldout_side_depends_on_the_name_alone():
    records = [Record(f"{i}", "", None) for i in range(1000)]
    kept, held = split_off(records, 0.1)
    assert sorted(kept + held) == list(range(1000))
    assert 60 < len(held) < 140
    names = {records[i].name for i in held}
    turned = [*records[::-1], Record("new", "", None)]
    assert {turned[i].name for i in split_off(turned, 0.1)[1]} - {"new"} == names


def test_small_sets_hold_out_one_and_tiny_ones_none():
    assert len(split_off(pictures(11).records, 1e-9)[1]) == 1
    assert split_off(pictures(10).records, 1e-9)[1] == []
    assert split_off(pictures(11).records, 0)[1] == []


def test_every_class_stays_in_training():
    labels = [0] * 11 + [1]
    kept, held = split_off(pictures(12, labels).records, 0.999999)
    assert {labels[i] for i in kept} == {0, 1}
    assert len(held) == 10


def test_unit_hash_is_the_same_for_ever():
    assert unit_hash("a", "b") == pytest.approx(0.404352, abs=1e-6)
    assert unit_hash("a", "b") != unit_hash("b", "a")


def test_a_split_that_leaves_nothing_to_train_on_is_refused():
    one = InMemory([Record("a", "", None)], [], torch.zeros(1, 3, 2, 2, dtype=torch.uint8), "f")
    assert [len(pictures) for pictures in heldout_split(one, 0.0, "here")[:2]] == [1, 0]
    with pytest.raises(UserError, match=r"^all 1 pictures in here are held out; lower data\.heldout$"):
        heldout_split(one, 1.0, "here")
