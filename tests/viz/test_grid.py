import numpy as np
import pytest
import torch

from ldm_kit.viz import grid as viz_grid
from ldm_kit.viz.grid import MAX_SIDE, columns_for, enlargement, grid, pairs_grid, strip, to_image


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


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_channels_are_kept_by_pictures_and_grids(channels, mode):
    pictures = torch.randint(256, (4, channels, 8, 8), dtype=torch.uint8)
    alone, lattice = to_image(pictures[1]), grid(pictures, 2, padding=1, captions=["a"] * 4)
    pairs = pairs_grid(pictures, pictures, columns=2, padding=0)
    assert (alone.mode, lattice.mode, pairs.mode) == (mode,) * 3
    expected = pictures[1].permute(1, 2, 0).numpy()
    expected = expected[..., 0] if channels == 1 else expected
    assert np.array_equal(np.asarray(alone), expected)
    assert np.array_equal(np.asarray(lattice)[1:9, 98 + 44 : 98 + 52], expected)
    assert np.array_equal(np.asarray(pairs)[16:24, 8:16], np.asarray(to_image(pictures[3])))
    white = {"L": 255, "RGB": (255,) * 3, "RGBA": (255,) * 4}[mode]
    assert lattice.getpixel((0, 0)) == white
    assert np.asarray(lattice.crop((2, 9, 98, 23)).convert("L")).min() < 100  # the caption


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
def test_grids_refuse_bad_input(call):
    with pytest.raises(ValueError, match=r"expected|at least"):
        call()


@pytest.mark.parametrize(
    ("side", "count", "row"), [(128, 400, 1), (128, 400, 400), (128, 16, 4), (256, 64, 8), (32, 400, 4), (128, 48, 6)]
)
def test_a_grid_is_legible_and_no_larger_than_its_cap(side, count, row, monkeypatch):
    """A quarter of the sizes that are usual: within the cap, about as high as wide, pictures of at least 28 pixels."""
    monkeypatch.setattr(viz_grid, "MAX_SIDE", 800)
    pictures = torch.zeros(1, 1, side, side, dtype=torch.uint8).expand(count, -1, -1, -1)
    columns = columns_for(count, row)
    found = grid(pictures, columns, enlargement(side), padding=2)
    assert max(found.size) <= 800
    assert 1 / 3 < found.width / found.height < 3
    assert (np.asarray(found) < 128).sum(1).max() / columns >= 28


def test_pictures_are_shrunk_antialiased_and_only_where_they_must_be():
    """A board of single black and white pixels becomes grey, of 127.5; the cap is on the grid and not on a picture."""
    board = ((torch.arange(1000)[:, None] + torch.arange(1000)) % 2 * 255).byte()
    pictures = board[None, None].expand(8, 1, -1, -1)
    found = np.asarray(grid(pictures, 8, padding=0))
    assert found.shape == (MAX_SIDE // 8, MAX_SIDE)
    assert np.abs(found[50:350, 50:350].astype(int) - 127.5).max() < 20
    assert np.array_equal(np.asarray(to_image(pictures[0])), board.numpy())
    assert np.array_equal(np.asarray(grid(pictures[:3], 3, padding=0)), np.tile(board.numpy(), 3))


def test_columns():
    """A row stays whole: 120 pictures of 30 prompts with 4 seeds each lie in rows of two prompts."""
    assert [columns_for(*case) for case in [(3, 3), (16, 16), (17, 17), (400, 1), (400, 400), (120, 4), (1, 1)]] == [
        *(3, 16, 5, 20, 20, 8, 1)
    ]
    assert [enlargement(side) for side in (8, 32, 64, 95, 96, 512)] == [12, 3, 2, 2, 1, 1]
