"""Toy models of the page, and a library of them, without a server."""

from pathlib import Path

import pytest
from PIL import Image

from ldm_kit.app.models import ModelLibrary
from ldm_kit.app.options import AppOptions
from tests.app import toys

OPTIONS = AppOptions(device="cpu", port=0)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """Folders of models by name."""
    root = tmp_path_factory.mktemp("app")
    made = {
        "text": toys.text_model,
        "inpaint": toys.inpainting_model,
        "diffae": toys.semantic_model,
        "prior": toys.prior_model,
        "image": toys.variation_model,
        "unclip": lambda folder: toys.variation_model(folder, ("cat", "dog")),
        "unclip_plain": lambda folder: toys.variation_model(folder, plain=True),
        "sizes": toys.sized_model,
    }
    classes = Path(__file__).parents[1] / "fixtures" / "v0_1" / "pixels"
    return {**{name: make(root / name) for name, make in made.items()}, "pixels": classes}


@pytest.fixture(scope="module")
def library(models) -> ModelLibrary:
    """All of them, none loaded."""
    return ModelLibrary([*models.values()], OPTIONS)


@pytest.fixture(scope="session")
def picture(tmp_path_factory) -> Path:
    """A picture of 24 x 24 pixels with four colours."""
    image = Image.new("RGB", (24, 24), (200, 40, 40))
    image.paste((30, 160, 60), (12, 0, 24, 12))
    image.paste((40, 60, 200), (0, 12, 12, 24))
    image.paste((240, 220, 60), (12, 12, 24, 24))
    path = tmp_path_factory.mktemp("pictures") / "four.png"
    image.save(path)
    return path


@pytest.fixture(scope="session")
def other(tmp_path_factory) -> Path:
    """Another picture."""
    path = tmp_path_factory.mktemp("pictures") / "other.png"
    Image.linear_gradient("L").resize((16, 16)).convert("RGB").save(path)
    return path
