"""What is refused in training and saving is refused on opening, and foreign JSON is typed before it is used."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import schedulers
from pydantic import ValidationError

from autoencoder import saved
from autoencoder.base import AutoencoderError
from conditioning.factory import build as build_conditioner
from conditioning.labels import ClassConfig
from ldm_kit import load
from ldm_kit.config import UserError
from ldm_kit.diffusion.schedule import ScheduleConfig, build
from ldm_kit.methods import check_run
from ldm_kit.models.base_model import BaseModel
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.half_unet import HalfUNetConfig, build_half_unet
from ldm_kit.solvers.scheduler_config import from_scheduler_config, read_variance, saved_scheduler
from tests.editing.models import semantic
from tests.methods.semantic_toys import DIFFAE, LINEAR, PRIOR, base, checked

pytestmark = [  # diffusers on numpy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]
BETAS = [name for name in dir(schedulers) if hasattr(getattr(schedulers, name), "from_pretrained")]
TO_ZERO = {"rescale_betas_zero_snr": True}
FLOW = {"use_flow_sigmas": True}
SCHEDULER = "scheduler/scheduler_config.json"
INDEX = "model_index.json"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))


def edit(path: Path, changes: dict[str, Any]) -> None:
    """Change keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))


def classifier(folder: Path) -> Path:
    config = HalfUNetConfig(widths=(8,), attention_levels=(False,), head_size=None, norm_num_groups=4)
    net = build_half_unet(config, sample_size=8, channels=3, classes=["b", "t"]).eval()
    NoisyClassifier(net, ("b", "t"), LINEAR, None).save(folder)
    return folder


def with_prior(folder: Path) -> Path:
    classes = build_conditioner(ClassConfig(kind="class", form="vector"), classes=["a", "b"], time_width=8)
    return semantic(folder, conditioner=classes)


MAKE: dict[str, Callable[[Path], Path]] = {
    "pipeline": base,
    "classes": lambda folder: base(folder, "classes"),
    "latents": lambda folder: base(folder, "latents"),
    "semantic": with_prior,
    "classifier": classifier,
}
REFUSED_SCHEDULERS = [
    ("pipeline", "", TO_ZERO, "'eps' is undefined where the schedule ends in pure noise"),
    ("pipeline", "", {"trained_betas": [0.01] * 199 + [1]}, "'eps' is undefined where the schedule ends in pure noise"),
    ("pipeline", "", {"beta_start": 0.9, "beta_end": 0.95}, "'eps' is undefined where the schedule ends in pure noise"),
    ("pipeline", "", FLOW, "'eps' does not go with the flow schedule"),
    ("pipeline", "", {**FLOW, "prediction_type": "sample"}, "'x0' does not go with the flow schedule"),
    ("pipeline", "", {"prediction_type": "flow_prediction"}, "'flow' does not go with the linear schedule"),
    ("pipeline", "", {**FLOW, "prediction_type": "flow_prediction", "variance_type": "fixed_large"}, "no ddpm-large"),
    ("pipeline", "", {**FLOW, "prediction_type": "flow_prediction", "variance_type": "learned_range"}, "learned var"),
    ("semantic", "", TO_ZERO, "'eps' is undefined where the schedule ends in pure noise"),
    ("semantic", "", {"prediction_type": "sample"}, "U-Net predicts eps or v alone"),
    ("semantic", "", {**FLOW, "prediction_type": "flow_prediction"}, "U-Net predicts eps or v alone"),
    ("semantic", "", {"variance_type": "learned_range"}, "U-Net predicts eps or v alone"),
    ("semantic", "prior/", TO_ZERO, "'eps' is undefined where the schedule ends in pure noise"),
    ("semantic", "prior/", {**FLOW, "prediction_type": "flow_prediction"}, "prior predicts eps, x0 or v, and no var"),
    ("semantic", "prior/", {"variance_type": "learned_range"}, "network of a prior predicts eps, x0 or v, and no var"),
    ("classifier", "", {**FLOW, "prediction_type": "epsilon"}, "'eps' does not go with the flow schedule"),
]


