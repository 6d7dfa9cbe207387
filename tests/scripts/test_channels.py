"""Models of grey pictures, and of pictures with transparency: every script writes what such a model makes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conditioning.none import NoCondition
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.editing.image_io import save_animation, save_sheet
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.nets.unet import UNetConfig, build_unet
from tests.world import through

MODES = {1: "L", 4: "RGBA"}


@pytest.fixture(scope="module", params=MODES)
def channels(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def model(channels, tmp_path_factory) -> Path:
    """A model of 8 px pictures with random weights."""
    torch.manual_seed(0)
    config = UNetConfig(widths=(8, 8), attention_levels=(False, False), layers_per_block=1, norm_num_groups=4)
    unet = build_unet(config, sample_size=8, channels=channels, cross_width=None)
    folder = tmp_path_factory.mktemp("channels") / "model"
    Pipeline(None, unet, NoCondition(), ScheduleConfig(), "eps").save(folder)
    return folder


def modes(folder):
    found = {}
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            found[path.name] = image.mode
    return found


def test_samples_and_their_grid(channels, model, tmp_path):
    done = through("sample", model, "--count", 2, "--steps", 2, "--device", "cpu", "--out", tmp_path)
    assert done.status == 0, done.err
    assert modes(tmp_path) == dict.fromkeys(
        ["00000000-00000-picture.png", "00000001-00001-picture.png", "grid.png"], MODES[channels]
    )


@pytest.mark.parametrize("command", ["img2img", "inpaint"])
def test_edits_and_their_sheet_keep_the_picture_and_its_alpha(channels, model, tmp_path, command):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, channels), np.uint8)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(tmp_path / "p.png")
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (0, 0, 4, 8))
    mask.save(tmp_path / "m.png")
    given = ["--mask", tmp_path / "m.png"] if command == "inpaint" else []
    out = tmp_path / "out"
    done = through(
        *("edit", command, "--model", model, "--image", tmp_path / "p.png", *given),
        *("--steps", 2, "--device", "cpu", "--out", out),
    )
    assert done.status == 0, done.err
    names = modes(out)
    assert len(names) == 3
    assert set(names.values()) == {MODES[channels]}
    with Image.open(next(out.glob("*-00000-*.png"))) as image:
        assert np.array_equal(np.asarray(image).reshape(8, 8, channels), pixels)


def test_sheets_and_animations(channels, tmp_path):
    pictures = torch.randint(256, (3, channels, 8, 8), dtype=torch.uint8)
    save_sheet(pictures, ["a", "b", "c"], tmp_path)
    assert set(modes(tmp_path).values()) == {MODES[channels]}
    if channels == 4:  # what was drawn before must not show through
        pictures[:, 3] = 255
        pictures[1, 3, :4] = 0
    for name in ("m.gif", "m.apng"):
        save_animation(pictures, tmp_path / name, back=False)
        with Image.open(tmp_path / name) as image:
            image.seek(1)
            frame = np.asarray(image.convert("RGBA"))[::16, ::16]
        expected = pictures[1].permute(1, 2, 0).numpy()
        assert np.array_equal(frame[..., 3], expected[..., 3] if channels == 4 else np.full((8, 8), 255))
        assert np.abs(frame[4:, :, 0].astype(int) - expected[4:, :, 0]).max() <= (0 if name == "m.apng" else 60)
