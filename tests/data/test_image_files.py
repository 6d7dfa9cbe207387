import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_kit.config import UserError
from ldm_kit.data.image_files import BadPicture, load_image


def bomb(path, width, height):
    """A PNG of a few bytes whose header promises width x height pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""))
    return path


def save(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16"])
def test_every_mode_becomes_bytes(tmp_path, mode, channels):
    white = (
        Image.fromarray(np.full((20, 30), 65535, np.uint16))
        if mode == "I;16"
        else Image.new("RGB", (30, 20), "white").convert(mode)
    )
    path = save(tmp_path / ("x.tif" if mode == "CMYK" else "x.png"), white)
    picture = load_image(path, 8, channels)
    assert (picture.shape, picture.dtype) == ((channels, 8, 8), torch.uint8)
    assert picture.min() == 255


def test_sixteen_bits_keep_their_scale(tmp_path):
    for byte in (0, 100, 255):  # 255 is 65535: white stays white
        path = save(tmp_path / f"{byte}.png", Image.fromarray(np.full((9, 9), 257 * byte, np.uint16)))
        assert load_image(path, 8).unique().tolist() == [byte]


def test_transparency_shows_the_background(tmp_path):
    path = save(tmp_path / "x.png", Image.new("RGBA", (9, 9), (10, 20, 30, 0)))
    assert load_image(path, 4, 3, "#ff0080")[:, 0, 0].tolist() == [255, 0, 128]
    assert load_image(path, 4, 4)[3].max() == 0
    palette = Image.new("P", (9, 9), 0)
    palette.putpalette([1, 2, 3])
    save(tmp_path / "p.png", palette, transparency=0)
    assert load_image(tmp_path / "p.png", 4, 3, "#ff0080")[:, 0, 0].tolist() == [255, 0, 128]


def test_the_centre_is_kept_and_exif_turns(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = (200, 100, 50)
    path = save(tmp_path / "wide.png", Image.fromarray(pixels))
    assert load_image(path, 10).unique(dim=2).flatten().tolist() == [200] * 10 + [100] * 10 + [50] * 10
    corner = np.zeros((16, 16), np.uint8)
    corner[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    path = save(tmp_path / "turned.jpg", Image.fromarray(corner), exif=exif, quality=100)
    turned = load_image(path, 16, 1)[0].float()
    assert turned[:8, 8:].mean() > 240
    assert turned[:8, :8].mean() < 15


def test_extreme_shapes(tmp_path):
    assert load_image(save(tmp_path / "x.png", Image.new("L", (5000, 1), 7)), 8, 1).unique().tolist() == [7]


@pytest.mark.parametrize(("width", "height"), [(9_000, 8_000), (10_000, 10_000), (65_000, 65_000)])
def test_bombs_are_refused_by_their_header(tmp_path, width, height):
    with pytest.raises(BadPicture, match="limit of 64,000,000"):
        load_image(bomb(tmp_path / "bomb.png", width, height), 8)


def test_the_limit_is_the_callers(tmp_path):
    path = save(tmp_path / "x.png", Image.new("L", (11, 10)))
    with pytest.raises(BadPicture, match=r"11 x 10 = 110 pixels, over the limit of 100"):
        load_image(path, 8, pixel_limit=100)
    assert load_image(path, 8, pixel_limit=110).shape == (3, 8, 8)


def test_broken_files_are_named_with_the_reason(tmp_path):
    whole = save(tmp_path / "whole.jpg", Image.effect_noise((64, 64), 50)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    os.mkfifo(tmp_path / "pipe.png")
    save(tmp_path / "float.tif", Image.new("F", (9, 9)))
    reasons = {
        "cut.jpg": "truncated",
        "empty.png": "empty file",
        "text.png": "not an image",
        "program.eps": "not an image",
        "pipe.png": "not a regular file",
        "absent.png": "no such file",
        "n" * 300: "cannot be reached",
        "float.tif": "more than 16 bits",
    }
    for name, reason in reasons.items():
        with pytest.raises(BadPicture, match=reason) as caught:
            load_image(tmp_path / name, 8)
        assert str(caught.value).startswith(str(tmp_path / name))


def test_wrong_settings_are_told(tmp_path):
    path = save(tmp_path / "x.png", Image.new("L", (9, 9)))
    with pytest.raises(UserError, match="channels is 2"):
        load_image(path, 8, 2)
    with pytest.raises(UserError, match="unknown colour 'whit'"):
        load_image(path, 8, 3, "whit")
