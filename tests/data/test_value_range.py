"""Folders of values: levels of a stated or measured range, the same in memory, on demand and on several processes."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_kit.config import UserError, check
from ldm_kit.data import folder as folders
from ldm_kit.data import percentiles
from ldm_kit.data.folder import FolderConfig, load, load_all
from ldm_kit.data.images import subset
from ldm_kit.data.joined import whole
from ldm_kit.data.latents import pixels
from ldm_kit.data.levels import as_bytes, to_bytes, to_levels, to_unit
from ldm_kit.data.near_duplicates import find_leaks
from ldm_kit.data.sources import MixConfig
from ldm_kit.data.sources import load as load_source
from ldm_kit.data.tensors import from_tensor
from ldm_kit.data.value_files import load_levels, load_values
from ldm_kit.data.value_range import ValueRange, check_same_range, read_range, value_range_of, write_range
from tests.data.value_files import tiff

CHANNELS, SIDE = 5, 12


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path):
    root, random = tmp_path / "data", np.random.default_rng(0)
    root.mkdir()
    for i in range(14):
        tiff(root / f"{i:02d}.tif", random.integers(100 * i, 5000, (16, 20, CHANNELS), dtype=np.uint16), planar=i % 2)
        (root / f"{i:02d}.txt").write_text(f"picture {i}")
    return root


def config(root, **more):
    section = {"path": root, "resolution": SIDE, "channels": CHANNELS, "range": [0, 5000], "heldout": 0.2, **more}
    return check(FolderConfig, section, "data")


def test_levels_are_those_of_the_files(data):
    split = load(config(data))
    assert value_range_of(split.train) == ValueRange((0.0,), (5000.0,))
    assert len(split.heldout) >= 1
    for pictures in split[:2]:
        for row, record in enumerate(pictures.records):
            expected = load_levels(data / record.name, SIDE, CHANNELS, ValueRange((0.0,), (5000.0,)))
            assert torch.equal(pictures.picture(row), expected)
            assert record.text == f"picture {int(record.name[:2])}"
    assert split.train.pictures([0]).dtype == torch.uint16
    assert split.train.pictures([]).shape == (0, CHANNELS, SIDE, SIDE)


@pytest.mark.parametrize("way", ["on demand", "indexed", "headers"])
def test_large_sets_have_the_same_pictures(data, monkeypatch, way):
    expected = load(config(data)).train
    if way == "indexed":
        monkeypatch.setattr(folders, "INDEXED", 3)
        more = {}
    else:
        more = {"memory_limit": 0, "verify": way != "headers"}
    for _ in range(2):  # made, and from the cache
        train = load(config(data, **more)).train
        assert torch.equal(train.pictures(range(len(train))), expected.pictures(range(len(expected))))
        assert value_range_of(train) == value_range_of(expected)
        assert train.pictures([]).dtype == torch.uint16
    assert (train.fingerprint == expected.fingerprint) == (way != "headers")


def test_an_index_is_that_of_its_channels(data, monkeypatch):
    monkeypatch.setattr(folders, "INDEXED", 3)
    load(config(data))
    with pytest.raises(UserError, match=r"all 14 pictures are bad, first 00\.tif: has 5 channels; expected 4"):
        load(config(data, channels=4))


def test_a_range_that_most_values_lie_outside_of_is_said(data, caplog):
    with caplog.at_level(logging.WARNING):
        load(config(data))
        assert "is it the range of these files?" not in caplog.text
        load(config(data, range=[0, 255]))
    assert "of data.range [0, 255], 0 % of the values are at low or below and " in caplog.text
    assert "is it the range of these files?" in caplog.text


def test_a_limit_of_memory_counts_two_bytes_a_value(data):
    size = 28 * CHANNELS * SIDE**2  # 28 files, with captions
    assert type(load(config(data, memory_limit=2 * size)).train.base).__name__ == "InMemory"
    assert type(load(config(data, memory_limit=2 * size - 1)).train).__name__ == "ReadablePictures"


def test_the_fingerprint_depends_on_range_and_channels(data, tmp_path):
    one = load(config(data)).train.fingerprint
    assert load(config(data)).train.fingerprint == one
    assert load(config(data, range=[0, 5001])).train.fingerprint != one
    assert load(config(data, range=[[0, 5000]] * CHANNELS)).train.fingerprint != one


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_percentiles_are_those_of_numpy(data, memory_limit):
    split = load(config(data, range={"percentiles": [2, 97.5]}, memory_limit=memory_limit))
    values = np.stack([load_values(data / record.name, SIDE, CHANNELS) for record in split.train.records])
    expected = [np.percentile(values[:, c].astype("f8"), [2, 97.5]).tolist() for c in range(CHANNELS)]
    assert value_range_of(split.train).pairs == expected
    assert value_range_of(split.heldout).pairs == expected
    assert len(split.heldout) >= 1  # which is not measured: all pictures have other percentiles
    everything = np.stack([load_values(file, SIDE, CHANNELS) for file in sorted(data.glob("*.tif"))])
    assert np.percentile(everything[:, 0].astype("f8"), 2) != expected[0][0]
    assert value_range_of(load_all(config(data, range={"percentiles": [2, 97.5]}))).pairs == expected


def test_percentiles_are_measured_once(data, monkeypatch):
    first = load(config(data, range={"percentiles": [1, 99]})).train
    monkeypatch.setattr(percentiles, "of_pictures", lambda *_: pytest.fail("measured again"))
    assert load(config(data, range={"percentiles": [1, 99]})).train.fingerprint == first.fingerprint


def test_percentiles_of_some_pictures_of_a_large_set(data, monkeypatch):
    monkeypatch.setattr(percentiles, "VALUES", 4 * CHANNELS * SIDE**2)
    seen = []
    real = percentiles.of_pictures
    monkeypatch.setattr(percentiles, "of_pictures", lambda pictures, p: seen.append(len(pictures)) or real(pictures, p))
    load(config(data, range={"percentiles": [1, 99]}))
    assert seen == [4]


def test_percentiles_of_a_constant_channel_are_no_range(tmp_path):
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", np.full((9, 9), 7.0))
    with pytest.raises(UserError, match=r"of channel 1 in .* are 7; expected data.range in numbers"):
        load(config(tmp_path, channels=1, range={"percentiles": [1, 99]}))


def test_bad_files_are_skipped_and_counted(data, caplog):
    np.save(data / "20.npy", np.full((CHANNELS, 9, 9), np.nan))
    with caplog.at_level(logging.WARNING):
        split = load(config(data, max_bad_share=0.1))
    assert len(split.train) + len(split.heldout) == 14
    assert "skipped 20.npy: holds NaN or infinity" in caplog.text
    assert "skipped 1 of 15 pictures" in caplog.text
    with pytest.raises(UserError, match=r"bad picture in .*20\.npy: holds NaN"):
        load(config(data, on_bad="raise"))
    with pytest.raises(UserError, match=r"all 15 pictures are bad, first 00\.tif: has 5 channels; expected 4"):
        load(config(data, channels=4))


def test_a_file_that_breaks_later_is_replaced(data):
    train = load(config(data, memory_limit=0, verify=False, max_bad_share=0.5)).train
    (data / train.records[1].name).write_bytes(b"II*\0")
    assert torch.equal(train.picture(1), train.picture(2))


def test_arrays_are_pictures_with_a_range_alone(tmp_path, caplog):
    np.save(tmp_path / "a.npy", np.zeros((9, 9)))
    with pytest.raises(UserError, match=r"offers no pictures.*arrays \(.npy\) are read with data.range"):
        load_all(FolderConfig(path=tmp_path, resolution=8, channels=1))
    assert len(load_all(config(tmp_path, channels=1))) == 1
    Image.new("L", (9, 9)).save(tmp_path / "b.png")
    with caplog.at_level(logging.WARNING):
        assert [r.name for r in load_all(FolderConfig(path=tmp_path, resolution=8, channels=1)).records] == ["b.png"]
    assert "1 files of kinds that are not read are left out: 1 .npy" in caplog.text


WRONG = {
    "rising": ({"range": [5, 5]}, "low below high"),
    "one": ({"range": [5]}, "expected .low, high."),
    "text": ({"range": "full"}, "expected .low, high."),
    "flags": ({"range": [False, True]}, "expected .low, high."),
    "pairs": ({"range": [[0, 1], [0, 2]]}, "range has 2 pairs, but there are 5 channels"),
    "percentiles": ({"range": {"percentiles": [99, 1]}}, "percentiles: .*must rise|expected .low, high."),
    "key": ({"range": {"percentile": [1, 99]}}, "expected .low, high."),
    "masked": ({"alpha": "mask", "channels": 1}, "alpha is for pictures of 8 bits"),
    "buckets": ({"buckets": {"step": 4}}, "buckets is for pictures of 8 bits"),
    "many": ({"channels": 17}, "channels"),
    "none": ({"range": None}, "channels 5 needs data.range, the values that become -1 and 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_said(tmp_path, name):
    more, message = WRONG[name]
    with pytest.raises(UserError, match=message) as error:
        config(tmp_path, **more)
    assert "\n" not in str(error.value)


def test_a_config_reads_what_it_writes(tmp_path):
    for value in ([0, 65535], [[0, 1]] * CHANNELS, {"percentiles": [1, 99]}, None):
        one = config(tmp_path, range=value, **({"channels": 3} if value is None else {}))
        assert check(FolderConfig, one.model_dump(mode="json"), "again") == one


def test_a_mix_needs_one_range(data):
    parts = [{"share": 1, "data": config(data).model_dump(mode="json")} for _ in range(2)]
    both = load_source(check(MixConfig, {"parts": parts}, "mix")).train
    alone = load(config(data)).train
    assert torch.equal(both.pictures([0, len(alone), 1]), alone.pictures([0, 0, 1]))
    assert both.pictures([]).shape == (0, CHANNELS, SIDE, SIDE)
    assert value_range_of(both) == value_range_of(alone)
    parts[1]["data"]["range"] = [[0, 6000]]
    with pytest.raises(UserError, match="part 1 differ in range"):
        check(MixConfig, {"parts": parts}, "mix")
    parts[1]["data"]["range"] = {"percentiles": [1, 99]}
    with pytest.raises(UserError, match="part 2 has percentiles as range, but all parts need one; expected numbers"):
        check(MixConfig, {"parts": parts}, "mix")


def test_views_of_a_set_keep_its_range(data):
    split = load(config(data))
    values = value_range_of(split.train)
    for view in (subset(split.train, [1, 2]), whole(split)):
        assert value_range_of(view) == values
        assert view.pictures([0, 1]).dtype == torch.uint16
    decoded = pixels(load(config(data, memory_limit=0)).train).mean
    assert type(decoded.pictures).__name__ == "InMemory"
    assert value_range_of(decoded.pictures) == values
    table = pixels(split.train, flip=True).mean
    assert torch.equal(table[0, 0], to_unit(split.train.picture(0)))
    assert torch.equal(table[:2, 1], to_unit(split.train.pictures([0, 1])).flip(3))


def test_near_duplicates_are_of_one_scale(tmp_path):
    names = [f"{i}.npy" for i in range(12)]
    random = np.random.default_rng(0)
    for name in names:
        np.save(tmp_path / name, random.integers(0, 60000, (8, 8), dtype=np.uint16))
    settings = {"channels": 1, "resolution": 8, "range": [0, 65535], "heldout": 0.3}
    split = load(config(tmp_path, **settings))
    assert not find_leaks(split).pairs
    near = np.load(tmp_path / split.train.records[0].name).astype(int) + 257  # one level of 255
    np.save(tmp_path / split.heldout.records[0].name, near.astype(np.uint16))
    split = load(config(tmp_path, **settings))
    assert find_leaks(split).pairs == [(split.heldout.records[0].name, split.train.records[0].name)]


def test_levels_of_both_kinds_span_one_interval():
    for dtype, highest in ((torch.uint8, 255), (torch.uint16, 65535)):
        levels = torch.arange(highest + 1, dtype=torch.int32).to(dtype)
        x = to_unit(levels)
        assert (x[0], x[-1]) == (-1, 1)
        torch.testing.assert_close(
            x.double(), torch.linspace(-1, 1, highest + 1, dtype=torch.float64), atol=1e-6, rtol=0
        )
        assert torch.equal(to_levels(x, dtype), levels)
        assert torch.equal(to_levels(x + 0.98 / highest, dtype), levels)
    assert to_levels(torch.tensor([-9.0, 9.0, torch.nan]), torch.uint16).tolist() == [0, 65535, 0]
    assert torch.equal(
        as_bytes(torch.tensor([0, 128, 129, 65535]).to(torch.uint16)), torch.tensor([0, 0, 1, 255]).byte()
    )
    assert torch.equal(to_bytes(torch.tensor([-1.0, 0.0, 1.0])), torch.tensor([0, 128, 255]).byte())


def test_a_range_for_each_channel_and_its_file(tmp_path):
    values = ValueRange((0.0, -1.0), (10.0, 3.0))
    levels = torch.tensor([[[0, 65535]], [[0, 65535]]]).to(torch.uint16)
    assert torch.equal(values.values(levels[None]), torch.tensor([[[[0.0, 10.0]], [[-1.0, 3.0]]]]))
    assert values.levels(np.array([[[5.0]], [[1.0]]])).tolist() == [[[32768]], [[32768]]]
    write_range(tmp_path, values)
    assert read_range(tmp_path) == values
    (tmp_path / "value_range.json").write_text('{"range": [[1, 0]]}')
    with pytest.raises(UserError, match="states no range of values"):
        read_range(tmp_path)
    write_range(tmp_path, None)
    assert read_range(tmp_path) is None


def test_ranges_that_differ_are_said(data):
    train = load(config(data)).train
    check_same_range("the model", ValueRange((0.0,), (5000.0,)), train)
    with pytest.raises(
        UserError, match=r"the model is for values in \[0, 1\], but data.range is \[0, 5000\]; expected"
    ):
        check_same_range("the model", ValueRange((0.0,), (1.0,)), train)
    with pytest.raises(UserError, match=r"is for pictures of 8 bits, but data\.range is"):
        check_same_range("the model", None, train)
    with pytest.raises(UserError, match=r"for values in \[0, 1\], but data.range is left out"):
        check_same_range("the model", ValueRange((0.0,), (1.0,)), object())


def test_tensors_of_any_values():
    images = torch.linspace(-3, 7, 4 * 6 * 8 * 8).view(4, 6, 8, 8)
    split = from_tensor(images, value_range=(-3, 7))
    assert value_range_of(split.train) == ValueRange((-3.0,), (7.0,))
    back = value_range_of(split.train).values(split.train.pictures(range(4)))
    torch.testing.assert_close(back, images, atol=10 / 65535 / 2 + 1e-6, rtol=0)
    whole_numbers = torch.arange(64).view(1, 1, 8, 8)
    assert from_tensor(whole_numbers, value_range=[[0, 63]]).train.picture(0).flatten()[-1] == 65535
    for wrong, message in (
        ({"value_range": (1, 0)}, "value_range: got"),
        ({"value_range": [(0, 1), (0, 2)]}, "value_range has 2 pairs, but images have 6 channels"),
    ):
        with pytest.raises(UserError, match=message):
            from_tensor(images, **wrong)
    with pytest.raises(UserError, match="images hold NaN or infinity"):
        from_tensor(images / 0, value_range=(0, 1))
    with pytest.raises(UserError, match="C at most 16"):
        from_tensor(torch.zeros(1, 17, 8, 8), value_range=(0, 1))
    with pytest.raises(UserError, match="C one of 1, 3, 4"):
        from_tensor(images / 7)
