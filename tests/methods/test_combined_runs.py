"""Runs with several conditions: dropped each by itself, saved, sampled with scales of their own, resumed."""

import shutil

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.methods.inputs import DropoutShares, drop_mask
from ldm_kit.methods.latent import Latent
from ldm_kit.methods.train import open_method, train
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from tests.training.helpers import STAGE_2, TEXT, picture_folder, play, reset, settings
from tests.world import through

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers on numpy 2
    pytest.mark.usefixtures("own_cache"),
]
TEXT_ALONE, CLASS = TEXT["condition"], {"kind": "class", "width": 16}
TREE = {**STAGE_2, "unet": {**STAGE_2["unet"], "dropout": 0.0}, "condition": [TEXT_ALONE, CLASS]}
PROMPTS = ["a thing of kind 1 || b", "a thing of kind 4 || c"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture(scope="module")
def model(pictures, tmp_path_factory):
    tree = {**TREE, "train": {"steps": 2, "batch_size": 4}, "sample": {"steps": 2, "guidance_scales": [2.0, 5.0]}}
    reset()
    return train(settings(tree, pictures, tmp_path_factory.mktemp("runs") / "run"))


def opened(pictures, *overrides, **more) -> Latent:
    return open_method(settings({**TREE, **more}, pictures, pictures.parent / "run", *overrides))  # type: ignore[return-value]


def test_conditions_are_dropped_together_and_each_alone(pictures):
    method = opened(pictures, "condition_dropout=0.2", condition=[TEXT_ALONE, {**CLASS, "dropout": 0.5}])
    assert method.dropout == DropoutShares(0.2, [0.2, 0.5])
    count = 1000
    batch = method.batches.__getitems__([(position, position % 24) for position in range(count)])
    seen = []
    method.module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[2]))
    method.module.unet.forward = lambda x, *_, **__: (x,)  # what the network makes of it does not matter
    _ = next(method.losses(batch, 0))
    (inputs,), null = seen, method.null
    text = (inputs["0.ids"] == null["0.ids"]).all(1)
    classes = inputs["1.labels"] == null["1.labels"]
    position = torch.arange(count)
    joint, own = (drop_mask(method.config.seed, position, 0.2, name) for name in ("drop", "drop 0"))
    assert torch.equal(text, joint | own)
    assert torch.equal(classes, joint | drop_mask(method.config.seed, position, 0.5, "drop 1"))
    assert abs((text & classes).float().mean() - (0.2 + 0.8 * 0.2 * 0.5)) < 0.04
    assert torch.equal(inputs["0.ids"][~text], batch["inputs"]["0.ids"][~text])


def test_one_condition_is_dropped_as_before(pictures):
    method = opened(pictures, condition=TEXT_ALONE)
    assert method.dropout == DropoutShares(0.3, [0.0])
    assert opened(pictures, condition={"kind": "none"}).dropout.each == []


def test_a_run_resumes_bit_for_bit(pictures, tmp_path):
    tree = {**STAGE_2, "condition": [TEXT_ALONE, CLASS], "train": {"steps": 4, "batch_size": 4}}
    config = settings(tree, pictures, tmp_path / "run", "train.checkpoint_every=2")
    whole = play(config)
    shutil.rmtree(tmp_path / "run")
    play(config, until=2)
    resumed = play(config, resume="latest")
    assert resumed.weights == whole.weights


@torch.no_grad()
def test_each_scale_is_of_its_condition(model):
    pipeline = Pipeline.load(model)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([20, 20])
    options = SamplingOptions(steps=2, guidance_scales="2,5", clip="none").resolve(pipeline)
    guided = pipeline.guided_denoiser(PROMPTS, options)(x, t, pipeline.condition(PROMPTS))
    nothing, text, both = (
        pipeline.denoiser()(x, t, pipeline.condition(prompts)).x_0
        for prompts in (["", ""], ["a thing of kind 1 ||", "a thing of kind 4 || "], PROMPTS)
    )
    assert torch.allclose(guided.x_0, nothing + 2 * (text - nothing) + 5 * (both - text), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("scales", "calls"), [("3,3", 1), ("1,1", 1), ("1,4", 1), ("2,1", 3), ("2,5", 3)])
