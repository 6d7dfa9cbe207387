"""Colours of pictures with ICC profiles: what they mean in sRGB by formula, in every mode and through every source."""

import io
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import ExifTags, Image, ImageCms

from ldm_kit.data import colour_profiles
from ldm_kit.data.colour_profiles import conversion_of
from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.image_files import Encoded, load_image
from ldm_kit.data.parquet import ParquetConfig
from ldm_kit.data.sources import load
from ldm_kit.data.webdataset import WebDatasetConfig
from ldm_kit.editing.image_io import read_picture
from tests.data.archive_files import shard
from tests.data.profiles import (
    SPACES,
    cmyk_profile,
    encode_srgb,
    gamma,
    grey_profile,
    lab_meaning,
    meaning,
    rgb_profile,
)

COLOURS = [(100, 150, 200), (200, 60, 40), (30, 30, 30), (255, 255, 255), (90, 200, 90)]
ADOBE = "Adobe RGB (1998)"


def png(mode, colour, profile=None, kind="PNG"):
    buffer = io.BytesIO()
    Image.new(mode, (8, 8), colour).save(buffer, kind, icc_profile=profile)
    return buffer.getvalue()


def read(mode, colour, profile, channels=3, kind="PNG"):
    return load_image(Encoded("x", png(mode, colour, profile, kind)), 8, channels)[:, 0, 0].tolist()


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("space", SPACES)
def test_colours_are_those_that_the_profile_means(space, colour):
    assert read("RGB", colour, rgb_profile(space)) == pytest.approx(meaning(colour, space), abs=1)


def test_the_test_can_tell():
    """Read as sRGB, the first colour would be wrong by more than 20 levels in Adobe RGB and ProPhoto."""
    for space in (ADOBE, "ProPhoto RGB"):
        assert np.abs(meaning(COLOURS[0], space) - COLOURS[0]).max() > 20


def test_alpha_stays_and_its_colours_are_converted():
    found = read("RGBA", (*COLOURS[0], 77), rgb_profile(ADOBE), 4)
    assert found == pytest.approx([*meaning(COLOURS[0], ADOBE), 77], abs=1)


def test_palettes_and_greys_are_colours_of_their_profile():
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette(COLOURS[0])
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", icc_profile=rgb_profile(ADOBE))
    found = load_image(Encoded("x", buffer.getvalue()), 8)[:, 0, 0].tolist()
    assert found == pytest.approx(meaning(COLOURS[0], ADOBE), abs=1)
    prophoto = rgb_profile("ProPhoto RGB")
    assert read("L", 100, prophoto, 1) == pytest.approx(meaning((100, 100, 100), "ProPhoto RGB")[:1], abs=1)


@pytest.mark.parametrize("exponent", [1.0, 1.8])
def test_grey_profiles(exponent):
    profile = grey_profile(gamma(exponent))
    expected = encode_srgb((100 / 255) ** exponent)
    assert read("L", 100, profile, 1) == pytest.approx([expected], abs=1)
    assert read("LA", (100, 50), profile, 4) == pytest.approx([expected] * 3 + [50], abs=1)
    deep, buffer = Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)), io.BytesIO()
    deep.save(buffer, "PNG", icc_profile=profile)
    assert load_image(Encoded("x", buffer.getvalue()), 8, 1).unique().tolist() == pytest.approx([expected], abs=1)


def ink(c, m, y, k):
    """White paper, black where there is key, and inks of L*a*b* that sRGB holds."""
    return ((1 - k) * (100 - 15 * (c + m + y)), (1 - k) * (20 * m - 20 * c), (1 - k) * (30 * y - 15 * c))


@pytest.mark.parametrize("inks", [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 1, 0), (0, 1, 1, 0), (0, 0, 0, 1)])
def test_cmyk_profiles(inks):
    found = read("CMYK", tuple(255 * i for i in inks), cmyk_profile(ink), kind="TIFF")
    assert found == pytest.approx(lab_meaning(ink(*inks)), abs=2)


