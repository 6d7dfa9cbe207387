"""Kinds of files: what Pillow opens is read, and what is left out of a set is counted and named."""

import io

import pytest
import torch
from PIL import Image

from ldm_kit.data import image_kinds, left_out
from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.image_files import BadPicture, Encoded, load_image
from ldm_kit.data.sources import load
from ldm_kit.data.webdataset import WebDatasetConfig
from tests.data.archive_files import encoded, shard

KINDS = {
    ".jfif": "JPEG",
    ".JPE": "JPEG",
    ".apng": "PNG",
    ".dib": "DIB",
    ".pnm": "PPM",
    ".avif": "AVIF",
    ".jp2": "JPEG2000",
    ".tga": "TGA",
    ".TGA": "TGA",
    ".qoi": "QOI",
    ".pcx": "PCX",
    ".sgi": "SGI",
    ".dds": "DDS",
    ".ico": "ICO",
}


def picture(kind):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", KINDS)
def test_what_pillow_opens_is_read_from_folders_and_tars(tmp_path, suffix, caplog):
    (tmp_path / f"a{suffix}").write_bytes(picture(KINDS[suffix]))
    folder = load(FolderConfig(path=tmp_path, resolution=8, heldout=0)).train
    path = shard(tmp_path / "x.tar", (f"a{suffix}", picture(KINDS[suffix])))
    tars = load(WebDatasetConfig(path=path, resolution=8, heldout=0, cache=tmp_path / "cache")).train
    for pictures in (folder, tars):
        found = pictures.picture(0).float().mean((1, 2))
        assert torch.allclose(found, torch.tensor([200.0, 100, 50]), atol=3), found
    assert caplog.text == ""


def test_kinds_without_a_mark_are_taken_by_their_suffix_alone():
    assert load_image(Encoded("a.tga", picture("TGA")), 8).shape == (3, 8, 8)
    for name in ("a.png", "a"):
        with pytest.raises(BadPicture, match="not an image of a known kind"):
            load_image(Encoded(name, picture("TGA")), 8)


def test_formats_that_this_pillow_lacks_are_neither_read_nor_tried(monkeypatch):
    """As in a Pillow before 11.3, whose table of formats has no AVIF."""
    image_kinds._formats.cache_clear()
    monkeypatch.delitem(Image.OPEN, "AVIF")
    monkeypatch.setattr(Image, "init", lambda: True)
    with pytest.raises(BadPicture, match="not an image of a known kind"):
        load_image(Encoded("a.avif", b"\0\0\0\x1cftypavif" + b"\0" * 99), 8)
    image_kinds._formats.cache_clear()


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(9) if name.endswith(("png", "PNG")) else b"?")


def test_files_that_are_not_read_are_counted_by_suffix_in_one_line(tmp_path, caplog):
    make(tmp_path, "0.png", "1.PNG", "a.xyz", "b.xyz", "c.raw", "d.Mov", "e", "notes.txt", "x.json", ".hidden.raw")
    assert len(load(FolderConfig(path=tmp_path, resolution=8, heldout=0)).train) == 2
    (record,) = caplog.records
    said = f"{tmp_path}: 5 files of kinds that are not read are left out: 2 .xyz, 1 .raw, 1 .mov, 1 without a suffix"
    assert sorted(record.getMessage().replace(", ", " ").split()) == sorted(said.replace(", ", " ").split())


def test_a_package_is_named_that_reads_what_is_left_out(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(left_out, "is_picture", lambda name: name.endswith(".png"))
    make(tmp_path, "0.png", "a.heic", "b.jxl")
    left_out.log_unread(tmp_path, ["0.png", "a.heic", "b.jxl"])
    assert "1 .heic, 1 .jxl (install pillow-heif and pillow-jxl-plugin for them)" in caplog.text


def test_class_folders_count_all_that_is_not_read(tmp_path, caplog):
    make(tmp_path, "cat/0.png", "dog/1.png", "cat/a.eps", "dog/b.eps")
    assert len(load(FolderConfig(path=tmp_path, resolution=8, heldout=0)).train) == 2
    assert f"{tmp_path}: 2 files of kinds that are not read are left out: 2 .eps" in caplog.text


def test_pictures_that_a_table_does_not_list_are_counted_and_named(tmp_path, caplog):
    make(tmp_path, *(f"{i}.png" for i in range(9)), "in/x.png", "y.heic")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png"}\n{"file_name": "./1.png"}')
    assert len(load(FolderConfig(path=tmp_path, resolution=8, heldout=0)).train) == 2
    said = "8 pictures are not listed in metadata.jsonl and are left out: 2.png, 3.png, 4.png, 5.png, 6.png, and 3 more"
    assert f"{tmp_path}: {said}" in caplog.text


def test_a_table_that_lists_all_says_nothing(tmp_path, caplog):
    make(tmp_path, "0.png", "in/x.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png"}\n{"file_name": "in/x.png"}')
    load(FolderConfig(path=tmp_path, resolution=8, heldout=0))
    assert caplog.text == ""
