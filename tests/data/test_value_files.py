"""Files of values: read as they were written, scaled as other pictures are, and refused in one sentence."""

import io

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from ldm_kit.config import UserError
from ldm_kit.data.image_files import BadPicture, load_image
from ldm_kit.data.tiff import open_pages
from ldm_kit.data.value_files import check_values_header, load_levels, load_values, read_values
from ldm_kit.data.value_range import ValueRange
from tests.data.value_files import png, tiff

FULL = ValueRange((0.0,), (65535.0,))
KINDS = ["u1", "u2", "u4", "i2", "i4", "f4", "f8"]


def values(*shape, kind="u2", seed=0):
    numbers = np.random.default_rng(seed).normal(size=shape) * 40
    if kind[0] == "f":
        return numbers.astype(kind)
    most = min(np.iinfo(kind).max, 2**31 - 1)
    return (np.abs(numbers) / 200 * most).clip(0, most).astype(kind) * (-1 if kind[0] == "i" else 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"order": ">", "rows": 4},
        {"planar": True, "rows": 5},
        {"tile": (16, 16)},
        {"tile": (16, 32), "planar": True, "order": ">"},
        {"deflate": True, "rows": 7},
    ],
)
def test_a_tiff_of_five_samples_is_read_as_written(tmp_path, kind, options):
    page = values(19, 37, 5, kind=kind).astype(kind)
    file = tiff(tmp_path / "a.tif", page, **options)
    read = read_values(file, 5)
    assert read.dtype == np.dtype(kind)
    assert np.array_equal(read, page.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["I;16", "F", "RGB", "L"])
