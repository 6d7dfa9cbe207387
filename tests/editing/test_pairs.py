import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.editing.fit_directions import learn
from ldm_kit.editing.labels import Column
from ldm_kit.models.directions import Directions
from ldm_kit.models.pairs import PairDirections, pair_directions

D, P = 16, 40
NOISE = torch.randn(2 * P, D, generator=torch.Generator().manual_seed(0)) * 0.1


def two_kinds() -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of two kinds of picture, apart along axis 0, in which the attribute moves axis 1 or, backwards, axis 2."""
    before = NOISE.clone()
    before[:P, 0] += 3
    before[P:, 0] -= 3
    after = before.clone()
    after[:P, 1] += 2
    after[P:, 2] -= 2
    return before, after


def test_the_step_is_that_of_the_pictures_likes():
    before, after = two_kinds()
    near, far = torch.zeros(2, D), torch.zeros(2, D)
    near[0, 0], near[1, 0] = 3, -3
    steps = pair_directions(before, after).step(near)
    far[0, 1], far[1, 2] = 2, -2
    assert torch.allclose(steps, far, atol=1e-3)
    assert torch.allclose((after - before).mean(0), (far[0] + far[1]) / 2)  # which is right for neither


def test_a_picture_like_none_of_them_takes_their_mean_step():
    before, after = two_kinds()
    z = torch.zeros(1, D)
    z[0, 5] = 1  # at right angles to both kinds, but for the noise
    step = PairDirections(before, after, 1.0).step(z)[0]
    assert torch.allclose(step, (after - before).mean(0), atol=0.2)


def test_the_way_back_is_the_way_there_from_the_other_end():
    pairs = pair_directions(*two_kinds())
    there = pairs.before + pairs.step(pairs.before)
    assert torch.allclose(there + pairs.reverse().step(there), pairs.before, atol=0.01)


def test_the_temperature_foretells_pairs_left_out():
    before, after = two_kinds()
    assert pair_directions(before, after).temperature < 1
    alike = before + torch.eye(D)[3]  # one step for all, of which each pair knows a noisy version
    noisy = alike + NOISE.flip(0) * 5
    assert pair_directions(before, noisy).temperature >= 0.3


def test_at_most_a_thousand_pairs_are_kept():
    z = torch.randn(1500, 4, generator=torch.Generator().manual_seed(1))
    kept = pair_directions(z, z + 1).before
    assert len(kept) == 1000
    assert any(torch.equal(row, z[-2]) for row in kept)  # the end of a table counts as well


def learned() -> Directions:
    before, after = two_kinds()
    names = [str(i) for i in range(len(before))] * 2
    tones = Column("tone", tuple(["light"] * len(before) + ["dark"] * len(before)), tuple(names))
    return learn(torch.cat([before, after]), [tones], names, "key")


def test_a_direction_of_pairs_goes_each_pictures_way():
    found = learned()["tone: light > dark"]
    z = torch.zeros(D)
    z[0] = 3
    there = found.at_code(z)
    assert torch.allclose(there.vector, torch.eye(D)[1], atol=1e-2)
    assert there.typical * D**0.5 == pytest.approx(2, rel=0.01)
    moved = z + there.vector * there.typical * D**0.5
    back = learned()["tone: dark > light"].at_code(moved)
    assert torch.allclose(moved + back.vector * back.typical * D**0.5, z, atol=0.1)
    plain = learned()["tone: dark"]
    assert plain.at_code(z) is plain


def test_pairs_are_saved_with_the_directions(tmp_path):
    there = learned()
    there.save(tmp_path)
    back = Directions.load(tmp_path, "key")
    assert back.pairs.keys() == there.pairs.keys() == {"tone: dark > light"}
    for one, other in zip(back.pairs["tone: dark > light"], there.pairs["tone: dark > light"], strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_learning_again_replaces_the_pairs_of_the_same_name():
    old, new = learned(), learned()
    pairs = new.pairs["tone: dark > light"]
    new = Directions(
        new.records, new.vectors, new.means, new.scales, new.biases, "key", {"tone: dark > light": pairs.reverse()}
    )
    merged = old.merge(new)
    assert torch.equal(merged.pairs["tone: dark > light"].before, pairs.after)


def test_directions_whose_pairs_are_lost_are_refused(tmp_path):
    there = learned()
    there.save(tmp_path)
    Directions(there.records, there.vectors, there.means, there.scales, there.biases, "key").save(tmp_path / "new")
    for file in (tmp_path / "new").iterdir():
        if file.suffix == ".safetensors":
            file.replace(tmp_path / file.name)
    with pytest.raises(UserError, match="do not belong together"):
        Directions.load(tmp_path, "key")


def test_without_pairs_every_picture_goes_one_way():
    before, after = two_kinds()
    tones = Column("tone", tuple(["light"] * len(before) + ["dark"] * len(before)))
    one = learn(torch.cat([before, after]), [tones], [str(i) for i in range(2 * len(before))], "key")
    there = one["tone: light > dark"]
    assert there.at_code(before[0]) is there
