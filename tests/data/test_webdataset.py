import json
import logging
import os
import tarfile

import pytest
import torch
from PIL import Image

from ldm_kit import config as configs
from ldm_kit.config import Config, UserError
from ldm_kit.data import webdataset
from ldm_kit.data.batches import PictureBatches
from ldm_kit.data.folder import FolderConfig, load_all
from ldm_kit.data.sources import DataConfig
from ldm_kit.data.sources import load as load_source
from ldm_kit.data.webdataset import WebDatasetConfig, load
from ldm_kit.training.batches import BatchSplit, StepBatchSampler, loader
from tests.data.archive_files import encoded, greys, member, noise, shard
from tests.data.test_image_files import bomb


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))


def config(path, **more):
    return WebDatasetConfig(path=path, resolution=8, **more)


def everything(path, **more):
    """All pictures, none held out."""
    return load(config(path, heldout=0.0, **more)).train


def test_members_of_one_name_are_one_sample(tmp_path):
    told = {"caption": "a ball", "label": "round", "mood": {"calm": 1}, "left": "out"}
    shard(
        tmp_path / "in" / "a.tar",
        ("v1.0/x.json", json.dumps(told).encode()),
        ("v1.0/x.seg.png", b"not the picture"),
        ("v1.0/x.PNG", encoded(7)),
        ("y.jpg", encoded(9, kind="JPEG")),
        ("y.txt", " über\n".encode()),
        ("y.cls", b"angular\n"),
        ("y.json", b'{"text": "not this one"}'),
        ("._y.jpg", b"left by a Mac"),
        ("README", b"passed over"),
        (member("folder/", tarfile.DIRTYPE), b""),
    )
    pictures = everything(tmp_path / "in", fields=("mood", "absent"))
    assert [r.name for r in pictures.records] == ["a.tar/v1.0/x.png", "a.tar/y.jpg"]
    assert [r.text for r in pictures.records] == ["a ball", "über"]
    assert (pictures.classes, [r.label for r in pictures.records]) == (["angular", "round"], [1, 0])
    assert [dict(r.fields) for r in pictures.records] == [{"mood": '{"calm": 1}'}, {}]
    assert pictures.pictures([1, 0])[:, 0, 0, 0].tolist() == [9, 7]


