"""Rejection sampling against a Gaussian prior, whose accepted codes are a truncated Gaussian."""

import math

import pytest
import torch
from pydantic import ValidationError

from ldm_kit.config import UserError
from ldm_kit.diffusion.rng import initial_noise
from ldm_kit.editing import rejection_sampling
from ldm_kit.editing.fitting import few_shot
from ldm_kit.editing.rejection_sampling import AttributeThreshold, sample_accepted, try_seed
from ldm_kit.editing.sample_options import SamplePriorOptions
from ldm_kit.editing.sample_prior import attribute_threshold

AXIS = torch.eye(4)[0]


def draw(seeds):
    return initial_noise(seeds, (4,))


def read(z):
    """Log-odds above 0 where the first number is above 1."""
    return 3 * (z @ AXIS - 1)


def test_what_passes_is_the_truncated_prior():
    found = sample_accepted(draw, read, range(400), AttributeThreshold("far"))
    share = 0.5 * math.erfc(1 / math.sqrt(2))
    assert found.rate == pytest.approx(share, abs=0.03)
    assert found.z[:, 0].min() > 1
    assert found.z[:, 0].mean().item() == pytest.approx(math.exp(-0.5) / math.sqrt(2 * math.pi) / share, abs=0.1)
    assert found.z[:, 1:].mean(0).abs().max() < 0.2
    assert torch.allclose(found.probability, read(found.z).sigmoid())
    higher = sample_accepted(draw, read, range(100), AttributeThreshold("far", 0.9))
    assert higher.z[:, 0].min() > 1 + math.log(9) / 3
    assert higher.rate < found.rate / 2


def test_the_first_try_is_the_plain_draw_and_batch_mates_change_nothing():
    seeds = [3, 9, 4, 77]
    found = sample_accepted(draw, read, seeds, AttributeThreshold("far", 0.0))
    assert torch.equal(found.z, draw(seeds))
    assert (found.rate, found.tried) == (1, 4)
    together = sample_accepted(draw, read, seeds, AttributeThreshold("far"))
    alone = [sample_accepted(draw, read, [seed], AttributeThreshold("far")) for seed in seeds]
    assert torch.equal(together.z, torch.cat([one.z for one in alone]))
    assert together.tried == sum(one.tried for one in alone)
    tried = draw([try_seed(77, number) for number in range(alone[3].tried)])
    assert (read(tried) > 0).tolist() == [False] * (alone[3].tried - 1) + [True]
    assert len({try_seed(seed, number) for seed in range(9) for number in range(9)}) == 81


def test_codes_stand_in_the_order_of_their_seeds_however_late_they_pass(monkeypatch):
    seeds = range(12)
    alone = torch.cat([sample_accepted(draw, read, [seed], AttributeThreshold("far")).z for seed in seeds])
    monkeypatch.setattr(rejection_sampling, "MAX_BLOCK", 1)  # a try at a time, so that later seeds pass earlier
    codes = sample_accepted(draw, read, seeds, AttributeThreshold("far"))
    assert torch.equal(codes.z, alone)
    assert torch.allclose(codes.probability, read(alone).sigmoid())


def test_a_dozen_examples_are_enough_to_ask_for_more():
    examples, others = draw(range(12)) + 2 * AXIS, draw(range(20, 32))
    fit = few_shot(examples, others)
    found = sample_accepted(draw, lambda z: fit.logit(z).float(), range(100), AttributeThreshold("like these"))
    assert found.z[:, 0].mean() > 1
    assert 0.05 < found.rate < 0.5


def test_it_gives_up_in_a_sentence():
    asked = []
    with pytest.raises(
        UserError, match=r"2 of 2 pictures found no code with a probability of 'far' over 0\.5 within --tries 300"
    ):
        sample_accepted(
            lambda seeds: asked.extend(seeds) or draw(seeds),
            lambda z: -z.norm(dim=1),
            [0, 1],
            AttributeThreshold("far", 0.5, 300),
        )
    assert len(asked) == len(set(asked)) == 600


@pytest.mark.parametrize("threshold", [-0.1, 1.0, math.nan])
def test_thresholds_out_of_range(threshold):
    with pytest.raises(ValidationError, match="threshold"):
        SamplePriorOptions(attribute="far", threshold=threshold)
    with pytest.raises(ValidationError, match="tries"):
        SamplePriorOptions(attribute="far", tries=0)


def test_a_threshold_needs_an_attribute():
    assert attribute_threshold(SamplePriorOptions(tries=5)) is None
    assert attribute_threshold(SamplePriorOptions(attribute="far", tries=5)) == AttributeThreshold("far", 0.5, 5)
    assert attribute_threshold(SamplePriorOptions(attribute="far", threshold=0)) == AttributeThreshold("far", 0.0, 1000)
    with pytest.raises(ValidationError, match="--threshold is for --attribute"):
        SamplePriorOptions(threshold=0.7)