@pytest.mark.parametrize(("kind", "folder", "change", "sentence"), REFUSED_SCHEDULERS)
def test_what_is_refused_on_writing_is_refused_on_opening(tmp_path, kind, folder, change, sentence):
    model = MAKE[kind](tmp_path / "model")
    edit(model / folder / SCHEDULER, change)
    with pytest.raises(UserError, match=sentence):
        load(model)
    if kind == "pipeline":
        with pytest.raises(UserError, match=sentence):
            BaseModel.open(model)


KINDS = ("linear", "scaled_linear", "cosine", "constant", "flow", "given")
LISTED = {"given": {"betas": [0.02] * 199 + [0.5]}}
LATENT = {"run": "r", "data": {"source": "digits"}, "train": {"steps": 1, "batch_size": 1}, "unet": {}}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_config_accepts_can_be_saved_and_opened_again(kind):
    """Every combination of schedule, target and variance: the validator, the exporter and the reader agree."""
    accepted = 0
    for zero, target, variance in product(
        (False, True), ("eps", "x0", "v", "flow"), ("small", "large", "learned_range")
    ):
        schedule = {"kind": kind, "num_train_timesteps": 200, "zero_terminal": zero, **LISTED.get(kind, {})}
        tree = {**LATENT, "schedule": schedule, "prediction_type": target, "variance": variance}
        try:
            config: Any = check_run(tree, "config")
        except UserError:
            continue
        accepted += 1
        written = json.loads(saved_scheduler(config.schedule, target, variance).to_json_string())
        again, read = from_scheduler_config(written)
        assert (read, read_variance(written)) == (target, variance)
        assert torch.equal(build(again).a, build(config.schedule).a)
    assert accepted == (1 if kind == "flow" else 9 + 6)


def test_a_run_that_could_not_be_saved_is_refused_at_the_door(tmp_path):
    tree = {**LATENT, "schedule": {"kind": "flow"}, "prediction_type": "flow"}
    with pytest.raises(
        UserError, match=r"could not be saved: diffusers has no ddpm-large .* expected dpm\+\+ or unipc"
    ):
        check_run({**tree, "variance": "large"}, "config")
    weak = {"kind": "constant", "start": 0.9}  # a_T is 0 in float32
    for method, more in ((DIFFAE, {}), (PRIOR, {"model": "m"})):
        with pytest.raises(UserError, match="'eps' is undefined where the schedule ends in pure noise"):
            checked({**method, **more, "schedule": weak}, tmp_path, tmp_path / "run")
    with pytest.raises(UserError, match="'eps' is undefined where the schedule ends in pure noise"):
        check_run({**LATENT, "prediction_type": "eps", "schedule": weak}, "config")


def with_betas(name: str) -> bool:
    import inspect

    return "beta_schedule" in inspect.signature(getattr(schedulers, name).__init__).parameters


