"""CUDA against CPU: loss and gradients of a training step of every method, in float32, bf16 and fp16.

Weights, batch and noise are the same, the last by (seed, step, position). Noise that depended on the global generator
would show in a rehearsal too, since both steps seed it differently.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_kit.config import Precision
from ldm_kit.methods import check_run
from ldm_kit.methods.run_config import RunConfig
from tests.gpu.devices import CPU, REHEARSAL, Step, rehearsed, training_step
from tests.methods.semantic_toys import COMMON, DIFFAE, PDAE, PRIOR, base, checked, opened, two_factors
from tests.nets.originals import perturbed
from tests.training.helpers import (
    CLASSES,
    CLASSIFIER,
    KL,
    STAGE_2,
    TEXT,
    VQ,
    picture_folder,
    settings,
)
from tests.world import World

GAME = ("loss.adversarial.start=0", "loss.adversarial.discriminator_start=0", "loss.adversarial.ramp=1")
PIXELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "kl": (KL, GAME),
    "vq": (VQ, GAME),
    "pixels": (STAGE_2, ()),
    "pixels-class": (CLASSES, ()),
    "pixels-text": (TEXT, ()),
    "pixels-learned": (STAGE_2, ("variance=learned_range", "prediction_type=eps")),
    "classifier": (CLASSIFIER, ()),
}
LATENTS = {"latent": "plain", "latent-class": "class", "latent-text": "text", "latent-vq": "plain_vq"}
SMALL = {"widths": [8], "attention_levels": [False], "norm_num_groups": 4, "layers_per_block": 1}
SEMANTIC = ("diffae", "pdae", "prior")
CONSISTENCY = {
    "consistency-tune": {"mode": "tune", "stages": 4},
    "consistency-distill": {"mode": "distill"},
    "consistency-train": {
        "mode": "train",
        "unet": SMALL,
        "schedule": {"kind": "linear", "num_train_timesteps": 40},
    },
}
METHODS = (*PIXELS, *LATENTS, *SEMANTIC, *CONSISTENCY)
CLOSE = {"no": (1e-4, 2e-3), "bf16": (0.05, 0.2), "fp16": (0.02, 0.1)}  # relative errors of losses and gradients


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory, world: World) -> Callable[..., RunConfig]:
    """A config by the method's name; the models that it builds on have random weights, made on the CPU."""
    root = tmp_path_factory.mktemp("steps")
    pictures, small = picture_folder(root / "pictures"), two_factors(root / "small", count=30)
    bases = {"plain": base(root / "plain", widths=(16,))}

    def semantic() -> Path:
        if "semantic" not in bases:
            method = opened(checked(DIFFAE, small, root / "semantic"))
            with torch.no_grad():
                perturbed(method.module)
            method.save_model(root / "semantic" / "model")
            bases["semantic"] = root / "semantic" / "model"
        return bases["semantic"]

    def config(name: str, precision: Precision = "no") -> RunConfig:
        run = root / f"run-{name}"
        if name in PIXELS:
            tree, overrides = PIXELS[name]
            return settings(tree, pictures, run, f"train.precision={precision}", *overrides)
        if name in LATENTS:
            tree = world.ldm(LATENTS[name], f"run-{name}")
            return check_run({**tree, "train": {**tree["train"], "precision": precision}}, name)
        more: dict[str, Any] = {"train": {**COMMON["train"], "precision": precision}}
        if name in CONSISTENCY:
            kind = CONSISTENCY[name]
            based = {} if kind["mode"] == "train" else {"base": str(bases["plain"])}
            return checked({**COMMON, "method": "consistency"}, small, run, **kind, **based, **more)
        if name == "prior":
            return checked(PRIOR, small, run, model=str(semantic()), **more)
        if name == "pdae":
            return checked(PDAE, small, run, base=str(bases["plain"]), **more)
        return checked(DIFFAE, small, run, **more)

    return config


@pytest.fixture(scope="module")
def expected(configs: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Step]:
    """The step of a method on the CPU in float32, made once."""
    made: dict[str, Step] = {}

    def get(name: str) -> Step:
        if name not in made:
            made[name] = training_step(configs(name), CPU, tmp_path_factory.mktemp("expected"))
        return made[name]

    return get


def assert_close(step: Step, expected: Step, precision: str) -> None:
    loss, gradient = CLOSE[precision]
    assert step.losses.keys() == expected.losses.keys() == expected.norms.keys()
    for name, value in expected.losses.items():
        assert math.isfinite(value)
        assert expected.norms[name] > 0
        assert step.losses[name] == pytest.approx(value, rel=loss, abs=1e-6), name
        assert step.error(expected, name) < gradient, name
        assert step.norms[name] == pytest.approx(expected.norms[name], rel=gradient), name


@pytest.mark.parametrize("name", METHODS)
def test_float32(name, device, configs, expected, tmp_path):
    assert_close(training_step(configs(name), device, tmp_path, seed=1), expected(name), "no")


@rehearsed
@pytest.mark.parametrize("name", ["kl", "pixels-text"])
def test_bf16(name, device, configs, expected, tmp_path):
    assert_close(training_step(configs(name, "bf16"), device, tmp_path, seed=1), expected(name), "bf16")


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("kl", "pixels-text")])
def test_bf16_of_the_others(name, device, configs, expected, tmp_path):
    assert_close(training_step(configs(name, "bf16"), device, tmp_path, seed=1), expected(name), "bf16")


@pytest.mark.skipif(REHEARSAL, reason="fp16 needs a GPU")
@pytest.mark.parametrize("name", METHODS)
def test_fp16(name, device, configs, expected, tmp_path):
    step = training_step(configs(name, "fp16"), device, tmp_path, seed=1)
    assert step.scale == 2.0**10
    assert_close(step, expected(name), "fp16")
