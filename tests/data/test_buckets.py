"""Aspect-ratio buckets: which shapes, which pictures, how much is cropped, and latents of several shapes."""

import io
import json
import logging
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ldm_kit.config import UserError
from ldm_kit.data import folder, latents, parquet, webdataset
from ldm_kit.data.bucket_latents import joined_latents
from ldm_kit.data.bucket_sizes import BucketsConfig, assign
from ldm_kit.data.buckets import bucket_views, buckets_of, square_split, squares
from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.image_files import Encoded, image_size
from ldm_kit.data.latents import LatentBatches
from ldm_kit.data.near_duplicates import find_leaks
from ldm_kit.data.parquet import ParquetConfig
from ldm_kit.data.webdataset import WebDatasetConfig

ORIGINALS = [(40, 40), (33, 60), (60, 33), (40, 50), (52, 40), (80, 41), (41, 40), (30, 57), (39, 78), (16, 16)]
BUCKETS = {"step": 4, "max_ratio": 2.0, "max_crop": 0.24}


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """A smooth random picture of a height and a width."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path):
    path = tmp_path / "pictures"
    path.mkdir()
    for i, size in enumerate(ORIGINALS * 2):
        picture(size, i).save(path / f"{i:02d}.png")
    return path


def config(path, **changes) -> FolderConfig:
    return FolderConfig.model_validate({"path": path, "resolution": 16, "heldout": 0.2, "buckets": BUCKETS, **changes})


@pytest.mark.parametrize(("resolution", "step", "ratio"), [(16, 4, 2.0), (64, 8, 2.0), (512, 64, 2.0), (1024, 64, 4.0)])
def test_sizes_are_multiples_of_one_area_and_come_both_ways(resolution, step, ratio):
    sizes = BucketsConfig(step=step, max_ratio=ratio).sizes(resolution)
    assert (resolution, resolution) in sizes
    ratios = [w / h for h, w in sizes]
    assert ratios == sorted(ratios)
    assert len({*sizes}) == len(sizes)
    for height, width in sizes:
        assert height % step == width % step == 0
        assert (width, height) in sizes
        assert max(height, width) <= ratio * min(height, width)
        assert abs(height * width - resolution**2) <= step / 2 * max(height, width), "half a step of one side"


def test_the_known_sizes_of_512():
    sizes = BucketsConfig().sizes(512)
    assert {(384, 704), (512, 512), (448, 576), (576, 448), (384, 640), (640, 384)} <= {*sizes}
    with pytest.raises(ValueError, match=r"data\.buckets.step is 64, which does not divide data.resolution 500"):
        BucketsConfig().sizes(500)


@pytest.mark.parametrize("resolution", [64, 512])
def test_a_picture_goes_to_the_nearest_ratio_and_loses_what_is_stated(resolution):
    generator = np.random.default_rng(0)
    originals = generator.integers(200, 2000, (500, 2))
    sizes = BucketsConfig(step=resolution // 8).sizes(resolution)
    buckets = assign(originals, sizes)
    for (height, width), number, crop in zip(originals, buckets.numbers, buckets.crops, strict=True):
        ratios = np.array([w / h for h, w in sizes])
        nearest = np.abs(np.log(ratios) - np.log(width / height)).argmin()
        assert number == nearest
        h, w = sizes[number]
        scale = max(h / height, w / width)
        assert crop == pytest.approx(1 - h * w / (height * width * scale**2))


def test_pictures_have_the_size_of_their_bucket_and_are_centre_crops(pictures):
    split = folder.load(config(pictures))
    buckets = buckets_of(split.train)
    assert len(split.train) + len(split.heldout) == len(ORIGINALS) * 2
    assert 0.2 < buckets.crops.max() <= 0.24
    assert len({*buckets.numbers.tolist()}) >= 4
    for i, record in enumerate(split.train.records):
        height, width = buckets.sizes[buckets.numbers[i]]
        with Image.open(pictures / record.name) as image:
            expected = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        assert torch.equal(split.train.picture(i).permute(1, 2, 0), torch.from_numpy(np.array(expected)))
    assert split.train.resolution == 16


def test_views_divide_the_set_and_mixed_pictures_are_refused(pictures):
    split = folder.load(config(pictures))
    views = bucket_views(split.train)
    assert sorted(i for view in views for i in view.rows.tolist()) == [*range(len(split.train))]
    for view in views:
        loaded = view.pictures.pictures(range(len(view.pictures)))
        assert tuple(loaded.shape[2:]) == view.size
        names = [split.train.records[i].name for i in view.rows]
        assert [record.name for record in view.pictures.records] == names
        assert torch.equal(loaded[0], split.train.picture(int(view.rows[0])))
    with pytest.raises(ValueError, match="several buckets"):
        split.train.pictures(range(len(split.train)))
    assert bucket_views(folder.load(config(pictures, buckets=None)).train) == []


def test_pictures_that_would_lose_more_are_left_out_and_named(pictures, caplog):
    Image.new("RGB", (90, 30), "red").save(pictures / "long.png")
    with caplog.at_level(logging.WARNING, "ldm_kit.data"):
        split = folder.load(config(pictures, heldout=0.0))
    assert "long.png" in caplog.text
    assert "1 pictures are left out, as more than 24% of their area would be cropped" in caplog.text
    assert len(split.train) == len(ORIGINALS) * 2
    assert "long.png" not in {record.name for record in split.train.records}
    (pictures / "val").mkdir()
    Image.new("RGB", (30, 90), "red").save(pictures / "val" / "high.png")
    picture((16, 16), 0).save(pictures / "val" / "square.png")
    (pictures / "train").mkdir()
    for path in pictures.glob("*.png"):
        path.rename(pictures / "train" / path.name)
    named = folder.load(config(pictures))
    assert [record.name for record in named.heldout.records] == ["val/square.png"]
    assert len(named.train) == len(ORIGINALS) * 2
    for path in (pictures / "train").glob("*.png"):
        path.rename(pictures / path.name)
    (pictures / "train").rmdir()
    for path in (pictures / "val").glob("*.png"):
        path.unlink()
    (pictures / "val").rmdir()
    wide = folder.load(config(pictures, heldout=0.0, buckets={**BUCKETS, "max_crop": 0.5}))
    assert len(wide.train) == len(ORIGINALS) * 2 + 1
    assert wide.train.fingerprint != split.train.fingerprint
    for number in range(2 * len(ORIGINALS)):
        (pictures / f"{number:02d}.png").unlink()
    with pytest.raises(UserError, match=r"all 1 training pictures in .* are left out, as more than 24%"):
        folder.load(config(pictures, heldout=0.0))


def test_the_report_says_counts_and_crops(pictures):
    buckets = buckets_of(folder.load(config(pictures, heldout=0.0)).train)
    report = buckets.report()
    assert report.startswith("5 buckets (width x height: pictures): 12 x 24: ")
    assert f"cropped {buckets.crops.mean():.1%} of the area on average, {buckets.crops.max():.1%} at most" in report
    assert sum(count for _, _, count in buckets.counts()) == len(ORIGINALS) * 2


def test_squares_are_the_pictures_without_buckets(pictures):
    split, plain = folder.load(config(pictures)), folder.load(config(pictures, buckets=None))
    for one, other in zip(square_split(split)[:2], plain[:2], strict=True):
        assert torch.equal(one.pictures(range(len(one))), other.pictures(range(len(other))))
    assert squares(plain.train) is plain.train
    assert find_leaks(split).pairs == find_leaks(plain).pairs


def test_the_fingerprint_knows_the_buckets(pictures):
    prints = {
        folder.load(config(pictures, buckets=buckets)).train.fingerprint
        for buckets in (None, BUCKETS, {**BUCKETS, "max_ratio": 1.7}, {**BUCKETS, "step": 8, "max_crop": 0.6})
    }
    assert len(prints) == 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_turned_picture(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "JPEG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))).size
    assert image_size(Encoded("a.jpg", buffer.getvalue()), 10**6) == expected[::-1]


def archives(root, pictures):
    """The pictures of a folder as a tar shard and as a parquet table."""
    files = sorted(pictures.glob("*.png"))
    (root / "tar").mkdir()
    with tarfile.open(root / "tar" / "a.tar", "w") as tar:
        for path in files:
            tar.add(path, path.name)
    arrow = pytest.importorskip("pyarrow")
    (root / "parquet").mkdir()
    table = arrow.table({"image": [path.read_bytes() for path in files], "text": [path.stem for path in files]})
    __import__("pyarrow.parquet").parquet.write_table(table, root / "parquet" / "a.parquet")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_archives_have_buckets_too(pictures, tmp_path, kind):
    Image.new("RGB", (90, 30), "red").save(pictures / "99.png")
    archives(tmp_path, pictures)
    source = {"tar": (WebDatasetConfig, webdataset), "parquet": (ParquetConfig, parquet)}[kind]
    settings = source[0].model_validate(
        {"path": tmp_path / kind, "resolution": 16, "heldout": 0.0, "buckets": BUCKETS, "named_splits": False}
    )
    split = source[1].load(settings)
    assert len(split.train) == len(ORIGINALS) * 2
    expected = folder.load(config(pictures, heldout=0.0))
    views, others = bucket_views(split.train), bucket_views(expected.train)
    for view, other in zip(views, others, strict=True):
        assert view.size == other.size
        assert torch.equal(view.pictures.pictures(range(2)), other.pictures.pictures(range(2)))


def test_a_picture_that_breaks_later_is_replaced_by_one_of_its_bucket(pictures):
    split = folder.load(config(pictures, heldout=0.0, verify=False, memory_limit=0, max_bad_share=0.5))
    name = split.train.records[3].name
    header = (pictures / name).read_bytes()
    (pictures / name).write_bytes(header[: len(header) // 2])
    for view in bucket_views(split.train):
        shown = view.pictures.pictures(range(len(view.pictures)))
        assert tuple(shown.shape[2:]) == view.size
        parts = latents.pixels(view.pictures, size=view.size)
        if 3 in view.rows.tolist():
            whole = joined_latents([parts], [view._replace(rows=view.rows)], split.train)
            (broken, other), *_ = whole.replaced.items()
            assert broken == 3
            assert other in view.rows.tolist()


def test_latents_of_several_shapes_are_read_as_one_table(pictures):
    train = folder.load(config(pictures)).train
    views = bucket_views(train)
    parts = [latents.pixels(view.pictures, flip=True, size=view.size) for view in views]
    whole = joined_latents(parts, views, train)
    assert whole.shape == (3, 16, 16)
    assert len(whole) == len(train)
    batches = LatentBatches(whole, {"n": torch.arange(len(train))}, [], seed=1)
    assert sorted(int(i) for group in batches.groups for i in group) == [*range(len(train))]
    for group, view in zip(batches.groups, views, strict=True):
        batch = batches.__getitems__([(p, int(i)) for p, i in enumerate(group)])
        assert tuple(batch["mean"].shape[2:]) == tuple(batch["logvar"].shape[2:]) == view.size
        assert torch.equal(batch["inputs"]["n"], group)
        for p, i in enumerate(group):
            plain = train.picture(int(i)).float() / 127.5 - 1
            assert torch.equal(batch["mean"][p], plain) or torch.equal(batch["mean"][p], plain.flip(2))
    assert any(
        not torch.equal(batches.__getitems__([(p, 0)])["mean"], batches.__getitems__([(0, 0)])["mean"])
        for p in range(8)
    ), "mirrored at some positions"
    with pytest.raises(ValueError, match="several buckets"):
        batches.__getitems__([(i, i) for i in range(len(train))])


def test_bad_settings_are_refused(pictures):
    with pytest.raises(UserError, match=r"data\.buckets.step is 5, which does not divide data.resolution 16"):
        folder.load(config(pictures, buckets={"step": 5}))
    for wrong in ({"max_ratio": 0.5}, {"max_crop": 1.0}, {"step": 0}, {"size": 3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            BucketsConfig.model_validate(wrong)
    assert json.loads(BucketsConfig().model_dump_json()) == {"step": 64, "max_ratio": 2.0, "max_crop": 0.25}
