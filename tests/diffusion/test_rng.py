import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from ldm_kit.diffusion.rng import (
    bits,
    derive_seed,
    initial_noise,
    normal,
    permuted,
    step_generators,
    step_noise,
    uniform,
)

MANY = torch.arange(100_000)


@given(positions=st.lists(st.integers(0, 2**40), min_size=2, max_size=6), cut=st.integers(1, 5))
def test_a_draw_depends_on_its_own_position_alone(positions, cut):
    places = torch.tensor(positions)
    whole = normal(7, "noise", places, (2, 3))
    parts = torch.cat([normal(7, "noise", part, (2, 3)) for part in places.split(cut)])
    assert torch.equal(whole, parts)
    assert torch.equal(uniform(7, "u", places), torch.cat([uniform(7, "u", part) for part in places.split(cut)]))


def test_uniform_is_uniform():
    u = uniform(0, "time", MANY)
    assert u.dtype == torch.float64
    assert 0 <= u.min() <= u.max() < 1
    assert kstest(u.numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 3)])
def test_normal_is_normal_for_odd_and_even_sizes(shape):
    z = normal(0, "noise", torch.arange(20_000), shape)
    assert z.shape == (20_000, *shape)
    assert z.dtype == torch.float32
    assert torch.isfinite(z).all()
    assert abs(z.mean()) < 0.02
    assert abs(z.var() - 1) < 0.03
    assert kstest(z.flatten().numpy()[:20_000], "norm").pvalue > 0.01


def test_coordinates_of_one_draw_are_independent():
    z = normal(0, "noise", torch.arange(20_000), (6,)).T
    assert (z.corrcoef() - torch.eye(6)).abs().max() < 0.03
    assert (z.square().corrcoef() - torch.eye(6)).abs().max() < 0.03


def test_other_addresses_give_independent_draws():
    places = torch.arange(20_000)
    others = [normal(1, "noise", places, (1,)), normal(0, "other", places, (1,)), normal(0, "noise", places + 1, (1,))]
    z = torch.cat([normal(0, "noise", places, (1,)), *others], dim=1).T
    assert (z.corrcoef() - torch.eye(4)).abs().max() < 0.03


def test_every_bit_is_fair():
    raw = bits(5, "bits", torch.arange(20_000), 2)
    ones = torch.stack([((raw >> k) & 1).double().mean(0) for k in range(64)])
    assert (ones - 0.5).abs().max() < 0.02


def test_no_two_positions_collide():
    assert len(bits(0, "order", MANY, 1).unique()) == len(MANY)


def test_addresses_are_63_bits_and_differ():
    found = {derive_seed(seed, "order", epoch) for seed in range(20) for epoch in range(20)}
    assert len(found) == 400
    assert all(0 <= number < 2**63 for number in found)
    assert derive_seed(1, "23") == derive_seed(1, 23)


def test_picture_noise_is_that_of_diffusers():
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 1, 4)]
    assert torch.equal(initial_noise([3, 1, 4], (2, 4, 4)), randn_tensor((3, 2, 4, 4), generator=generators))


def test_step_noise_is_addressed_by_picture_and_step():
    noise = step_noise([3, 1], 5, (2, 4))
    assert torch.equal(noise[1:], step_noise([1], 5, (2, 4)))
    assert torch.equal(noise, randn_tensor((2, 2, 4), generator=step_generators([3, 1], 5)))
    assert not torch.equal(noise, step_noise([3, 1], 6, (2, 4)))
    assert not torch.equal(noise[0], noise[1])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 24, 25, 26, 1000])
def test_a_permutation_takes_each_value_once(size):
    images = permuted(0, "faces", torch.arange(size), size)
    assert sorted(images.tolist()) == [*range(size)]
    assert torch.equal(permuted(0, "faces", torch.arange(size)[size // 2 :], size), images[size // 2 :])


def test_permutations_are_random():
    """Images are uniform, neighbours are uncorrelated, and another seed or name gives another permutation."""
    size = 18_750_000
    images = permuted(0, "faces", torch.arange(20_000), size)
    assert len(images.unique()) == 20_000
    assert kstest((images / size).numpy(), "uniform").pvalue > 0.01
    others = [permuted(1, "faces", torch.arange(20_000), size), permuted(0, "other", torch.arange(20_000), size)]
    rows = torch.stack([images[:-1], images[1:], *(other[:-1] for other in others)]).double()
    assert (rows.corrcoef() - torch.eye(4)).abs().max() < 0.03
