"""Drawing codes, with and without the clipping of PDAE's released code, against formulas."""

import torch

from conditioning.none import NoCondition
from ldm_kit.diffusion.analytic import Gaussian
from ldm_kit.diffusion.rng import derive_seed, initial_noise
from ldm_kit.diffusion.schedule import ScheduleConfig, build
from ldm_kit.models.prior import CodePrior, strided
from ldm_kit.nets.mlp_skip import SkipMLP

CONSTANT = ScheduleConfig(kind="constant")
SEEDS = range(40)
NOISE = initial_noise([derive_seed(seed, "code") for seed in SEEDS], (8,))


def prior(eps) -> tuple[CodePrior, list[torch.Tensor]]:
    """One whose network is a formula of (z, t), and what that is given."""
    made, seen = CodePrior(SkipMLP(z_width=8, hidden=8, layers=2), NoCondition(), CONSTANT), []

    def forward(z, t, condition):
        seen.append(z.clone())
        return eps(z, t)

    made.mlp.forward = forward
    return made, seen


def test_codes_are_free():
    """Where the network sees no noise, a step scales by a'/a: noise becomes noise / a, however far that is."""
    made, seen = prior(lambda z, t: torch.zeros_like(z))
    a = build(CONSTANT).a
    drawn = made.sample(SEEDS, 10)
    assert torch.equal(seen[0], NOISE)
    torch.testing.assert_close(drawn, NOISE / a[strided(1000, 10)[0]].float())
    assert drawn.abs().max() > 10


def test_as_published_noise_and_x_0_are_clipped_and_eps_derived_anew():
    """x_0 = noise / a is beyond 1, so that each step goes on from its sign and from the noise that is left besides."""
    made, seen = prior(lambda z, t: torch.zeros_like(z))
    schedule, grid = build(CONSTANT), strided(1000, 10)
    drawn = made.sample(SEEDS, 10, clip="published")
    start = NOISE.clamp(-1, 1).double()
    sign, a, s = start.sign(), schedule.a[grid[0]], schedule.s[grid[0]]
    far = start.abs() > a
    assert far.float().mean() > 0.8
    eps = (start - a * sign) / s
    assert torch.equal(seen[0], start.float())
    for z, t in zip(seen[1:], grid[1:], strict=False):
        expected = schedule.a[t] * sign + schedule.s[t] * eps
        torch.testing.assert_close(z[far], expected[far].float(), rtol=1e-4, atol=1e-4)
    assert torch.equal(drawn[far], sign[far].float())


def test_the_clip_keeps_what_lies_beyond_it_from_being_drawn():
    exact = Gaussian(build(CONSTANT), m=2.0, s=0.5)
    made, _ = prior(lambda z, t: exact(z, t).eps)
    free = made.sample(range(500), 500)
    assert abs(free.mean() - 2) < 0.05
    assert abs(free.std() - 0.5) < 0.05
    assert made.sample(range(500), 500, clip="published").max() <= 1
