import itertools

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.data.batches import PictureBatches
from ldm_kit.data.images import InMemory, Record
from ldm_kit.training.batches import BatchSplit, StepBatchSampler, epoch_permutation, loader, sample_index

SEED, COUNT = 5, 24


def batches(world=1, rank=0, micro=None, start=0, stop=9, global_batch=8):
    return StepBatchSampler(BatchSplit.of(global_batch, micro, world, rank), SEED, COUNT, start, stop)


def steps(source):
    """Places of each step, micro-batches joined."""
    parts = list(source)
    size = source.split.accumulation
    return [list(itertools.chain(*parts[i : i + size])) for i in range(0, len(parts), size)]


def dataset(count=COUNT):
    pixels = torch.arange(count * 3 * 16).view(count, 3, 4, 4).to(torch.uint8)
    return PictureBatches(InMemory([Record(str(i), "", None) for i in range(count)], [], pixels, "f"), SEED, True)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_ranks_together_see_the_one_process_batch(world, parts):
    shares = [steps(batches(world, rank, 8 // world // parts)) for rank in range(world)]
    for whole, *mine in zip(steps(batches()), *shares, strict=True):
        assert sorted(itertools.chain(*mine)) == whole
        assert {len(part) for part in mine} == {8 // world}
    assert len(list(batches(world, 0, 8 // world // parts))) == len(batches(world, 0, 8 // world // parts))


@pytest.mark.parametrize("first", range(9))
def test_a_start_at_any_step_continues_the_sequence(first):
    assert steps(batches(start=first)) == steps(batches())[first:]


def test_epochs_are_permutations_each_its_own():
    epochs = [[sample_index(SEED, p, COUNT) for p in range(e * COUNT, (e + 1) * COUNT)] for e in range(4)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert not torch.equal(epoch_permutation(1, 0, COUNT), epoch_permutation(2, 0, COUNT))


def test_a_batch_larger_than_the_set_is_several_epochs():
    (places,) = StepBatchSampler(BatchSplit.of(60, None, 1, 0), SEED, COUNT, 0, 1)
    assert sorted(index for _, index in places[:48]) == sorted(2 * list(range(COUNT)))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((8, None, 3, 0), "train.batch_size 8 cannot be shared evenly by 3 processes"),
        ((2, None, 4, 0), "train.batch_size 2 cannot be shared evenly by 4 processes"),
        ((10, 4, 1, 0), "train.micro_batch 4: 10 pictures a process do not split into 3 equal parts"),
    ],
)
def test_numbers_that_do_not_divide_are_told_in_a_sentence(arguments, sentence):
    with pytest.raises(UserError) as error:
        BatchSplit.of(*arguments)
    assert str(error.value) == sentence


def test_a_micro_batch_is_an_upper_bound():
    assert BatchSplit.of(12, 5, 1, 0).accumulation == 3
    assert BatchSplit.of(12, 100, 2, 1).accumulation == 1


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # ... more workers than this machine has cores
def test_workers_change_neither_batches_nor_the_global_random_state():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = [list(loader(dataset(), batches(stop=4), workers)) for workers in (0, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    for alone, helped in zip(*found, strict=True):
        assert torch.equal(alone["x"], helped["x"])
        assert torch.equal(alone["position"], helped["position"])


@pytest.mark.parametrize(
    ("batch", "world", "sizes"), [(8, 1, [8, 4, 2, 1]), (8, 2, [4, 2, 1]), (6, 1, [6, 3, 1]), (7, 1, [7, 1])]
)
def test_halving_keeps_the_batch_and_ends_at_one(batch, world, sizes):
    share, found = BatchSplit.of(batch, None, world, world - 1), []
    while share is not None:
        assert share == BatchSplit.of(batch, share.size, world, world - 1)  # what a config could have asked for
        found.append(share.size)
        share = share.halved()
    assert found == sizes
