"""Consistency models under openai's names: what diffusers samples is what the original network and formulas give."""

import contextlib
import importlib
import io
import json
import math
from typing import Any

import diffusers
import pytest
import torch
from diffusers import ConsistencyModelPipeline
from torch import nn

from ldm_kit.cli import app
from ldm_kit.config import UserError
from ldm_kit.convert.consistency_models import convert_consistency_models, unet_from
from ldm_kit.convert.options import ConsistencyModelsOptions
from ldm_kit.diffusion import rng
from ldm_kit.models.consistency_folder import check_trainable
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from tests.nets.adm import Whole, restless

SMALL = {"base": 32, "multiples": (1, 2), "layers": 1, "attention": (1,), "head_size": 16, "new_order": True}
OPTIONS = ConsistencyModelsOptions(head_size=16)
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SCHEDULER = importlib.import_module("diffusers.schedulers.scheduling_consistency_models")
SIGMA_MIN, SIGMA_MAX, SIGMA_DATA, RHO = 0.002, 80.0, 0.5, 7.0
PUBLISHED = {  # name -> network, number of classes, side, number of weights, levels of the network with attention
    "imagenet64": (
        {"base": 192, "multiples": (1, 2, 3, 4), "layers": 3, "attention": (1, 2, 3), "head_size": 64},
        1000,
        64,
        295_899_267,
        (False, True, True, True),
    ),
    "lsun256": (
        {
            "base": 256,
            "multiples": (1, 1, 2, 2, 4, 4),
            "layers": 2,
            "attention": (3, 4, 5),
            "head_size": 64,
            "shift": False,
        },
        None,
        256,
        526_304_771,
        (False, False, False, True, True, True),
    ),
}


def original(**more):
    return restless(Whole(**{**SMALL, **more}))


def state_of(network):
    """Its weights in the shapes of openai/consistency_models, whose attention is made of 1x1 convolutions in 2D."""
    return {
        name: value[..., None] if name.endswith(("qkv.weight", "proj_out.weight")) else value
        for name, value in network.state_dict().items()
    }


def sigma_of(index, levels):
    low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
    return (high + index / (levels - 1) * (low - high)) ** RHO


def consistency(network, x, sigma, *labels):
    """Song et al. 2023, equation 5 and appendix C, clipped as their sampler clips."""
    c_skip = SIGMA_DATA**2 / ((sigma - SIGMA_MIN) ** 2 + SIGMA_DATA**2)
    c_out = (sigma - SIGMA_MIN) * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2) ** 0.5
    c_in = 1 / (sigma**2 + SIGMA_DATA**2) ** 0.5
    t = torch.full((len(x),), 1000 * 0.25 * torch.log(torch.tensor(sigma + 1e-44)).item())
    return (c_skip * x + c_out * network(c_in * x, t, *labels)).clamp(-1, 1)


