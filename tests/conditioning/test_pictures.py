"""Picture conditions: random masks, small and grey pictures, and what a user may give."""

import pytest
import torch
from pydantic import ValidationError

from conditioning.condition import Condition, ConditioningError
from conditioning.derived import Column, Grey, SuperResolution, luma
from conditioning.inpainting import Inpainting, random_masks
from conditioning.pictures import Frame, rows, unit
from ldm_kit.diffusion.rng import PositionDraws, SeedDraws

FRAME = Frame((4, 4), lambda x: torch.nn.functional.avg_pool2d(x, 2).repeat(1, 2, 1, 1)[:, :4])  # 8 px to 4 channels


def draws(*positions, seed=3):
    return PositionDraws(seed, torch.tensor(positions))


def pictures(count=2, side=8):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_masks_have_the_stated_shares_and_sizes():
    positions = range(4000)
    share = {
        name: random_masks(draws(*positions), 32, *shares).float().mean((1, 2, 3))
        for name, shares in {"boxes": (1, 0), "strokes": (0, 1), "all": (0, 0), "mixed": (0.5, 0.2)}.items()
    }
    assert (share["all"] == 1).all()
    assert 0.01 < share["boxes"].min() < 0.1
    assert 0.2 < share["boxes"].mean() < 0.35
    assert 0 < share["strokes"].min() < share["strokes"].max() < 0.8
    assert ((share["mixed"] == 1).float().mean() - 0.3).abs() < 0.03
    same = share["mixed"] == share["boxes"]
    assert (same.float().mean() - 0.5).abs() < 0.04  # the share of boxes, and few coincidences


def test_a_box_is_as_large_as_drawn_and_lies_within():
    mask = random_masks(draws(*range(500)), 64, 1, 0)[:, 0]
    high, wide = mask.any(2).sum(1), mask.any(1).sum(1)
    assert min(high.min(), wide.min()) >= 9  # 15 % of 64, but for the grid
    assert (mask.any(2) & mask.any(2).roll(1, 1)).any()


def test_a_stroke_is_thick_and_connected_at_its_bends():
    mask = random_masks(draws(*range(200)), 64, 0, 1)[:, 0]
    assert mask.flatten(1).any(1).all()
    assert (mask.sum((1, 2)) > 64 * 0.04 * 64 * 0.1).all()  # at least a piece of the least length and thickness


def test_what_is_drawn_depends_on_seed_and_position_alone():
    for condition in (Inpainting(), SuperResolution(factor=2)):
        x = pictures(3)
        both = condition.example(x, draws(5, 9, 70))
        for one, position in enumerate((5, 9, 70)):
            alone = condition.example(x[one : one + 1], draws(position))
            assert all(torch.equal(both[name][one : one + 1], value) for name, value in alone.items())
        other = condition.example(x, draws(5, 9, 70, seed=4))
        assert any(not torch.equal(other[name], value) for name, value in both.items())


def test_inpainting_gives_the_mask_then_the_masked_picture_with_grey_for_what_is_new():
    x, mask = pictures(), torch.zeros(2, 1, 8, 8)
    mask[0, :, :3, 4:] = 1
    concat = Inpainting().condition({"image": x, "mask": mask}, FRAME, draws(0, 1)).concat
    assert concat.shape == (2, 5, 4, 4)
    assert torch.equal(concat[:, 0], mask[:, 0, ::2, ::2])  # nearest, as diffusers scales it
    assert torch.equal(concat[:, 1:], FRAME.encode(x * (1 - mask)))
    pixels = Inpainting().condition({"image": x, "mask": mask}, Frame((8, 8)), draws(0, 1)).concat
    assert torch.equal(pixels, torch.cat([mask, x * (1 - mask)], 1))
    assert (Inpainting().channels(3, 4), Inpainting().channels(3, None), Inpainting(space="pixels").channels(3, 4)) == (
        5,
        4,
        4,
    )


def test_inpainting_keeps_what_is_not_masked():
    x, new, mask = pictures(), -pictures(), (pictures()[:, :1] > 0).float()
    done = Inpainting().finish(new, {"image": x, "mask": mask})
    assert torch.equal(done * (1 - mask), x * (1 - mask))
    assert torch.equal(done * mask, new * mask)


