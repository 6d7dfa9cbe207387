"""Masks: what is new in the file is new in the model's pixels and latents, however thin, and nothing else is."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_kit.config import UserError
from ldm_kit.editing.inpainting import latent_mask
from ldm_kit.editing.masks import read_mask


def saved(path, size, mode="RGB", colour=128):
    Image.new(mode, size, colour if mode == "L" else (colour,) * len(mode)).save(path)
    return path


def save(path, image, **options):
    image.save(path, **options)
    return path


def half(path, size):
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    mask.save(path)
    return path


def test_masks(tmp_path, caplog):
    picture = saved(tmp_path / "p.png", (32, 32))
    mask = read_mask(half(tmp_path / "m.png", (32, 32)), 16, picture)
    assert (mask.dtype, mask.shape, caplog.text) == (torch.bool, (16, 16), "")
    assert mask[:, :8].all()
    assert not mask[:, 8:].any()
    other = read_mask(half(tmp_path / "n.png", (10, 20)), 16, picture)
    assert torch.equal(other, mask)
    assert "the mask n.png is 10 x 20 pixels and the picture 32 x 32; resized" in caplog.text


def test_a_mask_is_cropped_as_its_picture_is(tmp_path):
    """Of a wide picture the centre half is left, from 16 to 48; white up to 24 is a quarter of that."""
    mask = Image.new("L", (64, 32), 0)
    mask.paste(255, (0, 0, 24, 32))
    mask.save(tmp_path / "m.png")
    found = read_mask(tmp_path / "m.png", 16, saved(tmp_path / "p.png", (64, 32)))
    assert found.float().mean(0).tolist() == [1.0] * 4 + [0.0] * 12


@pytest.mark.parametrize(("colour", "said"), [(0, "the mask is empty"), (255, "white all over and keeps nothing")])
def test_useless_masks(tmp_path, colour, said):
    picture = saved(tmp_path / "p.png", (16, 16))
    with pytest.raises(UserError, match=said):
        read_mask(saved(tmp_path / "m.png", (16, 16), "L", colour), 16, picture)


@pytest.mark.parametrize("place", [0, 1, 37, 63, 127])
@pytest.mark.parametrize("horizontal", [False, True])
def test_a_line_of_one_pixel_stays_and_is_one_cell_wide(tmp_path, place, horizontal):
    """Of 128 pixels 8 fall into each of 16 cells: the line is in one column of cells, wherever it lies."""
    mask = np.zeros((128, 128), np.uint8)
    mask[:, place] = 255
    mask = mask.T if horizontal else mask
    path = save(tmp_path / "m.png", Image.fromarray(np.ascontiguousarray(mask)))
    found = read_mask(path, 16, saved(tmp_path / "p.png", (128, 128)))
    assert torch.equal(found.T if horizontal else found, (torch.arange(16) == place // 8).expand(16, 16))
    latents = latent_mask(found, (4, 4))[0, 0]
    assert torch.equal(latents.T if horizontal else latents, (torch.arange(4) == place // 32).expand(4, 4))


def test_one_pixel_of_a_large_mask_is_enough(tmp_path):
    mask = Image.new("1", (999, 999), 0)
    mask.putpixel((500, 7), 1)
    found = read_mask(save(tmp_path / "m.png", mask), 8, saved(tmp_path / "p.png", (999, 999)))
    assert found.nonzero().tolist() == [[0, 4]]


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (255, 0, 0)])
def test_strokes_on_a_transparent_layer_are_new(tmp_path, caplog, colour):
    layer = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    layer.paste((*colour, 255), (4, 0, 8, 16))
    found = read_mask(save(tmp_path / "m.png", layer), 16, saved(tmp_path / "p.png", (16, 16), colour=255))
    columns = torch.arange(16)
    assert torch.equal(found, ((columns >= 4) & (columns < 8)).expand(16, 16))
    assert "m.png has transparency; what is opaque, whatever its colour, is sampled again" in caplog.text


def test_an_erased_part_of_a_white_layer_is_kept(tmp_path):
    layer = Image.new("LA", (16, 16), (255, 255))
    layer.paste((255, 0), (0, 0, 16, 4))
    found = read_mask(save(tmp_path / "m.png", layer), 16, saved(tmp_path / "p.png", (16, 16)))
    assert torch.equal(found, (torch.arange(16) >= 4)[:, None].expand(16, 16))


def test_an_erased_part_of_the_picture_is_new(tmp_path, caplog):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    erased = picture.copy()
    hole = Image.new("L", (16, 16), 255)
    hole.paste(0, (0, 0, 5, 16))
    erased.putalpha(hole)
    found = read_mask(save(tmp_path / "m.png", erased), 16, save(tmp_path / "p.png", picture))
    assert torch.equal(found, (torch.arange(16) < 5).expand(16, 16))
    assert "m.png is the picture with a part erased; what is transparent is sampled again" in caplog.text


def test_masks_are_read_as_pictures_are(tmp_path):
    """Turned by EXIF, and 16 bits scaled: the left half white, marked to be turned clockwise, is the upper half."""
    picture, half_white = saved(tmp_path / "p.png", (16, 16)), np.zeros((16, 16), np.uint16)
    half_white[:, :8] = 65535
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = save(tmp_path / "turned.png", Image.fromarray((half_white // 257).astype(np.uint8)), exif=exif)
    assert torch.equal(read_mask(turned, 16, picture), (torch.arange(16) < 8)[:, None].expand(16, 16))
    deep = save(
        tmp_path / "deep.png", Image.fromarray(np.where(half_white > 0, half_white, 100 * 257).astype(np.uint16))
    )
    assert torch.equal(read_mask(deep, 16, picture), (torch.arange(16) < 8).expand(16, 16))


def test_masks_that_leave_nothing_after_scaling_say_so(tmp_path):
    outside = Image.new("L", (64, 16), 0)
    outside.paste(255, (0, 0, 4, 16))
    with pytest.raises(UserError, match="lies outside the centre to which the picture is cropped"):
        read_mask(save(tmp_path / "o.png", outside), 16, saved(tmp_path / "p.png", (64, 16)))
    dots = Image.fromarray(np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 255)
    with pytest.raises(UserError, match="white in every one of 16 x 16 pixels and keeps nothing"):
        read_mask(save(tmp_path / "d.png", dots), 16, saved(tmp_path / "q.png", (64, 64)))


@pytest.mark.parametrize("size", [(8, 16), (16, 8)])
def test_a_mask_is_cropped_to_the_shape_that_is_asked_for(tmp_path, size):
    """The picture is 40 x 40: of 8 x 16 pixels the middle half of its rows is left, of 16 x 8 that of its columns."""
    picture, mask = saved(tmp_path / "p.png", (40, 40)), np.zeros((40, 40), np.uint8)
    mask[:10] = 255
    mask[20:25, 20:25] = 255
    mask = mask if size[0] > size[1] else mask.T
    image = Image.fromarray(np.ascontiguousarray(mask))
    loaded = read_mask(save(tmp_path / "m.png", image), size, picture)
    expected = torch.zeros(16, 8, dtype=torch.bool)
    expected[:4] = True
    expected[8:10, 4:6] = True
    assert torch.equal(loaded, expected if size[0] > size[1] else expected.T)
