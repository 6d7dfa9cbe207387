"""The seam: conditions, and dropping them."""

import pytest
import torch

from conditioning import Condition, ConditioningError, NoCondition, drop, load, save


def test_a_condition_knows_its_length_and_slices():
    whole = Condition(tokens=torch.arange(12.0).reshape(3, 2, 2), mask=torch.ones(3, 2, dtype=torch.bool))
    assert len(whole) == 3
    assert len(whole[1:]) == 2
    assert torch.equal(whole.take([2, 0, 0]).tokens, whole.tokens[[2, 0, 0]])
    assert torch.equal(whole.repeat(2).tokens, whole.tokens[[0, 0, 1, 1, 2, 2]])
    assert len(Condition()) == 0


def test_pooling_is_the_vector_or_the_mean_of_what_is_attended_to():
    tokens, mask = torch.arange(12.0).reshape(2, 3, 2), torch.tensor([[True, True, False], [False] * 3])
    assert torch.equal(Condition(tokens, mask).pooled, torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    assert torch.equal(Condition(tokens).pooled, tokens.mean(1))
    assert torch.equal(Condition(tokens, vector=torch.ones(2, 5)).pooled, torch.ones(2, 5))
    assert Condition().pooled is None


def test_moving_keeps_the_mask_bool():
    moved = Condition(tokens=torch.ones(1, 2, 3), mask=torch.ones(1, 2, dtype=torch.bool)).to("cpu", torch.bfloat16)
    assert moved.tokens.dtype == torch.bfloat16
    assert moved.mask.dtype == torch.bool


def test_joining_pads_the_shorter_and_masks_the_padding():
    short, long = Condition(tokens=torch.ones(1, 1, 2)), Condition(tokens=torch.ones(2, 3, 2))
    both = Condition.cat([short, long])
    assert both.tokens.shape == (3, 3, 2)
    assert both.mask.tolist() == [[True, False, False], [True] * 3, [True] * 3]
    assert Condition.cat([long, long]).mask is None
    assert len(Condition.cat([Condition(), Condition()])) == 0
    assert long.before(long[:0]) is None
    assert len(long.before(long)) == 2 * len(long)


@pytest.mark.parametrize(
    "parts", [{"mask": torch.ones(1, 2)}, {"tokens": torch.ones(2, 1, 1), "vector": torch.ones(3, 1)}]
)
def test_parts_that_do_not_fit_are_refused(parts):
    with pytest.raises(ConditioningError):
        Condition(**parts)
    with pytest.raises(ConditioningError, match="same tensors"):
        Condition.cat([Condition(), Condition(vector=torch.ones(1, 1))])


def test_drop_replaces_exactly_the_dropped_samples_in_all_keys():
    inputs = {"states": torch.randn(4, 3, 2), "mask": torch.ones(4, 3, dtype=torch.bool)}
    null = {"states": torch.zeros(1, 1, 2), "mask": torch.ones(1, 1, dtype=torch.bool)}
    dropped = torch.tensor([False, True, False, True])
    out = drop(inputs, null, dropped)
    assert torch.equal(out["states"][~dropped], inputs["states"][~dropped])
    assert torch.equal(out["mask"][~dropped], inputs["mask"][~dropped])
    assert not out["states"][dropped].any()
    assert out["mask"][dropped].tolist() == [[True, False, False]] * 2


def test_drop_pads_to_a_longer_null_and_keeps_the_type():
    inputs = {"states": torch.ones(2, 1, 2).bfloat16(), "mask": torch.ones(2, 1, dtype=torch.bool)}
    null = {"states": torch.ones(1, 4, 2), "mask": torch.ones(1, 4, dtype=torch.bool)}
    out = drop(inputs, null, torch.tensor([True, False]))
    assert out["states"].shape == (2, 4, 2)
    assert out["states"].dtype == torch.bfloat16
    assert out["mask"].sum(dim=1).tolist() == [4, 1]


def test_drop_refuses_what_does_not_fit():
    with pytest.raises(ConditioningError, match="same keys"):
        drop({"ids": torch.ones(2, 3)}, {"labels": torch.ones(1)}, torch.ones(2).bool())
    with pytest.raises(ConditioningError, match="does not fit"):
        drop({"ids": torch.ones(2, 3)}, {"ids": torch.ones(1, 4)}, torch.ones(2).bool())


def test_no_condition_is_total(tmp_path):
    nothing = NoCondition()
    assert nothing.prepare(["a", "b"]) == nothing.null_inputs(3) == drop({}, {}, torch.ones(2).bool()) == {}
    assert len(nothing()) == 0
    assert save(nothing, tmp_path) == nothing.trainable == {}
    assert isinstance(load(tmp_path), NoCondition)