@pytest.mark.parametrize("name", [name for name in BETAS if with_betas(name) and name != "UnCLIPScheduler"])
def test_absent_keys_are_those_of_the_scheduler_class(name):
    """The table is diffusers' own, whatever is absent: scaled_linear without ends has DDIM's ends and not LDM's."""
    if name.startswith("CogVideoX"):
        with pytest.raises(UserError, match=r"shifts its schedule \(snr_shift_scale 3\)"):
            from_scheduler_config({"_class_name": name})
        return
    keys = [{"beta_schedule": "scaled_linear"}, {}, {"beta_end": 0.015}, {"beta_start": 0.002}]
    for given in keys[:1] if name.startswith("KDPM2") else keys:  # these take a second each
        theirs = getattr(schedulers, name)(**given)
        schedule, target = from_scheduler_config({"_class_name": name, **given})
        assert target == "eps"
        torch.testing.assert_close(build(schedule).a.square().float(), theirs.alphas_cumprod, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"_class_name": "MyScheduler", "beta_schedule": "linear"}, "MyScheduler lacks num_train_timesteps, pred"),
        ({"beta_schedule": "linear", "num_train_timesteps": 9, "prediction_type": "epsilon"}, "lacks beta_start, beta"),
        ({"_class_name": "DDIMScheduler", "beta_start": None}, "no number as beta_start or beta_end"),
        ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler has beta_schedule None"),
        ({"_class_name": ["DDIMScheduler"]}, "_class_name is"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": "1000"}, "num_train_timesteps: expected"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": 1e3}, "num_train_timesteps: expected"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": 10**12}, "num_train_timesteps: expected"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": ["linear"]}, "beta_schedule: expected"),
        ({"_class_name": "DDIMScheduler", "beta_end": "0.02"}, "beta_end: expected"),
        ({"_class_name": "DDIMScheduler", "beta_end": float("nan")}, "beta_end: expected"),
        ({"_class_name": "DDIMScheduler", "trained_betas": 0.1}, "trained_betas: expected"),
        ({"_class_name": "DDIMScheduler", "trained_betas": [None]}, "trained_betas.0: expected"),
        ({"_class_name": "DDIMScheduler", "prediction_type": ["epsilon"]}, "prediction_type: expected"),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": "no"}, "rescale_betas_zero_snr: expected"),
        ({"_class_name": "DDIMScheduler", "variance_type": {}}, "variance_type: expected"),
        ({"_class_name": "DDPMScheduler", "variance_type": "mine"}, "variance_type 'mine'"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": 1}, "use_flow_sigmas: expected"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "prediction_type": 3}, "prediction_type: expected"),
    ],
)
def test_the_schedulers_keys_are_typed(config, sentence):
    with pytest.raises(UserError, match=sentence):
        from_scheduler_config(config)


def test_a_large_variance_is_large_by_either_name():
    for name, variance in (("fixed_large", "large"), ("fixed_large_log", "large"), ("fixed_small_log", "small")):
        assert read_variance({"_class_name": "DDPMScheduler", "variance_type": name}) == variance


def test_defaults_are_those_of_the_class_that_the_index_names(tmp_path):
    """diffusers builds the class of model_index.json, whatever class the scheduler's own file names."""
    model = base(tmp_path / "model")
    edit(model / SCHEDULER, {"beta_end": "absent", "beta_start": "absent", "_class_name": "HeunDiscreteScheduler"})
    schedule = Pipeline.load(model).schedule_config
    assert (schedule.start, schedule.end) == (1e-4, 0.02)
    edit(model / INDEX, {"scheduler": ["diffusers", "HeunDiscreteScheduler"]})
    assert Pipeline.load(model).schedule_config.end == 0.012