def test_lab_pictures_are_read():
    """L*a*b* (60, 0, 20) in the bytes of TIFF."""
    buffer = io.BytesIO()
    Image.frombytes("LAB", (8, 8), bytes([153, 0, 20]) * 64).save(buffer, "TIFF")
    found = load_image(Encoded("x", buffer.getvalue()), 8)[:, 0, 0].tolist()
    assert found == pytest.approx(lab_meaning((60, 0, 20)), abs=2)


def test_pictures_in_srgb_are_not_touched():
    picture = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    for profile in (
        rgb_profile("sRGB IEC61966-2.1"),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ):
        picture.info["icc_profile"] = profile
        assert conversion_of(picture).apply(picture) is picture


def chunk(kind, *values):
    """A chunk of a PNG; values are counted in 1e-5."""
    body = kind + b"".join(struct.pack(">I", round(value * 1e5)) for value in values)
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def with_chunks(contents, *chunks):
    """A PNG with further chunks after its header of 33 bytes."""
    return contents[:33] + b"".join(chunks) + contents[33:]


def test_a_png_that_names_primaries_and_gamma_is_converted():
    primaries, white, _ = SPACES["Display P3"]
    named = chunk(b"cHRM", *white, *(x for point in primaries for x in point))
    file = with_chunks(png("RGB", COLOURS[0]), chunk(b"gAMA", 0.45455), named)
    assert load_image(Encoded("x", file), 8)[:, 0, 0].tolist() == pytest.approx(
        meaning(COLOURS[0], "Display P3"), abs=1
    )
    linear = with_chunks(png("L", 100), chunk(b"gAMA", 1.0))
    assert load_image(Encoded("x", linear), 8, 1).unique().tolist() == pytest.approx([encode_srgb(100 / 255)], abs=1)


def test_a_png_that_names_srgb_is_not_touched():
    """By the usual gamma and primaries, or by its sRGB chunk, which outweighs a gamma."""
    primaries, white, _ = SPACES["sRGB IEC61966-2.1"]
    usual = [chunk(b"gAMA", 0.45455), chunk(b"cHRM", *white, *(x for point in primaries for x in point))]
    mark = struct.pack(">I", 1) + b"sRGB\0" + struct.pack(">I", zlib.crc32(b"sRGB\0"))
    for chunks in (usual, [chunk(b"gAMA", 1.0), mark]):
        file = with_chunks(png("RGB", COLOURS[0]), *chunks)
        assert load_image(Encoded("x", file), 8)[:, 0, 0].tolist() == [*COLOURS[0]]


@pytest.mark.parametrize(
    "chunks", [[("gAMA", 0)], [("gAMA", 0.5), ("cHRM", *[0] * 8)], [("gAMA", 0.5), ("cHRM", *[0.3] * 8)]]
)
def test_primaries_that_mean_nothing_are_named(chunks, tmp_path, caplog):
    file = with_chunks(png("RGB", COLOURS[0]), *(chunk(kind.encode(), *values) for kind, *values in chunks))
    (tmp_path / "x.png").write_bytes(file)
    assert read_picture(tmp_path / "x.png", 8, 3)[:, 0, 0].tolist() == [*COLOURS[0]]
    assert "x.png: broken profile" in caplog.text


def test_a_camera_set_to_adobe_rgb_is_known_by_its_exif():
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[0xA005] = {1: "R03"}
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), COLOURS[0]).save(buffer, "JPEG", quality=100, exif=exif, subsampling=0)
    found = load_image(Encoded("x", buffer.getvalue()), 8)[:, 0, 0].tolist()
    assert found == pytest.approx(meaning(COLOURS[0], ADOBE), abs=3)


def test_a_profile_that_cannot_be_unpacked_is_named(tmp_path, caplog):
    body = b"iCCPx\0\0" + b"no zlib"
    broken = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "x.png").write_bytes(with_chunks(png("RGB", COLOURS[0]), broken))
    assert read_picture(tmp_path / "x.png", 8, 3)[:, 0, 0].tolist() == [*COLOURS[0]]
    assert "x.png: broken profile" in caplog.text


