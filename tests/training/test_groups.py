"""Batches of one group each: the same on any number of processes and after a resume, and every sample as often."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm_kit.training.batches import BatchSplit, StepBatchSampler
from ldm_kit.training.groups import GroupOrder, by_group, groups_of

SIZES, SEED, BATCH = (13, 3, 40, 1), 5, 8
GROUPS = [part.flip(0) * 2 for part in torch.arange(sum(SIZES)).split(SIZES)]  # indices that are not 0, 1, 2, ...


class Source:
    """A batch source in groups."""

    groups = GROUPS
    fingerprint = ""

    def __len__(self):
        return sum(SIZES)

    def __getitems__(self, samples, /):
        return samples


def sampler(world=1, rank=0, micro=None, start=0, stop=60, seed=SEED):
    return StepBatchSampler(
        BatchSplit.of(BATCH, micro, world, rank), seed, len(Source()), start, stop, groups_of(Source())
    )


def steps(source):
    """Samples of each step, micro-batches joined."""
    parts, size = list(source), source.split.accumulation
    return [list(itertools.chain(*parts[i : i + size])) for i in range(0, len(parts), size)]


def group_of(index: int) -> int:
    return next(k for k, members in enumerate(GROUPS) if index in members.tolist())


@pytest.mark.parametrize("micro", [None, 1])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_number_of_processes_has_the_same_batches(world, micro):
    shares = [steps(sampler(world, rank, micro)) for rank in range(world)]
    for whole, *own in zip(steps(sampler()), *shares, strict=True):
        assert sorted(itertools.chain(*own)) == whole
        assert len({group_of(index) for _, index in whole}) == 1
        assert [position % BATCH for position, _ in whole] == [*range(BATCH)]


@pytest.mark.parametrize("first", [1, 7, 8, 31, 59])
def test_a_start_at_any_step_continues_the_sequence(first):
    assert steps(sampler(start=first)) == steps(sampler())[first:]


def test_the_seed_decides_the_order_of_batches_and_within_groups():
    one, other = ([index for batch in sampler(seed=seed) for _, index in batch] for seed in (1, 2))
    assert one != other
    assert [group_of(index) for index in one] != [group_of(index) for index in other]
    order = GroupOrder(1, (50,), 10)
    turns = [[order.sample(p)[1] for p in range(start, start + 50)] for start in (0, 50)]
    assert sorted(turns[0]) == sorted(turns[1]) == [*range(50)]
    assert turns[0] != turns[1]


def test_each_pass_through_a_group_has_an_order_of_its_own():
    order = GroupOrder(1, (50,), 50)
    first, second = ([order.sample(p) for p in range(start, start + 50)] for start in (0, 50))
    assert sorted(first) == sorted(second)
    assert first != second
    order = GroupOrder(1, (50, 50), 50)
    orders = {order.batch_of(step)[0]: [order.sample(50 * step + i)[1] for i in range(50)] for step in (0, 1)}
    assert orders[0] != orders[1], "each group too"


def test_batches_of_a_group_do_not_stand_together():
    groups = [GroupOrder(0, (800, 800), 8).batch_of(step)[0] for step in range(200)]
    assert groups.count(0) == 100
    assert 60 < sum(a != b for a, b in itertools.pairwise(groups)) < 140


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5).map(tuple),
    batch=st.integers(1, 12),
    seed=st.integers(0, 3),
    total=st.integers(1, 60),
)
def test_every_sample_is_trained_on_as_often_as_any_other(sizes, batch, seed, total):
    """Each group's share of the batches is its share of the samples, and its samples are passed through in turn."""
    order = GroupOrder(seed, sizes, batch)
    counts = Counter(order.sample(position) for position in range(total * batch))
    numbers: dict[int, list[int]] = {}
    for step in range(total):
        group, number = order.batch_of(step)
        numbers.setdefault(group, []).append(number)
    for group, size in enumerate(sizes):
        own = [counts[group, member] for member in range(size)]
        # a batch may be missing or early within an epoch, whose batches come in random order
        done = sorted(numbers.get(group, []))
        assert len(set(done)) == len(done)
        epochs = total * batch / sum(sizes)
        slack = batch / size * len(sizes) + 2
        assert abs(sum(own) / size - epochs) <= slack + 1, "no group has more or less than its share"
    # after whole epochs the numbers of batches are exact
    for epoch in range(1, 4):
        end = order.steps_before(epoch)
        seen = Counter(order.sample(position) for position in range(end * batch))
        for group, size in enumerate(sizes):
            batches = epoch * size // batch
            own = [seen[group, member] for member in range(size)]
            assert sum(own) == batches * batch
            assert max(own) - min(own) <= 1, "one pass after another"
            assert epoch * size - sum(own) < batch, "what is left over comes first in the next epoch"


def test_what_fits_into_batches_is_one_permutation_an_epoch():
    order = GroupOrder(0, (16, 24), 8)
    for epoch in range(3):
        epoch_samples = [order.sample(p) for p in range(40 * epoch, 40 * (epoch + 1))]
        assert sorted(epoch_samples) == [(g, m) for g, n in ((0, 16), (1, 24)) for m in range(n)]


def test_a_function_is_called_for_one_group_at_a_time():
    rows, calls = torch.tensor([4, 100, 26, 30, 2]), []

    def compute(indices):
        calls.append({group_of(int(i)) for i in rows[indices]})
        return rows[indices].float()

    class Numbered(Source):
        groups = (torch.arange(0, 25), torch.arange(25, 101))

    def own(indices):
        chosen = rows[indices]
        assert bool((chosen < 25).all()) or bool((chosen >= 25).all())
        return chosen.float()

    assert by_group(Numbered(), rows)(own)(torch.tensor([0, 1, 2, 4, 3])).tolist() == [4, 100, 26, 2, 30]
    assert by_group(object(), rows)(compute) is compute
    assert groups_of(object()) == ()