def test_no_more_evaluations_than_needed(model, scales, calls):
    """Equal scales are classifier-free guidance, of one call with both halves; with 1 first nothing is left out."""
    pipeline, prompts = Pipeline.load(model), PROMPTS[:1]
    options = SamplingOptions(steps=1, guidance_scales=scales, clip="none").resolve(pipeline)
    count = []
    pipeline.unet.register_forward_hook(lambda *_: count.append(1))
    guided = pipeline.guided_denoiser(prompts, options)
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([20])
    p, made = guided(x, t, pipeline.condition(prompts)), len(count)
    nothing, text, both = (
        pipeline.denoiser()(x, t, pipeline.condition([prompt])).x_0
        for prompt in ("", f"{prompts[0][:17]} ||", *prompts)
    )
    one, two = map(float, scales.split(","))
    assert torch.allclose(p.x_0, nothing + one * (text - nothing) + two * (both - text), atol=1e-5)
    assert made == calls


def test_scales_are_saved_and_a_single_one_replaces_them(model):
    pipeline = Pipeline.load(model)
    assert SamplingOptions().resolve(pipeline).guidance_scales == (2.0, 5.0)
    single = SamplingOptions(guidance_scale=2).resolve(pipeline)
    assert (single.guidance_scale, single.guidance_scales) == (2, None)
    with pytest.raises(UserError, match="--guidance_scales has 3 scales, but this model has 2 conditions"):
        SamplingOptions(guidance_scales="1,2,3").resolve(pipeline)
    with pytest.raises(UserError, match="expected one of them"):
        SamplingOptions(guidance_scales="1,2", guidance_scale=2).resolve(pipeline)


def test_the_script_takes_prompts_of_two_parts(model, tmp_path):
    run = through("sample", model, PROMPTS[0], "--guidance_scales", "2,1.5", "--steps", 1, "--out", tmp_path / "out")
    assert run.status == 0, run.err
    for arguments, message in (
        ([PROMPTS[0], "--guidance_scales", "two"], "--guidance_scales is 'two'"),
        (["a thing"], "has 1 part; expected 2: caption || class"),
        ([PROMPTS[0], "--image", "x.png"], "--image is for models with a picture as condition"),
    ):
        wrong = through("sample", model, *arguments, "--steps", 1, "--out", tmp_path / "more")
        assert wrong.status == 2
        assert message in wrong.errors[0]


def test_two_encoders_of_one_caption_share_the_prompt(pictures, tmp_path):
    tree = {**TREE, "condition": [TEXT_ALONE, {**TEXT_ALONE, "width": 8}], "train": {"steps": 1, "batch_size": 4}}
    reset()
    folder = train(settings(tree, pictures, tmp_path / "run"))
    assert (folder / "text_encoder_2" / "model.safetensors").exists()
    pipeline = Pipeline.load(folder)
    assert pipeline.condition(["a thing"]).tokens.shape == (1, 16, 16)
    again = open_method(settings(tree, pictures, tmp_path / "again", f"init={folder}"))
    assert torch.equal(
        again.modules["denoiser"].conditioner.state_dict()["parts.1.text_encoder.embeddings.token_embedding.weight"],
        pipeline.conditioner.state_dict()["parts.1.text_encoder.embeddings.token_embedding.weight"],
    )


def test_a_consistency_model_of_several_conditions_is_refused(model, pictures, tmp_path):
    tree = {"method": "consistency", "base": str(model), "data": TREE["data"], "train": {"steps": 1, "batch_size": 2}}
    with pytest.raises(UserError, match="conditioned on several conditions; expected captions, classes or nothing"):
        open_method(settings(tree, pictures, tmp_path / "c"))
