"""Alpha as a mask: pictures over a colour, the alpha beside them, and the weights of latents by area."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_kit.config import UserError, check
from ldm_kit.data import folder as folders
from ldm_kit.data.alpha import AlphaMasked, area_weights
from ldm_kit.data.batches import PictureBatches, flips
from ldm_kit.data.folder import FolderConfig, load_all
from ldm_kit.data.joined import whole
from ldm_kit.data.latents import LatentBatches, Latents
from ldm_kit.data.sources import load
from ldm_kit.data.webdataset import WebDatasetConfig
from tests.data.archive_files import shard

SIDE = 16


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))


def rgba(count, seed=0, hidden=0):
    """Random pictures with alpha 0, 255 and between; seed and hidden choose the colours, hidden those under alpha 0."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (count, SIDE, SIDE, 4)).astype(np.uint8)
    pixels[:, :6, :, 3], pixels[:, 10:, :, 3] = 0, 255
    under = np.random.default_rng([1, hidden]).integers(0, 256, (count, 6, SIDE, 3))
    pixels[:, :6, :, :3] = under
    return pixels


def folder(path, pixels, **columns):
    path.mkdir(parents=True)
    rows = []
    for i, picture in enumerate(pixels):
        Image.fromarray(picture, "RGBA").save(path / f"{i:03d}.png")
        rows.append({"file_name": f"{i:03d}.png", "text": f"thing {i}", "label": "ab"[i % 2]})
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def over(pixels, colour):
    """The pictures over a colour, [N, 3, R, R], in floats."""
    colours, alpha = pixels[..., :3].astype(float), pixels[..., 3:].astype(float) / 255
    return torch.from_numpy(alpha * colours + (1 - alpha) * np.array(colour)).permute(0, 3, 1, 2)


def config(root, **more):
    return FolderConfig(path=root, resolution=SIDE, heldout=0.0, alpha="mask", background="#102030", **more)


@pytest.mark.parametrize("way", ["in memory", "indexed", "on demand", "archive"])
def test_pictures_are_laid_over_the_colour_and_keep_their_alpha(way, tmp_path, monkeypatch):
    pixels = rgba(5)
    root = folder(tmp_path / "in", pixels)
    if way == "archive":
        path = shard(tmp_path / "a.tar", *((f"{i}.png", (root / f"{i:03d}.png").read_bytes()) for i in range(5)))
        settings = {"path": path, "resolution": SIDE, "heldout": 0.0, "background": "#102030"}
        pictures = load(WebDatasetConfig(**settings, alpha="mask")).train
        flat = load(WebDatasetConfig(**settings)).train
    else:
        monkeypatch.setattr(folders, "INDEXED", 1 if way == "indexed" else 1000)
        more = {"memory_limit": 0} if way == "on demand" else {}
        masked = config(root, **more)
        pictures, flat = load(masked).train, load(masked.model_copy(update={"alpha": "flatten"})).train
    assert isinstance(pictures, AlphaMasked)
    assert (pictures.channels, pictures.resolution, len(pictures)) == (3, SIDE, 5)
    shown, alpha = pictures.with_alpha(range(5))
    assert torch.equal(alpha[:, 0], torch.from_numpy(pixels[..., 3]))
    torch.testing.assert_close(shown.double(), over(pixels, (16, 32, 48)), rtol=0, atol=1)
    assert torch.equal(shown, pictures.pictures(range(5)))
    assert torch.equal(shown, flat.pictures(range(5)))
    assert torch.equal(pictures.picture(3), shown[3])
    assert pictures.fingerprint != flat.fingerprint


def test_grey_pictures_have_alpha_too(tmp_path):
    pictures = load(config(folder(tmp_path / "in", rgba(3)), channels=1)).train
    shown, alpha = pictures.with_alpha([0, 2])
    assert (shown.shape, alpha.shape) == ((2, 1, SIDE, SIDE), (2, 1, SIDE, SIDE))
    assert pictures.channels == 1


