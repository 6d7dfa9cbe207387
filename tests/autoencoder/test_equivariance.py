from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from autoencoder.equivariance import DRAWS, EquivarianceConfig, Move
from ldm_kit.diffusion import rng


def draws(config, side=8, count=2000):
    u = rng.uniform(3, "move", torch.arange(count * DRAWS)).view(count, DRAWS)
    return [config.drawn(row.tolist(), side) for row in u]


def test_as_many_steps_move_as_asked_and_all_scales_and_turns_come():
    found = draws(EquivarianceConfig())
    moved = [latents for _, latents in found if latents is not None]
    small = [pictures for pictures, _ in found if pictures is not None]
    assert len(moved) / len(found) == pytest.approx(0.5, abs=0.04)
    assert len(small) / (len(found) - len(moved)) == pytest.approx(0.25, abs=0.04)
    assert set(Counter(moved)) == {Move(side, 8, turns) for side in range(2, 8) for turns in (1, 2, 3)}
    assert set(small) == {Move(side, 8) for side in range(2, 8)}
    assert not any(pictures is not None and latents is not None for pictures, latents in found)


@pytest.mark.parametrize(("config", "side"), [({"share": 0, "small": 0}, 8), ({}, 1), ({"least": 0.99}, 8)])
def test_nothing_moves_where_nothing_is_asked_or_nothing_is_smaller(config, side):
    assert set(draws(EquivarianceConfig(**config), side)) == {(None, None)}


@pytest.mark.parametrize("side", range(2, 9))
@pytest.mark.parametrize("turns", range(4))
def test_pictures_of_moved_latents_have_the_size_of_moved_pictures(side, turns):
    x, z = torch.rand(1, 3, 32, 32), torch.rand(1, 4, 8, 8)
    move = Move(side, 8, turns)
    assert move(x).shape[-1] == 4 * move(z).shape[-1] == 4 * side


def test_a_move_is_the_same_for_latents_as_for_pictures():
    z = torch.randn(2, 3, 8, 8)
    for turns in range(4):
        turned = Move(8, 8, turns)
        assert torch.equal(turned(F.interpolate(z, scale_factor=4)), F.interpolate(turned(z), scale_factor=4))
    x = F.interpolate(z[..., :1, :1].expand(2, 3, 8, 8).clone(), scale_factor=4)  # of one colour
    assert torch.allclose(Move(3, 8)(x), x[..., :12, :12])


@pytest.mark.parametrize("side", range(2, 8))
def test_scaling_is_torchs_and_keeps_its_precision_under_autocast(side):
    x = torch.rand(2, 3, 32, 32)
    expected = F.interpolate(x, size=(4 * side, 4 * side), mode="bilinear", antialias=True)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(Move(side, 8)(x), expected)
        assert Move(side, 8)(x.bfloat16()).dtype == torch.float32


def test_numbers_out_of_range_are_refused():
    for given in ({"share": 1.5}, {"small": -1}, {"least": 0}, {"least": 1}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            EquivarianceConfig(**given)