@pytest.mark.parametrize("codec", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("predictor", [False, True])
def test_a_tiff_by_another_writer(tmp_path, mode, codec, predictor):
    kind = {"I;16": "u2", "F": "f4"}.get(mode, "u1")
    pages = [values(13, 21, *([3] if mode == "RGB" else []), kind=kind, seed=s) for s in range(3)]
    images = [Image.fromarray(page) for page in pages]
    more = {} if codec is None else {"compression": codec}
    if codec not in (None, "packbits") and predictor:
        more["tiffinfo"] = {317: 3 if mode == "F" else 2}
    images[0].save(tmp_path / "a.tif", save_all=True, append_images=images[1:], **more)
    expected = np.concatenate([page.transpose(2, 0, 1) if page.ndim == 3 else page[None] for page in pages])
    assert np.array_equal(read_values(tmp_path / "a.tif", len(expected)), expected)


def test_a_bigtiff_and_smaller_copies(tmp_path):
    page = values(20, 30)
    small = Image.fromarray(page[::2, ::2])
    small.encoderinfo = {"tiffinfo": {254: 1}}
    Image.fromarray(page).save(tmp_path / "a.tif", big_tiff=True, save_all=True, append_images=[small])
    assert (tmp_path / "a.tif").read_bytes()[2] == 43
    assert np.array_equal(read_values(tmp_path / "a.tif", 1), page[None])


@pytest.mark.parametrize("levels", [65536, 3])  # of few levels, many neighbours are equally near
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_of_16_bits_is_read_as_written(tmp_path, channels, levels):
    page = values(11, 14, channels) % np.uint32(levels)
    file = png(tmp_path / "a.png", page, filters=(4, 0, 1, 2, 3, 4))
    read = read_values(file, channels)
    assert np.array_equal(read, page.transpose(2, 0, 1))
    assert read.dtype == np.uint16
    with Image.open(file) as image:  # Pillow has the upper byte of each value
        upper = np.asarray(image).reshape(11, 14, -1)
    assert channels < 3 or np.array_equal(upper, page >> 8)


def test_a_png_of_16_bits_whose_contents_have_changed(tmp_path):
    data = bytearray(png(tmp_path / "a.png", values(9, 9, 3)).read_bytes())
    data[60] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(BadPicture, match="damaged or truncated"):
        read_values(tmp_path / "a.png", 3)


def test_arrays_have_channels_first_or_last(tmp_path):
    page = values(5, 12, 9)
    forms = {
        "first": page,
        "last": page.transpose(1, 2, 0),
        "fortran": np.asfortranarray(page),
        "big": page.astype(">u2"),
        "float": page.astype("f8"),
        "both": values(5, 12, 5),
    }
    for name, array in forms.items():
        np.save(tmp_path / f"{name}.npy", array)
        expected = array if name == "both" else page
        assert np.array_equal(read_values(tmp_path / f"{name}.npy", 5), expected), name
    np.save(tmp_path / "grey.npy", page[0])
    assert np.array_equal(read_values(tmp_path / "grey.npy", 1), page[:1])


@pytest.mark.parametrize("size", [(40, 40), (37, 64), (64, 21), (16, 16)])
def test_pictures_are_scaled_and_cropped_as_those_of_8_bits(tmp_path, size):
    y, x = np.mgrid[: size[0], : size[1]]
    page = (128 + 100 * np.sin(x / 5) * np.cos(y / 7)).astype("u1")
    Image.fromarray(page).save(tmp_path / "a.png")
    expected = load_image(tmp_path / "a.png", 16, 1).float()
    got = load_levels(tmp_path / "a.png", 16, 1, ValueRange((0.0,), (255.0,))).float() / 257
    assert (got - expected).abs().max() <= 1  # Pillow rounds after each of two passes
    np.save(tmp_path / "b.npy", page * 1000.0 - 7)
    shares = (load_values(tmp_path / "b.npy", 16, 1) + 7) / 1000
    torch.testing.assert_close(torch.from_numpy(shares), got, atol=0.01, rtol=0)


def test_a_ramp_of_16_bits_survives(tmp_path):
    page = np.arange(65536, dtype="u2").reshape(256, 256)
    file = png(tmp_path / "a.png", page[..., None])
    levels = load_levels(file, 256, 1, FULL)
    assert levels.dtype == torch.uint16
    assert np.array_equal(levels.numpy(), page[None])
    narrow = ValueRange((1000.0,), (3000.0,))
    back = narrow.values(load_levels(file, 256, 1, narrow)).numpy()
    inside = (page >= 1000) & (page <= 3000)
    assert np.abs(back[0] - page)[inside].max() <= 2000 / 65535 / 2 + 2e-4  # half a level, and float32
    assert {*back[0][~inside].tolist()} == {1000.0, 3000.0}


BAD = {
    "nan.npy": (lambda p: np.save(p, np.full((2, 9, 9), np.nan)), "holds NaN or infinity"),
    "inf.tif": (lambda p: tiff(p, np.full((9, 9, 2), np.inf, "f4")), "holds NaN or infinity"),
    "three.npy": (lambda p: np.save(p, np.zeros((3, 9, 9))), "has 3 channels; expected 2"),
    "three.tif": (lambda p: tiff(p, *[np.zeros((9, 9, 1), "u2")] * 3), "has 3 channels; expected 2"),
    "one.png": (lambda p: png(p, np.zeros((9, 9, 1), "u2")), "has 1 channel; expected 2"),
    "object.npy": (lambda p: np.save(p, np.array([[{}]], dtype=object)), "an array of type object"),
    "flat.npy": (lambda p: np.save(p, np.zeros(9)), "expected .H, W., or channels first or last"),
    "cut.npy": (lambda p: p.write_bytes(_saved(p)[:-9]), "broken or truncated"),
    "cut.tif": (lambda p: p.write_bytes(tiff(p, np.zeros((99, 99, 2), "u2")).read_bytes()[:100]), "truncated"),
    "cut.png": (lambda p: p.write_bytes(png(p, values(9, 9, 2)).read_bytes()[:60]), "broken or truncated"),
    "other.tif": (lambda p: tiff(p, np.zeros((9, 9, 1), "u2"), np.zeros((8, 9, 1), "u2")), "pages of several sizes"),
    "text.tif": (lambda p: p.write_text("no picture at all"), "not a TIFF file"),
    "empty.npy": (lambda p: p.write_bytes(b""), "an empty file"),
    "large.npy": (lambda p: np.save(p, np.zeros((2, 99, 99))), "99 x 99 pixels; expected 1 to 5,000"),
    "photo.jpg": (lambda p: Image.new("RGB", (9, 9)).save(p), "with data.range files are .npy"),
    "palette.png": (lambda p: Image.new("P", (9, 9)).save(p), "without a palette"),
}  # fmt: skip


def _saved(path):
    np.save(path, np.zeros((2, 9, 9)))
    return path.read_bytes()


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_used_is_said_in_one_sentence(tmp_path, name):
    write, message = BAD[name]
    write(tmp_path / name)
    with pytest.raises(BadPicture, match=message) as error:
        load_levels(tmp_path / name, 8, 2, FULL, 5000)
    assert "\n" not in str(error.value)
    assert str(tmp_path / name) in str(error.value)


def test_headers_alone_show_what_headers_can(tmp_path):
    np.save(tmp_path / "a.npy", np.full((2, 9, 9), np.nan))
    check_values_header(tmp_path / "a.npy", 2, 100)
    for channels, limit in ((3, 100), (2, 80)):
        with pytest.raises(BadPicture):
            check_values_header(tmp_path / "a.npy", channels, limit)
    with pytest.raises(BadPicture, match="no such file"):
        check_values_header(tmp_path / "b.npy", 2, 100)


def test_a_tiff_whose_directories_go_in_a_circle_ends(tmp_path):
    file = tiff(tmp_path / "a.tif", np.zeros((9, 9, 1), "u2"))
    data = bytearray(file.read_bytes())
    data[-4:] = data[4:8]  # the next directory is the first
    assert len(open_pages(io.BytesIO(data))) == 1


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_without_the_codecs_the_extra_is_named(tmp_path, monkeypatch, name):
    write = tiff if name == "a.tif" else png
    write(tmp_path / name, values(9, 9, 3))
    monkeypatch.setattr("ldm_kit.data.tiff.find_spec", lambda package: None if package == "imagecodecs" else True)
    with pytest.raises(UserError, match=r"need imagecodecs: pip install 'ldm_kit\[values\]'"):
        read_values(tmp_path / name, 3)


def test_palettes_and_inverted_greys_of_tiffs_are_refused(tmp_path):
    for mode, more in (("P", {}), ("L", {"tiffinfo": {262: 0}})):
        Image.new(mode, (9, 9)).save(tmp_path / "a.tif", **more)
        with pytest.raises(BadPicture, match="expected grey or RGB"):
            read_values(tmp_path / "a.tif", 1)


@pytest.mark.parametrize("kind", ["none", "lzw", "zlib", "zstd", "lzma", "packbits", "png", "npy"])
def test_damaged_files_are_bad_pictures_whatever_the_library_raises(tmp_path, kind):
    page, draws = values(3, 17, 19), np.random.default_rng(0)
    file = tmp_path / f"a.{kind if kind in ('png', 'npy') else 'tif'}"
    match kind:
        case "png":
            png(file, page.transpose(1, 2, 0))
        case "npy":
            np.save(file, page)
        case _:
            compression = None if kind == "none" else kind
            tifffile.imwrite(file, page, photometric="minisblack", compression=compression)
    whole = file.read_bytes()
    refused = 0
    for trial in range(60):
        data = bytearray(whole[: draws.integers(1, len(whole))] if trial % 3 == 0 else whole)
        for at in draws.integers(0, len(data) if trial % 3 < 2 else min(300, len(data)), size=3):
            data[at] = draws.integers(256)
        file.write_bytes(data)
        for read in (read_values, check_values_header):
            try:
                read(file, 3, 10_000)
            except BadPicture:
                refused += 1
    assert refused > 10
