"""Near-duplicates between training and held-out pictures are found, and pictures that only resemble are not."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_kit.data import near_duplicates
from ldm_kit.data.digits import DigitsConfig
from ldm_kit.data.images import InMemory, Record, Split
from ldm_kit.data.near_duplicates import Leaks, find_leaks
from ldm_kit.data.sources import load

pytestmark = pytest.mark.usefixtures("own_cache")


def smooth(count, seed, side=64):
    """Pictures with large structures, as photographs have."""
    draw = torch.Generator().manual_seed(seed)
    coarse = 200 * torch.rand(count, 1, 6, 6, generator=draw) + 50 * torch.rand(count, 3, 6, 6, generator=draw)
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 255).to(torch.uint8)


def split_of(train, heldout):
    sets = []
    for name, pixels in (("train", train), ("heldout", heldout)):
        records = [Record(f"{name}-{i}", "", None) for i in range(len(pixels))]
        sets.append(InMemory(records, (), pixels, f"{name}-{pixels.sum()}-{len(pixels)}"))
    return Split(*sets, None)


def as_jpeg(picture, quality=90):
    data = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(data, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(data))).permute(2, 0, 1)


def resized(picture):
    image = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((48, 48), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image.resize((64, 64), Image.Resampling.LANCZOS))).permute(2, 0, 1)


def test_copies_are_found_by_name_whether_exact_compressed_or_resized(monkeypatch):
    monkeypatch.setattr(near_duplicates, "BATCH", 7)
    train, heldout = smooth(30, 0), smooth(9, 1)
    assert find_leaks(split_of(train, heldout)) == Leaks([], 9, 30)
    heldout[2], heldout[5], heldout[8] = train[29], as_jpeg(train[0]), resized(train[13])
    leaks = find_leaks(split_of(train, heldout))
    assert leaks.pairs == [("heldout-2", "train-29"), ("heldout-5", "train-0"), ("heldout-8", "train-13")]
    assert leaks.sentence().startswith("3 of 9 held-out pictures have a near-duplicate among 30 training pictures")
    assert "heldout-2 is like train-29" in leaks.sentence()


def test_a_changed_part_is_another_picture():
    train = smooth(4, 0)
    heldout = train.clone()
    heldout[:, :, 20:32, 20:32] = 255 - heldout[:, :, 20:32, 20:32]
    assert not find_leaks(split_of(train, heldout)).pairs


def test_the_cost_of_large_sets_is_capped_and_a_second_look_is_read_from_the_cache(monkeypatch):
    monkeypatch.setattr(near_duplicates, "MOST_TRAIN", 20)
    monkeypatch.setattr(near_duplicates, "MOST_HELDOUT", 5)
    train = smooth(40, 3)
    split = split_of(train, train[:30])
    leaks = find_leaks(split)
    assert (leaks.heldout, leaks.train) == (5, 20)
    assert all(heldout.split("-")[1] == near.split("-")[1] for heldout, near in leaks.pairs)
    monkeypatch.setattr(InMemory, "pictures", lambda *_: pytest.fail("a picture was read"))
    assert find_leaks(split) == leaks


def test_nothing_held_out_is_no_leak_and_digits_have_none():
    assert find_leaks(split_of(smooth(3, 0), smooth(3, 0)[:0])).sentence() == ""
    assert find_leaks(load(DigitsConfig())).pairs == []
