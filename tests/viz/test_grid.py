import numpy as np
import pytest
import torch

from ldm_kit.viz.grid import grid, pairs_grid, strip


def flat(*levels, channels=3, size=4):
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, channels, size, size)


def test_a_grid_keeps_every_pixel():
    pictures = torch.randint(256, (5, 3, 4, 6), dtype=torch.uint8)
    drawn = np.asarray(grid(pictures, columns=3, scale=2, padding=1))
    assert drawn.shape == (2 * 9 + 1, 3 * 13 + 1, 3)
    for i in range(5):
        top, left = 1 + (i // 3) * 9, 1 + (i % 3) * 13
        cell = drawn[top : top + 8 : 2, left : left + 12 : 2]
        assert np.array_equal(cell, pictures[i].permute(1, 2, 0).numpy())
        assert np.array_equal(drawn[top + 1 : top + 9 : 2, left + 1 : left + 13 : 2], cell)
    assert (drawn[10:, 27:] == 255).all()  # the sixth cell is empty


def test_grey_and_alpha():
    assert grid(flat(7, channels=1), 1, padding=0).getpixel((0, 0)) == (7, 7, 7)
    see_through = torch.cat([flat(0), flat(0, channels=1)], 1)
    assert grid(see_through, 1, padding=0).getpixel((0, 0)) == (255, 255, 255)
    assert grid(torch.cat([flat(9), flat(255, channels=1)], 1), 1, padding=0).getpixel((0, 0)) == (9, 9, 9)


def test_captions_are_drawn_under_their_pictures_and_do_not_spill():
    hostile = "W" * 5000 + " \0\n\u202e\ud800 👩"
    plain, short = grid(flat(0, 0), 2), grid(flat(0, 0), 2, captions=["cat", ""])
    long = grid(flat(0, 0), 2, captions=[hostile, ""])
    assert plain.height == 4 + 4
    assert short.height == 4 + 4 + 14
    assert long.height == 4 + 4 + 4 * 14
    ink = np.asarray(long)[6:] < 128
    assert ink[:, 2:98].any()
    assert not ink[:, 99:].any()


def test_pairs_lie_over_each_other():
    drawn = pairs_grid(flat(10, 20, 30), flat(11, 21, 31), columns=2, padding=0)
    middles = [drawn.getpixel((x, y))[0] for y in (2, 6, 10, 14) for x in (2, 6)]
    assert middles == [10, 20, 11, 21, 30, 255, 31, 255]
    assert pairs_grid(flat(1), flat(2), captions=["a"]).size == (100, 4 + 4 + 14 + 6)


def test_a_strip_is_one_row():
    assert strip(flat(*range(7)), scale=2, padding=0).size == (56, 8)


@pytest.mark.parametrize(
    "call",
    [
        lambda: grid(flat(1).float(), 1),
        lambda: grid(flat(1)[:0], 1),
        lambda: grid(flat(1, channels=2), 1),
        lambda: grid(flat(1)[0], 1),
        lambda: grid(flat(1), 0),
        lambda: grid(flat(1), 1, scale=0),
        lambda: grid(flat(1), 1, captions=[]),
        lambda: pairs_grid(flat(1), flat(1, 2)),
        lambda: pairs_grid(flat(1), flat(1), columns=0),
        lambda: pairs_grid(flat(1), flat(1), captions=["a", "b"]),
        lambda: strip(flat(1)[:0]),
    ],
)
def test_grids_complain_at_the_door(call):
    with pytest.raises(ValueError, match=r"expected|at least"):
        call()