def test_a_small_picture_is_noised_at_its_size_to_the_level_that_is_passed_on():
    from diffusers import DDPMScheduler

    condition, x = SuperResolution(factor=4, max_level=350), pictures()
    given = condition.example(x, draws(2, 3))
    assert torch.allclose(given["image"], x.reshape(2, 3, 2, 4, 2, 4).mean((3, 5)))
    made = condition.condition(given, Frame((8, 8)), draws(2, 3))
    assert torch.equal(made.level, given["level"])
    alpha = DDPMScheduler(1000, beta_start=1e-4, beta_end=2e-2, beta_schedule="scaled_linear").alphas_cumprod
    a = alpha[given["level"]].sqrt()[:, None, None, None]
    noise = draws(2, 3).normal("picture noise", (3, 2, 2))
    small = a * given["image"] + (1 - a.square()).sqrt() * noise
    assert torch.allclose(made.concat, torch.nn.functional.interpolate(small, size=(8, 8), mode="bilinear"), atol=1e-5)


def test_noise_levels_are_uniform_up_to_the_greatest():
    level = SuperResolution(factor=2, max_level=9).example(pictures(1).expand(5000, -1, -1, -1), draws(*range(5000)))
    counts = level["level"].bincount(minlength=10)
    assert len(counts) == 10
    assert (counts - 500).abs().max() < 120


def test_grey_is_the_luma_of_pillow():
    from PIL import Image

    pixels = torch.randint(0, 256, (4, 4, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    theirs = torch.tensor(list(Image.fromarray(pixels.numpy()).convert("L").tobytes())).reshape(4, 4)
    ours = luma(pixels.permute(2, 0, 1)[None].float())[0, 0]
    assert (ours - theirs).abs().max() <= 1
    concat = Grey().condition({"image": pictures()}, Frame((8, 8)), draws(0, 1)).concat
    assert torch.equal(concat, luma(pictures()))
    latents = Grey().condition({"image": pictures()}, FRAME, draws(0, 1)).concat
    assert torch.equal(latents, FRAME.encode(luma(pictures()).expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(
    ("condition", "shapes", "message"),
    [
        (Inpainting(), {"image": (1, 3, 16, 16)}, "needs --mask; --image and --mask of 16 x 16 pixels"),
        (Grey(), {}, "condition.kind grey needs --image"),
        (Grey(), {"image": (1, 3, 16, 16), "mask": (1, 1, 16, 16)}, "--mask is not for condition.kind grey"),
        (Grey(), {"image": (1, 3, 16, 12)}, "--image is 12 x 16 pixels of 3 channels.*takes 16 x 16 pixels of 3"),
        (Grey(), {"image": (1, 1, 16, 16)}, "of 1 channel, .*of 3 channels"),
        (SuperResolution(factor=4), {"image": (1, 3, 16, 16)}, "takes 4 x 4 pixels"),
        (SuperResolution(factor=3), {"image": (1, 3, 16, 16)}, "condition.factor is 3, which does not divide 16"),
        (Column(column="depth"), {"image": (1, 3, 8, 8)}, "--image is 8 x 8"),
    ],
)
def test_wrong_pictures_are_refused_in_one_sentence(condition, shapes, message):
    with pytest.raises(ConditioningError, match=message) as caught:
        condition.check(shapes, (16, 16), 3)
    assert "\n" not in str(caught.value)


def test_one_picture_is_for_all_samples_and_a_wrong_number_is_refused():
    assert rows({"image": torch.zeros(1, 3, 2, 2)}, slice(1, 3), 5)["image"].shape == (2, 3, 2, 2)
    with pytest.raises(ConditioningError, match="got 2 of --image for 5 pictures"):
        rows({"image": torch.zeros(2, 3, 2, 2)}, slice(None), 5)


def test_bytes_become_units_and_masks_get_a_channel():
    assert unit(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).flatten().tolist() == [-1.0, 1.0]
    assert unit(torch.ones(2, 4, 4, dtype=torch.bool)).shape == (2, 1, 4, 4)


def test_shares_of_masks_are_at_most_all():
    with pytest.raises(ValidationError, match="expected at most 1"):
        Inpainting(boxes=0.8, strokes=0.3)


def test_seeds_draw_a_sample_by_itself():
    one, many = SeedDraws([7]), SeedDraws([5, 7])
    assert torch.equal(one.normal("a", (2, 3)), many.normal("a", (2, 3))[1:])
    assert torch.equal(one.uniform("a", 4), many.uniform("a", 4)[1:])
    assert not torch.equal(one.normal("a", (4,)), one.normal("b", (4,)))


def test_maps_join_tokens_and_two_of_a_kind_do_not():
    tokens, maps = Condition(tokens=torch.ones(2, 3, 4)), Condition(concat=torch.ones(2, 1, 4, 4), level=torch.ones(2))
    joined = tokens.joined(maps)
    assert joined.tokens is tokens.tokens
    assert joined.level is maps.level
    assert len(joined.before(joined)) == 4
    assert joined.before(joined).level.shape == (4,)
    with pytest.raises(ConditioningError, match="two conditions have concat"):
        joined.joined(maps)