def test_pictures_without_transparency_are_opaque(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (20, 30), "red").save(tmp_path / "in" / "0.png")
    shown, alpha = load(config(tmp_path / "in")).train.with_alpha([0])
    assert alpha.min() == 255
    assert shown[0, :, 0, 0].tolist() == [255, 0, 0]


def test_a_scaled_alpha_is_never_above_what_it_averages(tmp_path):
    """Lanczos, with which colours are scaled, would ring: an edge would give hidden pixels a weight."""
    (tmp_path / "in").mkdir()
    picture = np.full((64, 64, 4), 255, np.uint8)
    picture[:, :32, 3] = 0
    Image.fromarray(picture, "RGBA").save(tmp_path / "in" / "0.png")
    _, alpha = load(config(tmp_path / "in")).train.with_alpha([0])
    row = alpha[0, 0, 8]
    assert row[:7].tolist() == [0] * 7
    assert row[9:].tolist() == [255] * 7
    assert row.diff().long().min() >= 0


def test_the_whole_of_a_split_keeps_the_alpha(tmp_path):
    pixels = rgba(30)
    split = load(FolderConfig(path=folder(tmp_path / "in", pixels), resolution=SIDE, heldout=0.3, alpha="mask"))
    assert len(split.heldout) > 3
    everything = whole(split)
    assert isinstance(everything, AlphaMasked)
    assert torch.equal(everything.with_alpha(range(30))[1][:, 0], torch.from_numpy(pixels[..., 3]))


def test_a_batch_mirrors_picture_and_weight_together(tmp_path):
    pixels = rgba(6)
    pictures = load(config(folder(tmp_path / "in", pixels))).train
    samples = [(position, position % 6) for position in range(12)]
    batch = PictureBatches(pictures, seed=3, flip=True).__getitems__(samples)
    mirrored = flips(3, torch.arange(12))
    assert 0 < mirrored.sum() < 12
    for i, flip in enumerate(mirrored.tolist()):
        shown, alpha = pictures.with_alpha([i % 6])
        expected = alpha[0].float() / 255
        assert torch.equal(batch["weight"][i], expected.flip(2) if flip else expected)
        picture = shown[0].float() / 127.5 - 1
        torch.testing.assert_close(batch["x"][i], picture.flip(2) if flip else picture)
    assert "weight" not in PictureBatches(load_all(FolderConfig(path=tmp_path / "in")), 0).__getitems__([(0, 0)])


def test_weights_of_latents_are_means_of_alpha(tmp_path):
    pixels = rgba(4)
    pictures = load(config(folder(tmp_path / "in", pixels))).train
    for _ in range(2):  # the second time from the cache
        weights = area_weights(pictures, (4, 4))
        means = torch.from_numpy(pixels[..., 3].reshape(4, 4, 4, 4, 4).mean((2, 4)) / 255)
        torch.testing.assert_close(weights.double(), means, rtol=1e-3, atol=1e-6)
        assert weights[:, 0].max() == 0
        assert weights[:, 3].min() == 1
    assert area_weights(pictures, (8, 8)).shape == (4, 8, 8)
    assert area_weights(load_all(FolderConfig(path=tmp_path / "in")), (4, 4)) is None


def test_a_batch_of_latents_has_the_weights_of_its_view():
    mean = torch.zeros(3, 2, 1, 4, 4)
    weights = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)).half()
    batches = LatentBatches(Latents(mean, mean, "x", weights=weights), {}, [], seed=1)
    batch = batches.__getitems__([(position, position % 3) for position in range(12)])
    mirrored = flips(1, torch.arange(12))
    assert 0 < mirrored.sum() < 12
    for i, flip in enumerate(mirrored.tolist()):
        expected = weights[i % 3].float()
        assert torch.equal(batch["weight"][i, 0], expected.flip(1) if flip else expected)


def test_four_channels_keep_alpha_themselves(tmp_path):
    tree = {"source": "folder", "path": str(tmp_path), "alpha": "mask", "channels": 4}
    with pytest.raises(UserError, match="but channels 4 keeps alpha as a channel; expected 1 or 3"):
        check(FolderConfig, tree, "x.yaml")