UNUSABLE = {
    "text": (b"not a profile", "RGB", "broken profile"),
    "cut": (rgb_profile(ADOBE)[:300], "RGB", "broken profile"),
    "of other colours": (cmyk_profile(ink), "RGB", "its profile an ink is of CMYK and its pixels are RGB"),
    "of greys": (grey_profile(gamma(1)), "RGB", "its profile a grey is of GRAY and its pixels are RGB"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_profiles_are_named_and_the_pixels_kept(name, tmp_path, caplog):
    profile, mode, problem = UNUSABLE[name]
    path = tmp_path / "x.png"
    path.write_bytes(png(mode, COLOURS[0], profile))
    assert read_picture(path, 8, 3)[:, 0, 0].tolist() == [*COLOURS[0]]
    assert f"x.png: {problem}" in caplog.text
    assert "its colours are read as sRGB" in caplog.text


def test_a_pillow_without_littlecms_says_so(monkeypatch, tmp_path, caplog):
    def absent(_):
        raise ImportError("The _imagingcms C module is not installed")

    monkeypatch.setattr(colour_profiles, "ImageCms", SimpleNamespace(ImageCmsProfile=absent))
    colour_profiles._profile_conversion.cache_clear()
    (tmp_path / "x.png").write_bytes(png("RGB", COLOURS[0], rgb_profile(ADOBE)))
    assert read_picture(tmp_path / "x.png", 8, 3)[:, 0, 0].tolist() == [*COLOURS[0]]
    colour_profiles._profile_conversion.cache_clear()
    assert "_imagingcms C module is not installed" in caplog.text


def contents(converted):
    """Four pictures: two in Adobe RGB if `converted`, else in sRGB, one in sRGB, one with a broken profile."""
    profiles = [rgb_profile(ADOBE if converted else "sRGB IEC61966-2.1")] * 2 + [None, b"broken"]
    return [png("RGB", COLOURS[0], profile) for profile in profiles]


def folder(root, files, **options):
    root.mkdir()
    for i, file in enumerate(files):
        (root / f"{i}.png").write_bytes(file)
    return FolderConfig(path=root, resolution=8, heldout=0, **options)


def on_demand(root, files):
    return folder(root, files, memory_limit=0)


def unverified(root, files):
    return folder(root, files, memory_limit=0, verify=False)


def tars(root, files):
    path = shard(root / "a.tar", *((f"{i}.png", file) for i, file in enumerate(files)))
    return WebDatasetConfig(path=path, resolution=8, heldout=0, cache=root / "cache")


def table(root, files):
    root.mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"image": files}), root / "a.parquet")
    return ParquetConfig(path=root / "a.parquet", resolution=8, heldout=0, cache=root / "cache")


@pytest.mark.parametrize("source", [folder, on_demand, unverified, tars, table])
def test_every_source_converts_counts_and_says(source, tmp_path, caplog):
    config = source(tmp_path / "x", contents(converted=True))
    for _ in range(2):  # the second time from the index
        caplog.clear()
        split = load(config)
        found = split.train.pictures(range(4))[:, :, 0, 0].tolist()
        expected = meaning(COLOURS[0], ADOBE)
        assert found == [pytest.approx(expected, abs=1)] * 2 + [[*COLOURS[0]]] * 2
        assert f"converted the colours of 2 of 4 pictures in {config.path} to sRGB (2 of {ADOBE})" in caplog.text
        assert f"1 of 4 pictures in {config.path} have a colour profile that cannot be used" in caplog.text
        assert "3.png: broken profile" in caplog.text or "00000003: broken profile" in caplog.text


@pytest.mark.parametrize("source", [folder, tars])
def test_a_set_whose_colours_are_converted_is_another_one_than_before(source, tmp_path, monkeypatch):
    """Latents that were cached from unconverted pixels are not taken for it; sets in sRGB keep their fingerprint."""
    plain, converted = (source(tmp_path / name, contents(name == "c")) for name in "pc")
    found = [load(config).train.fingerprint for config in (plain, converted)]
    monkeypatch.setattr(colour_profiles.ProfileCounts, "settings", [])
    before = [load(config).train.fingerprint for config in (plain, converted)]
    assert found[0] == before[0]
    assert found[1] != before[1]
