import pytest
import torch

from ldm_kit.diffusion.rng import uniform
from ldm_kit.diffusion.timesteps import (
    LossHistory,
    TimestepSampler,
    TimestepSamplingConfig,
    sample_timesteps,
    timesteps_at_quantiles,
)

AWARE = TimestepSamplingConfig(density="loss_second_moment")


@pytest.mark.parametrize("density", ["uniform", "logit_normal"])
def test_times_do_not_depend_on_how_the_global_batch_is_split(density):
    config, positions = TimestepSamplingConfig(density=density), torch.arange(40, 56)
    whole = sample_timesteps(config, 1, positions, 16, 1000)
    split = torch.cat([sample_timesteps(config, 1, part, 16, 1000) for part in positions.split(3)])
    assert torch.equal(whole, split)
    assert not torch.equal(whole, sample_timesteps(config, 1, positions + 16, 16, 1000))
    assert not torch.equal(whole, sample_timesteps(config, 2, positions, 16, 1000))


def test_stratified_times_visit_every_stratum():
    t = sample_timesteps(TimestepSamplingConfig(), 3, torch.arange(64), 64, 1024)
    assert (t // 16).tolist() == list(range(64))
    free = sample_timesteps(TimestepSamplingConfig(stratified=False), 3, torch.arange(64), 64, 1024)
    assert len(set((free // 16).tolist())) < 55


def test_uniform_times_are_uniform():
    t = sample_timesteps(TimestepSamplingConfig(stratified=False), 0, torch.arange(100_000), 8, 10)
    assert torch.allclose(t.bincount() / 1e5, torch.full((10,), 0.1), atol=0.005)


@pytest.mark.parametrize("stratified", [False, True])
def test_logit_normal_times(stratified):
    config = TimestepSamplingConfig(density="logit_normal", mean=-0.5, std=0.8, stratified=stratified)
    t = sample_timesteps(config, 0, torch.arange(50_000), 50, 1000)
    assert 0 <= t.min() <= t.max() <= 999
    logit = torch.logit((t + 0.5) / 1000)
    assert abs(logit.mean() + 0.5) < 0.02
    assert abs(logit.std() - 0.8) < 0.02


def test_times_at_quantiles_follow_a_density():
    p = torch.tensor([0.5, 0.0, 0.25, 0.25]).double()
    u = (torch.arange(1000) + 0.5).double() / 1000
    assert timesteps_at_quantiles(u, p).bincount(minlength=4).tolist() == [500, 0, 250, 250]
    assert timesteps_at_quantiles(torch.tensor([0.0, 0.5, 1 - 1e-16, 0.75]).double(), p).tolist() == [0, 2, 3, 3]


def direct(events, total):
    """The density after (time, loss) events, as the paper says it."""
    kept = [[loss for t, loss in events if t == time][-10:] for time in range(total)]
    if any(len(row) < 10 for row in kept):
        return [1 / total] * total
    roots = [(sum(loss**2 for loss in row) / 10) ** 0.5 for row in kept]
    return [0.999 * root / sum(roots) + 0.001 / total for root in roots]


def test_the_density_is_the_root_of_the_mean_square_of_ten_losses():
    history, events = LossHistory.empty(3), []
    generator = torch.Generator().manual_seed(0)
    uniform_for = 0
    for _ in range(12):
        t = torch.randint(0, 3, (7,), generator=generator)
        losses = torch.rand(7, generator=generator) * (t + 1) ** 2
        history.add(t, losses)
        events += zip(t.tolist(), losses.tolist(), strict=True)
        expected = direct(events, 3)
        uniform_for += expected[0] == 1 / 3
        assert history.probabilities().tolist() == pytest.approx(expected, rel=1e-12)
    assert 2 < uniform_for < 8  # both kinds were met


def test_one_batch_may_hold_more_losses_of_a_time_than_are_kept():
    t, losses = torch.tensor([1] * 23 + [0] * 11), torch.arange(34.0)
    history = LossHistory.empty(2)
    history.add(t, losses)
    assert sorted(history.losses[1].tolist()) == list(range(13, 23))
    assert sorted(history.losses[0].tolist()) == list(range(24, 34))
    assert history.seen.tolist() == [11, 23]


def test_losses_of_zero_leave_the_density_uniform():
    history = LossHistory.empty(2)
    history.add(torch.arange(2).repeat(10), torch.zeros(20))
    assert torch.equal(history.probabilities(), torch.full((2,), 0.5).double())


def loss_at(t, positions):
    """Some loss of a sample that depends on its time most of all."""
    return (1 + t.double()) ** -2 * (0.5 + uniform(0, "luck", positions))


def trained(steps, batch=12, parts=1, config=AWARE):
    """Times after so many steps, fed in micro-batches."""
    times, total = TimestepSampler(config, seed=3, global_batch=batch, total=4), 0.0
    for step in range(steps):
        positions = torch.arange(step * batch, (step + 1) * batch)
        for part in reversed(positions.view(-1, parts).T):  # interleaved, out of order
            t, weight = times.draw(part)
            times.meet(part, t, loss_at(t, part))
            total += float((weight * loss_at(t, part)).sum())
        times.after_step(lambda value: value)
    return times, total / (steps * batch)


def test_a_split_changes_neither_the_losses_kept_nor_the_next_times():
    (whole, _), (split, _) = trained(8), trained(8, parts=3)
    assert torch.equal(whole.history.losses, split.history.losses)
    assert torch.equal(whole.draw(torch.arange(96, 108))[0], split.draw(torch.arange(96, 108))[0])
    assert whole.history.probabilities()[0] > 0.5


def test_draws_within_a_step_use_the_density_before_it():
    times, _ = trained(8)
    before = times.draw(torch.arange(96, 102))
    times.meet(torch.arange(96, 102), before[0], torch.full((6,), 1e3))
    after = times.draw(torch.arange(96, 102))
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_a_void_step_leaves_no_trace():
    times, _ = trained(8)
    kept = times.history.losses.clone()
    t, _ = times.draw(torch.arange(96, 108))
    times.meet(torch.arange(96, 108), t, torch.full((12,), 1e3))
    times.discard_step()
    times.meet(torch.arange(96, 108), t, loss_at(t, torch.arange(96, 108)))
    times.after_step(lambda value: value)
    assert times.history.losses.max() < 2
    assert not torch.equal(times.history.losses, kept)


def test_every_rank_learns_the_losses_of_all():
    (whole, _), halves = trained(8), [trained(8)[0] for _ in range(2)]
    met = []
    for half, start in zip(halves, (0, 6), strict=True):
        positions = torch.arange(96 + start, 102 + start)
        t, _ = half.draw(positions)
        met.append((positions, t, loss_at(t, positions)))
        half.meet(*met[-1])
    sums = []
    for half in halves:  # what each offers
        half.after_step(lambda value: sums.append(value) or value)
    for half, seen in zip(halves, met, strict=True):
        half.load_state(whole.state())
        half.meet(*seen)
        half.after_step(lambda value: sums[0] + sums[1])
    for part in met:
        whole.meet(*part)
    whole.after_step(lambda value: value)
    assert torch.equal(halves[0].history.losses, whole.history.losses)
    assert torch.equal(halves[1].history.losses, whole.history.losses)


@pytest.mark.parametrize("stratified", [False, True])
def test_importance_weights_leave_the_mean_as_it_was(stratified):
    times, _ = trained(8)
    times.config = TimestepSamplingConfig(density="loss_second_moment", stratified=stratified)
    positions = torch.arange(60_000)
    t, weight = times.draw(positions)
    assert t.bincount()[0] > 3 * t.bincount()[3]
    exact = sum((1 + t) ** -2 for t in range(4)) / 4
    assert float((weight * (1 + t.double()) ** -2).mean()) == pytest.approx(exact, rel=5e-3)
    assert float(weight.mean()) == pytest.approx(1, rel=2e-2)


def test_state_brings_the_density_back():
    times, _ = trained(8)
    other = TimestepSampler(AWARE, seed=3, global_batch=12, total=4)
    other.load_state(times.state())
    assert torch.equal(other.history.probabilities(), times.history.probabilities())
    plain = TimestepSampler(TimestepSamplingConfig(), seed=3, global_batch=12, total=4)
    assert plain.state() == {}
    assert plain.draw(torch.arange(12))[1] is None


def test_a_training_without_memory_of_losses_refuses_their_density():
    with pytest.raises(ValueError, match="loss_second_moment needs the losses of earlier steps"):
        sample_timesteps(AWARE, 0, torch.arange(4), 4, 10)