def test_any_sample_is_read_at_random_from_its_shard(tmp_path):
    for i in range(3):
        greys(tmp_path / "in" / f"{i:02d}.tar", 10 * i, 10)
    pictures = everything(tmp_path / "in")
    assert len(pictures) == 30
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0)).tolist()
    assert pictures.pictures(order)[:, 0, 0, 0].tolist() == order
    assert pictures.picture(17)[0, 0, 0] == 17
    assert [r.text for r in pictures.records] == [f"grey {i}" for i in range(30)]
    assert pictures.classes == ["0", "1", "2"]
    assert pictures.pictures([]).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_walks_it_in_the_addressed_order(tmp_path, workers):
    for i in range(2):
        greys(tmp_path / "in" / f"{i}.tar", 10 * i, 10)
    data = PictureBatches(everything(tmp_path / "in"), seed=5)
    seen = {}
    for world in (1, 2):
        batches = [StepBatchSampler(BatchSplit(4, world, rank), 5, 20, 3, 10) for rank in range(world)]
        greys_seen = [
            dict(zip(b["position"].tolist(), ((b["x"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist(), strict=True))
            for part in batches
            for b in loader(data, part, workers)
        ]
        seen[world] = {position: grey for batch in greys_seen for position, grey in batch.items()}
    expected = {p: i for batch in StepBatchSampler(BatchSplit(4), 5, 20, 3, 10) for p, i in batch}
    assert seen[1] == seen[2] == expected


def test_the_split_is_by_name_and_leaves_no_class_out(tmp_path):
    greys(tmp_path / "in" / "0.tar", 0, 60)
    split = load(config(tmp_path / "in", heldout=0.3))
    names = [{r.name for r in part.records} for part in (split.train, split.heldout)]
    assert len(split.heldout) > 5
    assert names[0] | names[1] == {f"0.tar/{i:04d}.png" for i in range(60)}
    assert not names[0] & names[1]
    assert split.compositional is None
    i = int(split.heldout.records[2].name[6:10])
    assert split.heldout.picture(2)[0, 0, 0] == i


def test_a_folder_a_file_and_a_pattern(tmp_path):
    for i in range(8, 12):
        greys(tmp_path / "in" / f"part-{i:03d}" / "x.tar", i, 1)
    assert [r.text for r in everything(tmp_path / "in").records] == [f"grey {i}" for i in range(8, 12)]
    some = everything(f"{tmp_path}/in/part-{{009..010}}/{{x}}.tar")
    assert [r.name for r in some.records] == ["part-009/x.tar/0009.png", "part-010/x.tar/0010.png"]
    assert [r.text for r in everything(f"{tmp_path}/in/part-0{{11,08}}/x.tar").records] == ["grey 8", "grey 11"]
    assert len(everything(tmp_path / "in/part-008/x.tar")) == 1
    for wrong, said in [
        (f"{tmp_path}/in/part-{{008..013}}/x.tar", r"part-012/x\.tar is no such file"),
        (tmp_path / "absent", "absent is no such file; expected a folder of .tar files"),
        (tmp_path / "in/{0..999999999}.tar", "no such file"),
        (tmp_path / ("in/" + "{0..99}" * 4), "more than 100,000 files"),
    ]:
        with pytest.raises(UserError, match=said):
            everything(wrong)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no \.tar files"):
        everything(tmp_path / "empty")


def test_a_shard_is_looked_at_once(tmp_path, monkeypatch):
    path = greys(tmp_path / "in" / "0.tar", 0, 5)
    before = everything(tmp_path / "in")
    scanned = []
    scan = webdataset.TarReader.scan
    monkeypatch.setattr(webdataset.TarReader, "scan", lambda self, path: scanned.append(path.name) or scan(self, path))
    again = everything(tmp_path / "in")
    assert (scanned, again.fingerprint) == ([], before.fingerprint)
    assert [(r.name, r.text, r.label) for r in again.records] == [(r.name, r.text, r.label) for r in before.records]
    assert torch.equal(again.pictures(range(5)), before.pictures(range(5)))
    greys(tmp_path / "in" / "1.tar", 5, 5)
    assert len(everything(tmp_path / "in")) == 10
    assert scanned == ["1.tar"]
    greys(path, 50, 5)
    os.utime(path, ns=(1, 1))
    assert everything(tmp_path / "in").records[0].text == "grey 50"
    assert scanned == ["1.tar", "0.tar"]


def test_a_damaged_index_is_made_again(tmp_path, caplog):
    greys(tmp_path / "in" / "0.tar", 0, 5)
    before = everything(tmp_path / "in")
    (index,) = (tmp_path / "cache" / "shards").iterdir()
    text = index.read_text()
    for wrong in (text.replace("grey 3", "grey 4"), text[:-20], "", "é"):
        index.write_text(wrong)
        assert everything(tmp_path / "in").records == before.records
        assert "is damaged" in caplog.text
        assert index.read_text() == text
        caplog.clear()


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, caplog):
    (tmp_path / "file").write_text("x")
    greys(tmp_path / "in" / "0.tar", 0, 5)
    assert len(everything(tmp_path / "in", cache=tmp_path / "file")) == 5
    assert "cannot keep an index" in caplog.text


def test_the_fingerprint_sees_contents_and_settings(tmp_path):
    greys(tmp_path / "in" / "0.tar", 0, 5)
    before = everything(tmp_path / "in").fingerprint
    assert everything(tmp_path / "in", channels=1).fingerprint != before
    (tmp_path / "in").rename(tmp_path / "moved")
    assert everything(tmp_path / "moved").fingerprint == before
    greys(tmp_path / "moved" / "0.tar", 1, 5)
    assert everything(tmp_path / "moved").fingerprint != before


def hostile(folder):
    """A hundred good samples and one of every bad kind; returns what must be said of each."""
    good = [(f"good/{i:03d}.png", encoded(i)) for i in range(100)]
    bad = [
        (member("../../up.png"), encoded(), "'../../up.png': leads outside"),
        (member("/etc/absolute.png"), encoded(), "'/etc/absolute.png': leads outside"),
        (member("soft.png", tarfile.SYMTYPE, linkname="/etc/passwd"), b"", "'soft.png': is a link, a device"),
        (member("hard.png", tarfile.LNKTYPE, linkname="good/001.png"), b"", "'hard.png': is a link, a device"),
        (member("device.png", tarfile.CHRTYPE, devmajor=1, devminor=5), b"", "'device.png': is a link, a device"),
        (member("pipe.png", tarfile.FIFOTYPE), b"", "'pipe.png': is a link, a device"),
        (member("good/007.png"), encoded(1), "'good/007.png': comes a second time"),
        (member("huge.txt"), b"x" * (webdataset.TEXT_LIMIT + 1), "'huge.txt': has 1,048,577 bytes"),
        (
            member("bomb.png"),
            bomb(folder / "bomb", 10_000, 10_000).read_bytes(),
            "bomb.png: more pixels than the limit",
        ),
        (member("cut.png"), noise(0)[:300], "cut.png: broken or truncated"),
        (member("text.png"), b"no picture", "text.png: not an image"),
        (member("latin.png"), encoded(), "'latin': its text cannot be read"),
        (member("list.png"), encoded(), "'list': its text cannot be read"),
        (member("deep.png"), encoded(), "'deep': its text cannot be read"),
        (member("type.png"), encoded(), "'type': its text cannot be read"),
        (member("lonely.txt"), b"no picture at all", "'lonely': has no picture, only txt"),
    ]
    texts = [("latin.txt", b"\xe9"), ("list.json", b"[1]"), ("deep.json", b"[" * 99_999), ("type.json", b'{"text": 3}')]
    shard(folder / "in" / "x.tar", *good, *((info, contents) for info, contents, _ in bad), *texts)
    return [said for *_, said in bad]


def test_captions_that_cannot_be_read_matter_to_runs_with_captions_alone(tmp_path):
    texts = [("a.txt", b"a ball"), ("b.txt", b"\xe9"), ("c.json", b"[1]")]
    shard(tmp_path / "in" / "x.tar", *((f"{name}.png", encoded(i)) for i, name in enumerate("abc")), *texts)
    settings = config(tmp_path / "in", heldout=0, max_bad_share=0.9)
    for captions in (True, False, True):
        records = load_source(settings, captions=captions).train.records
        assert [(r.name, r.text) for r in records] == [
            ("x.tar/a.png", "a ball"),
            *([] if captions else [("x.tar/b.png", ""), ("x.tar/c.png", "")]),
        ]


def test_hostile_members_are_named_counted_and_skipped(tmp_path, caplog):
    said = hostile(tmp_path)
    with caplog.at_level(logging.WARNING, "ldm_kit.data"):
        pictures = everything(tmp_path / "in", max_bad_share=0.2)
    assert pictures.pictures(range(100))[:, 0, 0, 0].tolist() == list(range(100))
    assert len(pictures) == 100
    for sentence in said:
        assert f"skipped x.tar/{sentence}" in caplog.text
    assert f"skipped {len(said)} of {100 + len(said)}" in caplog.text
    assert {p.name for p in tmp_path.iterdir()} == {"bomb", "cache", "in"}
    with pytest.raises(UserError, match=r"16 of 116 .* allows 1\)"):
        everything(tmp_path / "in")
    with pytest.raises(UserError, match=r"set data\.on_bad: skip"):
        everything(tmp_path / "in", on_bad="raise")


def test_a_member_that_only_claims_to_be_large_is_never_read(tmp_path):
    """Sparse members and sizes beyond the shard's end: nothing of that size is asked of the system."""
    path = greys(tmp_path / "in" / "0.tar", 0, 20)
    raw = path.read_bytes().rstrip(b"\0")
    huge = member("huge.png", size=2**40).tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(raw + b"\0" * (-len(raw) % 512) + huge + b"\0" * 1024)
    assert len(everything(tmp_path / "in", max_bad_share=0.2)) == 20


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_is_too_long_is_not_read(tmp_path, kind):
    path = greys(tmp_path / "in" / "0.tar", 0, 20)
    raw = path.read_bytes().rstrip(b"\0")
    long = member("long", kind, size=64 * 2**20).tobuf(tarfile.GNU_FORMAT)
    with path.open("wb") as file:
        file.write(raw + b"\0" * (-len(raw) % 512) + long)
        file.truncate(file.tell() + 64 * 2**20)
    groups, bad = webdataset.members(path)
    assert len(groups) == 20
    assert "a header of 67,1" in bad[-1]


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_a_cut_shard_gives_what_is_whole_and_says_so(tmp_path, caplog, keep):
    path = greys(tmp_path / "in" / "0.tar", 0, 40)
    whole = path.read_bytes().rstrip(b"\0")
    path.write_bytes(whole[: int(keep * len(whole))])
    pictures = everything(tmp_path / "in", max_bad_share=0.3)
    assert 40 * keep - 2 <= len(pictures) < 40
    assert pictures.pictures(range(len(pictures)))[:, 0, 0, 0].tolist() == list(range(len(pictures)))
    assert "0.tar/the shard is damaged or cut off" in caplog.text


def test_a_cut_between_two_members_is_seen_too(tmp_path, caplog):
    path = shard(tmp_path / "in" / "0.tar", *((f"{i}.png", encoded(i)) for i in range(20)))
    _, (start, size) = 0, webdataset.members(path)[0]["9"]["png"]
    path.write_bytes(path.read_bytes()[: start + -(-size // 512) * 512])
    assert len(everything(tmp_path / "in", max_bad_share=0.3)) == 10
    assert "no end mark" in caplog.text


def test_what_is_no_tar_is_told_in_a_sentence(tmp_path):
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(__file__, "x.txt")
    for name, contents in [("empty.tar", b""), ("text.tar", b"no tar" * 400)]:
        (tmp_path / name).write_bytes(contents)
    for name in ("packed.tar", "empty.tar", "text.tar"):
        with pytest.raises(UserError, match=rf"{name} is no plain tar file .* unpacked to \.tar first"):
            everything(tmp_path / name)
    shard(tmp_path / "no" / "pictures.tar")
    with pytest.raises(UserError, match=r"offers no pictures in its 1 \.tar files"):
        everything(tmp_path / "no")


def test_links_out_of_the_folder_are_refused(tmp_path):
    greys(tmp_path / "elsewhere" / "0.tar", 0, 5)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.tar").symlink_to(tmp_path / "elsewhere" / "0.tar")
    with pytest.raises(UserError, match="is a link that leads outside the folder; give the folder that it leads to"):
        everything(tmp_path / "in")
    assert len(everything(tmp_path / "in" / "0.tar")) == 5


def test_too_many_members_stop(tmp_path, monkeypatch):
    greys(tmp_path / "in" / "0.tar", 0, 5)
    monkeypatch.setattr(webdataset, "MEMBER_LIMIT", 10)
    with pytest.raises(UserError, match="has more than 10 members"):
        everything(tmp_path / "in")


def test_headers_alone_leave_broken_bodies_for_later(tmp_path, caplog):
    shard(tmp_path / "in" / "0.tar", ("a.png", encoded()), ("b.png", noise(0)[:300]))
    pictures = everything(tmp_path / "in", verify=False)
    assert len(pictures) == 2
    assert torch.equal(pictures.picture(1), pictures.picture(0)), "the next that can be read"
    assert "skipped 0.tar/b.png: broken or truncated" in caplog.text


def test_exif_and_palettes_are_read_as_files_are(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = encoded(200, (30, 10), "JPEG", exif=exif)
    shard(tmp_path / "in" / "0.tar", ("a.jpg", wide))
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.jpg").write_bytes(wide)
    plain = load_all(FolderConfig(path=tmp_path / "plain", resolution=8))
    assert torch.equal(everything(tmp_path / "in").picture(0), plain.picture(0))


class Settings(Config):
    data: DataConfig


def test_a_config_names_the_source(tmp_path):
    greys(tmp_path / "in" / "0.tar", 0, 5)
    tree = {"data": {"source": "webdataset", "path": str(tmp_path / "in"), "resolution": 8, "heldout": 0}}
    found = configs.check(Settings, tree, "here").data
    assert isinstance(found, WebDatasetConfig)
    assert len(load_source(found).train) == 5
    assert configs.check(WebDatasetConfig, found.model_dump(mode="json"), "here") == found
    with pytest.raises(UserError, match=r"unknown key 'data\.bucket'"):
        configs.check(Settings, {"data": {**tree["data"], "bucket": 3}}, "here")
    shard(tmp_path / "one.tar", ("a.png", encoded()))
    with pytest.raises(UserError, match=r"all 1 pictures in .* are held out"):
        load_source(config(tmp_path / "one.tar", heldout=0.999999))