WRONG_JSON = [
    ("pipeline", INDEX, {"scheduler": ["diffusers"]}, "scheduler is .*; expected its library and its class"),
    ("pipeline", INDEX, {"scheduler": ["diffusers", ["DDIMScheduler"]]}, "scheduler is .*; expected its library"),
    ("pipeline", INDEX, {"scheduler": "DDIMScheduler"}, "names no scheduler|scheduler is 'DDIMScheduler'; expected"),
    ("pipeline", INDEX, {"unet": ["diffusers"]}, "unet is .*; expected its library and its class"),
    ("pipeline", INDEX, {"unet": "UNet2DModel"}, "unet is 'UNet2DModel'; expected its library and its class"),
    ("pipeline", INDEX, {"unet": [["diffusers"], "UNet2DModel"]}, "unet is .*; expected its library and its class"),
    ("pipeline", INDEX, {"vae": {"a": 1}}, "vae is .*; expected its library and its class"),
    ("pipeline", INDEX, {"_class_name": ["Pipeline"]}, "_class_name is .*; expected the name of a class"),
    ("pipeline", "unet/config.json", {"sample_size": [8, 16]}, r"sample_size is .*8, 16.*; expected a whole number"),
    ("pipeline", "unet/config.json", {"sample_size": "8"}, "sample_size is '8'; expected a whole number"),
    ("pipeline", "unet/config.json", {"sample_size": None}, "sample_size is None; expected a whole number"),
    ("pipeline", "unet/config.json", {"sample_size": 8.0}, r"sample_size is 8\.0; expected a whole number"),
    ("pipeline", "unet/config.json", {"_class_name": ["UNet2DModel"]}, "is of class"),
    ("latents", "vqvae/config.json", {"scaling_factor": 0}, "scaling_factor is 0; expected a number but 0"),
    ("latents", "vqvae/config.json", {"scaling_factor": "0.2"}, "scaling_factor is '0.2'; expected a number"),
    ("latents", "vqvae/config.json", {"scaling_factor": None}, "scaling_factor is None; expected a number"),
    ("latents", "vqvae/config.json", {"shift_factor": [1]}, r"shift_factor is .*1.*; expected a number, or null"),
    ("latents", "vqvae/config.json", {"latents_mean": [0.0]}, r"latents_mean is .*; expected 4 numbers"),
    ("latents", "vqvae/config.json", {"latents_mean": [0] * 4, "latents_std": [1, 1, 0, 1]}, "latents_std is"),
    ("semantic", "unet/config.json", {"sample_size": [16, 8]}, "sample_size is .*; expected a whole number"),
    ("semantic", "encoder/config.json", {"z_width": True}, "cannot open|z_width is True; expected a whole number"),
    ("semantic", INDEX, {"encoder": ["conditioning.semantic"]}, "encoder is .*expected SemanticEncoder"),
    ("semantic", "prior/class_encoder/config.json", {"classes": "ab"}, "classes are 'ab'; expected a list of names"),
    ("semantic", "prior/class_encoder/config.json", {"classes": ["a", "a"]}, "class names must be unique"),
    ("semantic", "prior/class_encoder/config.json", {"form": "both"}, "form is 'both'; expected token or vector"),
    ("classifier", "classifier/config.json", {"classes": "bt"}, "classes are 'bt'; expected two or more different"),
    ("classifier", "classifier/config.json", {"classes": ["b", "b"]}, "classes are .*; expected two or more different"),
    ("classifier", INDEX, {"first_stage": 3}, "first_stage is 3; expected a fingerprint"),
]


@pytest.mark.parametrize(("kind", "file", "change", "sentence"), WRONG_JSON)
def test_foreign_json_is_typed_before_it_is_used(tmp_path, kind, file, change, sentence):
    model = MAKE[kind](tmp_path / "model")
    edit(model / file, change)
    with pytest.raises(UserError, match=sentence):
        load(model)
    if file.startswith("vqvae"):
        with pytest.raises(AutoencoderError, match=sentence):
            saved.load(model)


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"a":', "[" * 100_000, '{"_class_name": ["AutoencoderKL"]}'])
@pytest.mark.parametrize("file", [INDEX, SCHEDULER, "unet/config.json", "vqvae/config.json"])
def test_a_file_of_anything_else(tmp_path, file, text):
    model = base(tmp_path / "model", "latents")
    (model / file).write_text(text)
    with pytest.raises(UserError):
        load(model)
    if file.startswith("vqvae"):
        with pytest.raises(AutoencoderError):
            saved.load(model / "vqvae")


def test_a_square_sample_size_is_its_side(tmp_path):
    model = base(tmp_path / "model")
    edit(model / "unet" / "config.json", {"sample_size": [8, 8]})
    assert Pipeline.load(model).latent_shape == (3, 8, 8)


def test_the_fixtures_open_as_they_are(tmp_path):
    for kind, make in MAKE.items():
        assert isinstance(load(make(tmp_path / kind)), Pipeline | SemanticModel | NoisyClassifier)
    with pytest.raises(ValidationError):
        ScheduleConfig(kind="given")
