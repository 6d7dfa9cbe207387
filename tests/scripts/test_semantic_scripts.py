"""Codes through the script: a model is trained, then its prior; and another on the frozen model of another run."""

import json
from typing import Any

import pytest
import torch

from ldm_kit.models.semantic import SemanticModel
from tests.world import TEXT, World, through

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
ENCODER = {
    "kind": "diffae",
    "z_width": 8,
    "widths": [8, 16],
    "attention_levels": [False, True],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
STRIDED = {"kind": "strided", "z_width": 8, "widths": [8, 16], "attention": 2, "norm_num_groups": 4}
UNET = {
    "widths": [8, 16],
    "attention_levels": [False, True],
    "layers_per_block": 1,
    "time_width": 16,
    "norm_num_groups": 4,
}
SHOWN = {"encode_steps": 2, "decode_steps": 2}


def trained(world: World, name: str, **tree: Any) -> SemanticModel:
    found = through("train_ldm", world.write({**world.common(name), **tree}, f"{name}.yaml"))
    assert found.status == 0, found.err
    assert "semantic model" in found.out + found.err
    run = world.root / name
    assert len(list((run / "pictures").glob("*-00000002.png"))) == 1
    assert (run / "pictures" / "curves.png").exists()
    model = SemanticModel.load(run)
    pictures = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    assert model.decode(model.encode(pictures), None, 2).shape == pictures.shape
    return model


def figures(world: World, name: str) -> set[str]:
    lines = (world.root / name / "metrics.jsonl").read_text().splitlines()
    return {key for line in lines for key in json.loads(line) if key.startswith(("heldout", "semantic", "prior"))}


CLASSES = {"kind": "class", "form": "vector"}


@pytest.fixture(scope="module")
def codes(world: World) -> SemanticModel:
    return trained(world, "codes", method="diffae", encoder=ENCODER, unet=UNET, sample=SHOWN)


@pytest.mark.parametrize(
    ("name", "condition", "told"),
    [("codes_prior", CLASSES, ["red", "blue"]), ("codes_told", TEXT, ["red square 1", "blue square 2"])],
)
def test_a_prior_of_codes(world: World, codes, name, condition, told):
    assert codes.prior is None
    sample = {"steps": 2, "decode_steps": 2, "guidance_scale": 2}
    more = {"model": str(world.root / "codes"), "net": {"hidden": 8, "layers": 2}, "sample": sample}
    more |= {"optim": {"lr": 1e-2, "warmup": 0}, "train": {"steps": 2, "batch_size": 4}}
    model = trained(world, name, method="prior", condition=condition, **more)
    z = model.sample_z([0, 0], 2, told)
    assert z.shape == (2, 8)
    assert not torch.equal(z[0], z[1]), "two things told, one noise"
    assert {"prior_loss", "heldout_loss"} <= figures(world, name)


def test_figures_of_codes(world: World, codes):
    assert {"semantic_loss", "heldout_loss"} <= figures(world, "codes")
    assert {"heldout_mse_inferred", "heldout_mse_random"} <= figures(world, "codes")


def test_codes_on_a_frozen_model_of_latents(world: World):
    base = str(world.model("class"))
    model = trained(world, "shifted", method="pdae", base=base, encoder=STRIDED, flip=True, sample=SHOWN)
    assert model.latent_shape == (4, 8, 8)
    assert {"semantic_loss", "heldout_loss"} <= figures(world, "shifted")
