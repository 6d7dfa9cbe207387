import random

import pytest
from PIL import Image

from ldm_kit.config import UserError
from ldm_kit.viz.png import file_name, next_index, read_metadata, save_png, tolerate_oserror


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


def test_the_next_index_is_free_whatever_lies_in_the_folder(tmp_path):
    assert next_index(tmp_path / "absent") == next_index(tmp_path) == 0
    for name in ("grid.png", "2026-11-27-cat.png", "00000001-00099-cat.txt", "x00000001-00098-cat.png"):
        (tmp_path / name).touch()
    assert next_index(tmp_path) == 0
    for seed, index in ((7, 9), (2**64 - 1, 3), (0, 123456)):
        (tmp_path / file_name(seed, index, "a cat")).touch()
    assert next_index(tmp_path) == 123457


def test_a_picture_that_can_be_spared_costs_a_warning_alone(tmp_path, caplog):
    (tmp_path / "pictures").write_text("no folder")
    out = tmp_path / "pictures" / "a.png"
    with tolerate_oserror(out):
        save_png(Image.new("L", (4, 4)), out)
    assert f"could not write {out}" in caplog.text
    with pytest.raises(ValueError, match="4"), tolerate_oserror(out):
        raise ValueError(4)