def run(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        app(["convert", "consistency-models", *map(str, arguments)])
    return stopped.value.code or 0, out.getvalue(), err.getvalue()


@torch.no_grad()
@pytest.mark.parametrize(
    ("changed", "labels"),
    [({"classes": 4}, [3, 0]), ({"shift": False}, None)],
    ids=["as ImageNet's, with classes", "as LSUN's, with time added"],
)
def test_diffusers_samples_what_the_original_gives(tmp_path, changed, labels):
    theirs, levels = original(**changed), 40
    torch.save(state_of(theirs), tmp_path / "cd.pt")
    status, out, err = run(tmp_path / "cd.pt", tmp_path / "model", "--head_size", 16)
    assert (status, err) == (0, "")
    assert f"{'a consistency model of 4 classes' if labels else 'an unconditional consistency model'}, 16 px" in out
    pipeline = ConsistencyModelPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    given = () if labels is None else (torch.tensor(labels),)
    call = {"batch_size": 2, "class_labels": labels, "latents": X, "output_type": "pt"}
    expected = consistency(theirs, X * sigma_of(0, levels), sigma_of(0, levels), *given)
    one = pipeline(**call, num_inference_steps=1).images * 2 - 1
    torch.testing.assert_close(one, expected, rtol=0, atol=1e-4)
    assert (one.abs() < 0.99).float().mean() > 0.05, "a clipped picture would prove little"
    noise = torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
    sigma = sigma_of(22, levels)
    expected = consistency(theirs, expected + (sigma**2 - SIGMA_MIN**2) ** 0.5 * noise, sigma, *given)
    generator = torch.Generator().manual_seed(1)
    two = pipeline(**call, num_inference_steps=None, timesteps=[22, 0], generator=generator).images * 2 - 1
    torch.testing.assert_close(two, expected, rtol=0, atol=1e-3)
    assert (one - two).abs().max() > 0.1


@torch.no_grad()
def test_the_order_of_heads_is_that_of_flash_attention_or_legacy():
    x, t = X, torch.tensor([-1553.7, 1095.5])
    flash, legacy = original(), original(new_order=False)
    for theirs, options in ((flash, OPTIONS), (legacy, OPTIONS.model_copy(update={"legacy_attention": True}))):
        ours = unet_from(state_of(theirs), options)
        expected = theirs(x, t)
        torch.testing.assert_close(ours(x, t).sample, expected, rtol=0, atol=2e-5 * expected.abs().max().item())
    wrong = unet_from(state_of(legacy), OPTIONS)(x, t).sample
    assert (wrong - legacy(x, t)).abs().max() > 1e-3


def test_levels_are_those_of_the_scheduler(tmp_path):
    torch.save(state_of(original()), tmp_path / "ct.pt")
    status, out, _ = run(tmp_path / "ct.pt", tmp_path / "model", "--head_size", 16, "--levels", 201)
    assert (status, "201 noise levels" in out) == (0, True)
    scheduler = diffusers.CMStochasticIterativeScheduler.from_pretrained(tmp_path / "model", subfolder="scheduler")
    assert scheduler.config["num_train_timesteps"] == 201
    assert {file.suffix for file in (tmp_path / "model" / "unet").iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_are_read_at_full_size(name):
    """Without their numbers: names and shapes of all weights, and the network that takes them."""
    network, classes, side, weights, attention = PUBLISHED[name]
    with torch.device("meta"):
        theirs = Whole(**network, new_order=True, classes=classes)
        unet = unet_from(state_of(theirs), ConsistencyModelsOptions())
    assert unet.config["sample_size"] == side
    assert tuple("Attn" in kind for kind in unet.config["down_block_types"]) == attention
    assert unet.config["num_class_embeds"] == classes
    assert unet.config["attention_head_dim"] == 64
    assert [sum(p.numel() for p in net.parameters()) for net in (theirs, unet)] == [weights, weights]


class Ran:
    """What a pickle would run."""

    def __reduce__(self):
        return (print, ("ran",))


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        ({"weight": torch.zeros(3)}, OPTIONS, r"model\.pt: these are no weights of a guided-diffusion network"),
        (Ran(), OPTIONS, "pickled code is never run"),
        ([1, 2], OPTIONS, "holds no state dict"),
        ({"out_channels": 6}, OPTIONS, r"model\.pt: the network gives 6 channels for 3"),
        ({"base": 128, "multiples": (0.5, 1), "head_size": 64}, OPTIONS, "sinusoids than the first level"),
        ({}, ConsistencyModelsOptions(head_size=48), "64 channels cannot be cut into heads of 48"),
        ({}, ConsistencyModelsOptions(head_size=16, image_size=15), "side 15 cannot be halved"),
    ],
    ids=["other weights", "code", "list", "variance", "sinusoids", "heads", "size"],
)
def test_files_that_are_no_such_model_are_refused_in_a_sentence(tmp_path, capsys, content, options, sentence):
    is_network = isinstance(content, dict) and not any(isinstance(value, torch.Tensor) for value in content.values())
    torch.save(state_of(original(**content)) if is_network else content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=sentence) as refused:
        convert_consistency_models(tmp_path / "model.pt", tmp_path / "out", options)
    assert "\n" not in str(refused.value)
    assert capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


@pytest.fixture(params=[4, None], ids=["classes", "unconditional"])
def converted(request, tmp_path):
    torch.save(state_of(original(classes=request.param)), tmp_path / "cd.pt")
    convert_consistency_models(tmp_path / "cd.pt", tmp_path / "model", OPTIONS)
    return tmp_path / "model", ["3", "0"] if request.param else ["", ""]


