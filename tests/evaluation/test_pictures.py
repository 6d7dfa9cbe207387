import json
import random

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

from ldm_kit.config import UserError
from ldm_kit.viz.curves import _panel, _series
from ldm_kit.viz.grid import curves, file_name, grid, pairs_grid, read_metadata, save_png, strip
from ldm_kit.viz.png import tolerate_oserror


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


def test_metadata_comes_back(tmp_path):
    told = {"prompt": "κόσμε, 👩‍🚀\nsecond line", "seed": "7", "settings": '{"steps": 50}', "long": "x" * 100_000}
    path = tmp_path / "new" / "a.png"
    save_png(Image.new("RGB", (3, 2), "red"), path, told)
    assert read_metadata(path) == told
    with Image.open(path) as image:
        assert image.getpixel((2, 1)) == (255, 0, 0)
    save_png(Image.new("L", (1, 1)), path)  # over the old one
    assert read_metadata(path) == {}
    save_png(Image.new("L", (1, 1)), path, {"prompt": "a\0b\ud800"})
    assert read_metadata(path) == {"prompt": "a b?"}


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_png(Image.new("L", (1, 1)), path, {"seed": "1"})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save_png(Image.new("L", (1, 1)), path, {"seed": "2"})
    assert read_metadata(path) == {"seed": "1"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("key", ["", " a", "x" * 80, "κ", "a\nb"])
def test_bad_metadata_keys_are_refused(key, tmp_path):
    with pytest.raises(ValueError, match="1 to 79"):
        save_png(Image.new("L", (1, 1)), tmp_path / "a.png", {key: "x"})


def test_no_metadata_of_what_is_no_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    for name in ("a.png", "missing.png"):
        with pytest.raises(UserError, match=name):
            read_metadata(tmp_path / name)


def hostile_prompts(count=200):
    bits = [
        "../",
        "..\\",
        "\0",
        "\n",
        "\r",
        "\u202e",
        "\u2066",
        "CON",
        "NUL.txt",
        "-",
        "--rf",
        "~",
        "$HOME",
        "`id`",
        "/",
    ]
    bits += [
        "C:\\",
        "|",
        ";rm",
        "%2e%2e",
        "👩🏽‍🚀",
        "\ufdfa",
        "é",
        "ß",
        "İ",
        "\ud800",
        "a" * 400,
        "日本",
        " ",
        ".",
        "x",
        "\x7f",
    ]
    draw = random.Random(0)
    return ["", *bits, *("".join(draw.choices(bits, k=draw.randint(1, 8))) for _ in range(count - len(bits) - 1))]


def test_no_prompt_leaves_the_folder(tmp_path):
    prompts = hostile_prompts()
    assert len(prompts) == 200
    addresses = [(seed, index) for seed in (0, 123_456_789, 2**64 - 1) for index in (0, 1_234_567)]
    names = {file_name(s, i, prompt) for prompt in prompts for s, i in addresses}
    for prompt in prompts:
        assert len({file_name(s, i, prompt) for s, i in addresses}) == len(addresses)
    for name in names:
        seed, index, slug = name.removesuffix(".png").split("-", 2)
        assert (len(seed) >= 8, len(index) >= 5, (seed + index).isdigit()) == (True, True, True)
        assert 1 <= len(slug) <= 60
        assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert slug.strip("-") == slug
        assert len(name.encode()) <= 255
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    for number, prompt in enumerate(prompts):
        save_png(Image.new("L", (1, 1)), tmp_path / file_name(3, number, prompt), {"prompt": prompt})
    assert len(list(tmp_path.iterdir())) == 200


def test_the_name_says_what_it_can():
    assert file_name(7, 3, "Flag of Curaçao, red & white!") == "00000007-00003-flag-of-curacao-red-white.png"
    assert file_name(7, 3, "../../") == "00000007-00003-picture.png"
    with pytest.raises(ValueError, match="seed must lie in 0"):
        file_name(-1, 0, "x")
    with pytest.raises(ValueError, match="index must lie in 0"):
        file_name(0, 2**64, "x")


def write_metrics(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"step": 99, "lo')


def test_curves_draw_a_png_without_global_state(tmp_path):
    entries = [{"step": s, "loss": 1 / (s + 1), "lr": 1e-4, "phase": "train"} for s in range(100)]
    entries += [{"step": 50, "loss": float("nan")}, {"note": 1}, {"step": 60, "loss_b": -1.0}]
    write_metrics(tmp_path / "metrics.jsonl", entries)
    before = dict(matplotlib.rcParams)
    curves(tmp_path / "metrics.jsonl", tmp_path / "all.png")
    curves(tmp_path / "metrics.jsonl", tmp_path / "one.png", ["loss"])
    for name, size in (("all.png", (1800, 384)), ("one.png", (600, 384))):
        with Image.open(tmp_path / name) as image:
            assert image.size == size
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_losses_are_logarithmic_where_positive(tmp_path):
    write_metrics(tmp_path / "m.jsonl", [{"step": s, "loss": s + 1, "loss_d": s - 1, "lr": 1.0} for s in (0, 1, 1, 2)])
    series = _series(tmp_path / "m.jsonl")
    assert series["loss"] == {0: 1, 1: 2, 2: 3}
    scales = []
    for key in series:
        axes = Figure().add_subplot()
        _panel(axes, key, series[key])
        scales.append(axes.get_yscale())
    assert dict(zip(series, scales, strict=True)) == {"loss": "log", "loss_d": "linear", "lr": "linear"}


def test_curves_complain_at_the_door(tmp_path):
    path = tmp_path / "m.jsonl"
    with pytest.raises(UserError, match="cannot read"):
        curves(path, tmp_path / "a.png")
    path.write_text("[]\n{}\n")
    with pytest.raises(UserError, match="no line such as"):
        curves(path, tmp_path / "a.png")
    write_metrics(path, [{"step": 1, "loss": 1.0}])
    with pytest.raises(UserError, match="no 'los'; known: loss"):
        curves(path, tmp_path / "a.png", ["los"])
    assert not (tmp_path / "a.png").exists()


def test_a_picture_that_can_be_spared_costs_a_warning_alone(tmp_path, caplog):
    (tmp_path / "pictures").write_text("no folder")
    out = tmp_path / "pictures" / "a.png"
    with tolerate_oserror(out):
        save_png(Image.new("L", (4, 4)), out)
    assert f"could not write {out}" in caplog.text
    with pytest.raises(ValueError, match="4"), tolerate_oserror(out):
        raise ValueError(4)
