"""Diffusion of pixels through the scripts: grey digits, classes as vectors, a learned variance."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ldm_kit.models.pipeline import Pipeline
from tests.world import through

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The run of configs/pixels/tiny.yaml."""
    folder = tmp_path_factory.mktemp("pixels") / "run"
    found = through("train_ldm", ROOT / "configs/pixels/tiny.yaml", f"run={folder}")
    assert found.status == 0, found.err
    return folder


def test_the_run_leaves_grey_grids_and_a_model(trained):
    assert list((trained / "pictures").glob("samples-*.png"))
    pipeline = Pipeline.load(trained / "model")
    assert pipeline.vae is None
    assert pipeline.latent_shape == (1, 8, 8)
    assert pipeline.variance == "learned_range"
    assert pipeline.conditioner.vector_width == 64
    assert json.loads((trained / "model/unet/config.json").read_text())["class_embed_type"] == "identity"


@pytest.mark.parametrize("scale", ["1", "2"])
def test_it_draws_digits_by_name(trained, tmp_path, scale):
    asked = ("3", "7", "--steps", "2", "--solver", "ddpm", "--guidance_scale", scale, "--device", "cpu")
    found = through("sample", trained, *asked, "--out", tmp_path)
    assert found.status == 0, found.err
    drawn = sorted(tmp_path.glob("*-*.png"))
    assert [path.name for path in drawn] == ["00000000-00000-3.png", "00000000-00001-7.png"]
    for path in drawn:
        with Image.open(path) as picture:
            assert picture.size == (8, 8)
            assert picture.convert("RGB").convert("L").convert("RGB").tobytes() == picture.convert("RGB").tobytes()
    assert (tmp_path / "grid.png").exists()


def test_an_unknown_digit_is_told_the_nearest(trained, tmp_path):
    found = through("sample", trained, "11", "--out", tmp_path / "none", "--device", "cpu")
    assert found.status == 2
    assert "unknown class '11'" in found.errors[0]