def change_scheduler(folder, values):
    path = folder / "scheduler" / "scheduler_config.json"
    (folder / "manifest.json").unlink()
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


OTHER_LEVELS = {"num_train_timesteps": 24, "sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 0.8, "rho": 4.0}


@torch.no_grad()
@pytest.mark.parametrize(("steps", "levels"), [(1, {}), (2, {}), (2, OTHER_LEVELS)])
def test_our_pipeline_gives_diffusers_pictures(converted, steps, levels, monkeypatch):
    """But for what the module consistency_folder says of the first noise and the least."""
    folder, prompts = converted
    change_scheduler(folder, levels)
    last = levels.get("num_train_timesteps", 40) - 1
    ours, theirs = Pipeline.load(folder), ConsistencyModelPipeline.from_pretrained(folder, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    options = SamplingOptions(steps=steps).resolve(ours)
    assert (options.solver, options.guidance_scale) == ("consistency", 1)
    x, seeds = rng.initial_noise([0, 1], ours.latent_shape), [0, 1]
    pictures = [*ours.states(prompts, seeds, options, noise=x)][-1].x
    monkeypatch.setattr(SCHEDULER, "randn_tensor", lambda shape, **_: rng.step_noise(seeds, 0, shape[1:]))
    labels = None if prompts[0] == "" else [3, 0]
    given = {"num_inference_steps": None, "timesteps": [last - t for t in options.timesteps[:-1]][::-1]}
    sampled: Any = theirs(batch_size=2, class_labels=labels, latents=x.clone(), output_type="pt", **given)
    torch.testing.assert_close(pictures, sampled.images * 2 - 1, rtol=0, atol=2e-3)
    assert (pictures.abs() < 0.99).float().mean() > 0.05, "a clipped picture would prove little"


def test_it_is_sampled_in_two_steps_by_default(converted):
    saved = Pipeline.load(converted[0]).saved.sampling
    assert saved == {"solver": "consistency", "steps": 2, "guidance_scale": 1.0}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_network_has_the_exact_levels(converted, dtype):
    """As sampling on a GPU casts it: all weights and buffers."""
    unet, times = Pipeline.load(converted[0]).unet, []
    nn.Module.to(unet, dtype)
    unet.time_proj.register_forward_pre_hook(lambda _, arguments: times.append(arguments[0]))
    t = torch.tensor([0, 20, 39])
    labels = None if unet.class_embedding is None else torch.zeros(3, unet.time_embedding.linear_2.out_features)
    unet(torch.randn(3, 3, 16, 16).to(dtype), t, class_labels=labels)
    expected = [250 * math.log(sigma_of(39 - index, 40)) for index in t.tolist()]
    assert times[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_it_is_not_saved(converted, tmp_path):
    with pytest.raises(UserError, match=r"saved to .* can only be sampled"):
        Pipeline.load(converted[0]).save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_it_is_not_trained_on(converted):
    with pytest.raises(UserError, match=r"base here is a consistency model of ConsistencyModelPipeline, .*sampled"):
        check_trainable(Pipeline.load(converted[0]).unet, "base here")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sigma_min", 90.0, "sigma_min is 90.0; expected less than sigma_max, 80.0"),
        ("num_train_timesteps", 1, "num_train_timesteps"),
        ("rho", "seven", "rho"),
    ],
)
def test_wrong_levels_are_named(converted, key, value, said):
    path = converted[0] / "scheduler" / "scheduler_config.json"
    (converted[0] / "manifest.json").unlink(missing_ok=True)
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(UserError, match=r"scheduler_config\.json") as caught:
        Pipeline.load(converted[0])
    assert said in str(caught.value)


def test_the_index_must_name_the_parts_of_the_pipeline(converted):
    path = converted[0] / "model_index.json"
    (converted[0] / "manifest.json").unlink()
    path.write_text(path.read_text().replace("CMStochasticIterativeScheduler", "DDIMScheduler"))
    with pytest.raises(UserError, match="expected unet UNet2DModel and scheduler CMStochasticIterativeScheduler"):
        Pipeline.load(converted[0])
