"""Levels and curricula of consistency training, iCT and ECT: the papers' numbers."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler

from ldm_kit.diffusion import consistency_curricula as curricula
from ldm_kit.diffusion.consistency import pseudo_huber
from ldm_kit.diffusion.schedule import flow, linear, scaled_linear, zero_terminal


def test_karras_levels_are_diffusers():
    levels = curricula.karras_levels(40)
    assert torch.allclose(levels.flip(0), CMStochasticIterativeScheduler(num_train_timesteps=40).sigmas.double())
    assert levels[0].item() == pytest.approx(0.002)
    assert levels[-1].item() == pytest.approx(80)


def test_the_levels_of_ct_grow_from_s_0_to_s_1_and_the_decay_with_them():
    total = 1000
    levels = [curricula.ct_levels(k, total) for k in range(total)]
    decays = [curricula.ct_decay(k, total) for k in range(total)]
    assert (levels[0], levels[1] >= 3, max(levels)) == (2, True, 151)
    assert levels == sorted(levels)
    assert decays == sorted(decays)
    assert decays[0] == pytest.approx(0.95**2)
    assert decays[-1] == pytest.approx(0.95 ** (2 / 150))
    squares = [level**2 for level in levels]
    middle = (squares[0] + squares[-1]) / 2  # of squares the growth is even
    assert squares[500] == pytest.approx(middle, rel=0.03)


def test_the_levels_of_ict_double_eight_times():
    levels = [curricula.ict_levels(k, 800) for k in range(800)]
    assert list(dict.fromkeys(levels)) == [10 * 2**i + 1 for i in range(8)]
    assert levels[99:101] == [11, 21]
    assert max(levels) == 1281
    assert curricula.ict_levels(7, 8, 10, 40) == 41
    assert curricula.ict_levels(0, 1, 10, 40) == 11


def test_levels_are_drawn_from_a_log_normal_cut_into_intervals():
    sigmas = curricula.karras_levels(30)
    p = curricula.level_probabilities(sigmas, -1.1, 2.0)
    law = torch.distributions.Normal(-1.1, 2.0)
    by_hand = law.cdf(sigmas.log()).diff()
    assert torch.allclose(p, by_hand / by_hand.sum(), atol=1e-7)
    whole = curricula.level_probabilities(torch.tensor([0.0, 1.0, math.inf]), 0.0, 1.0)
    assert torch.allclose(whole, torch.full((2,), 0.5).double())


def test_the_weights_are_the_inverse_widths_and_finite():
    sigmas = curricula.karras_levels(20)
    assert torch.allclose(curricula.inverse_gaps(sigmas[1:], sigmas[:-1]), 1 / sigmas.diff())
    pure = curricula.inverse_gaps(torch.tensor([math.inf, 90.0]), torch.tensor([200.0, 89.0]))
    assert pure.isfinite().all()
    assert (pure > 0).all()


def test_the_target_of_ect_rises_to_the_student_with_the_stage():
    sigma = torch.logspace(-3, 3, 200, dtype=torch.float64)
    stages = [curricula.ect_mapping(sigma, stage) for stage in range(8)]
    assert all((r >= 0).all() and (r < sigma).all() for r in stages)
    assert all((later >= earlier).all() for earlier, later in pairwise(stages))
    assert stages[0][0] == 0  # at first the least noisy ones are trained as by a denoiser
    assert stages[0][-1].item() == pytest.approx(sigma[-1].item() / 2)
    assert stages[2][-1].item() == pytest.approx(sigma[-1].item() * 7 / 8)
    assert curricula.ect_mapping(torch.tensor(1.0), 0, 256.0).item() == pytest.approx(1 - (1 + 8 / (1 + math.e)) / 256)
    assert [curricula.ect_stage(k, 10, 4) for k in range(10)] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("schedule", [linear(), zero_terminal(scaled_linear()), flow()])
def test_a_noise_level_is_found_in_the_schedule(schedule):
    sigmas = curricula.schedule_sigmas(schedule)
    t = torch.arange(1000)
    assert torch.equal(curricula.timesteps_at(schedule, sigmas), t)
    assert torch.equal(curricula.timesteps_at(schedule, sigmas[1:] * (1 - 1e-9))[:-1], t[:-2])
    below = curricula.timesteps_at(schedule, torch.tensor([-1.0]))
    assert below.tolist() == [-1]


def test_even_levels_are_distinct_and_span_the_schedule():
    for count in (2, 11, 999, 1000):
        levels = curricula.even_levels(1000, count).tolist()
        assert len({*levels}) == count
        assert (levels[0], levels[-1]) == (0, 999)
    for wrong in (1, 1001):
        with pytest.raises(ValueError, match="2 to 1000"):
            curricula.even_levels(1000, wrong)


def test_the_gradient_of_tuning_grows_by_q_with_each_stage_until_a_gap_is_a_hundredth():
    """Of the weighted pseudo-Huber metric, at outputs that differ in proportion to the gap of their levels."""
    sigma, lengths = torch.tensor([5.0], dtype=torch.float64), []
    for stage in range(10):
        r = curricula.ect_mapping(sigma, stage)
        x = (torch.ones(1, 4, dtype=torch.float64) * (sigma - r)).requires_grad_()
        (curricula.inverse_gaps(sigma, r) * pseudo_huber(x, torch.zeros_like(x))).sum().backward()
        lengths.append(float(x.grad.norm()))
    assert [b / a for a, b in pairwise(lengths[:6])] == pytest.approx([2.0] * 5, rel=1e-3)
    assert lengths[7:] == pytest.approx([20.0] * 3, rel=1e-2), "weights of 100 / sigma"
