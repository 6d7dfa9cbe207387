"""Sizes and crops as conditions: SDXL's embedding and network, what a run trains on, and what sampling gives."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from conditioning.condition import Condition, ConditioningError
from ldm_kit.config import UserError
from ldm_kit.data.bucket_sizes import assign
from ldm_kit.methods.train import open_method
from ldm_kit.models.compatibility import check_one_condition
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.picture_condition import PictureInputs
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.nets.apply import apply_unet
from ldm_kit.nets.size_embedding import SIZE_WIDTH, embed_sizes, takes_sizes
from tests.training.helpers import CLASSES, TEXT, settings
from tests.world import through

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
SHAPE = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
SIZES = torch.tensor([[480.0, 640.0, 0.0, 12.0, 448.0, 576.0], [1024.0, 1024.0, 3.0, 0.0, 512.0, 512.0]])
OVERRIDES = ("data.buckets={step: 4, max_crop: 0.24}", "size_condition=true", "data.heldout=0.2", "train.batch_size=4")


def of_sdxl(vector: int) -> diffusers.UNet2DConditionModel:
    torch.manual_seed(0)
    more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
    return diffusers.UNet2DConditionModel(**SHAPE, **more, projection_class_embeddings_input_dim=vector + SIZE_WIDTH)


@pytest.mark.parametrize("vector", [0, 20])
def test_the_network_is_that_of_sdxl(vector):
    sdxl = of_sdxl(vector)
    with torch.no_grad():
        expected = sdxl.add_time_proj(SIZES.flatten()).reshape(2, -1)
        assert torch.allclose(embed_sizes(SIZES), expected, atol=1e-6)
        ours = diffusers.UNet2DConditionModel(
            **SHAPE, class_embed_type="projection", projection_class_embeddings_input_dim=vector + SIZE_WIDTH
        )
        weights = {name.replace("add_embedding", "class_embedding"): w for name, w in sdxl.state_dict().items()}
        ours.load_state_dict(weights)
        x, t = torch.randn(2, 4, 8, 12), torch.tensor([3, 700])
        tokens, pooled = torch.randn(2, 5, 12), torch.randn(2, vector)
        added = {"text_embeds": pooled, "time_ids": SIZES}
        theirs = sdxl(x, t, encoder_hidden_states=tokens, added_cond_kwargs=added).sample
        condition = Condition(tokens=tokens, vector=pooled if vector else None, sizes=SIZES)
        assert torch.allclose(apply_unet(ours, x, t, condition), theirs, atol=1e-5)
        other = Condition(tokens=tokens, vector=condition.vector, sizes=SIZES.flip(0))
        assert not torch.allclose(apply_unet(ours, x, t, other), theirs, atol=1e-3)
    assert takes_sizes(ours, vector or None)
    assert not takes_sizes(ours, 7)
    assert not takes_sizes(diffusers.UNet2DConditionModel(**SHAPE), None)


def test_conditions_keep_their_sizes():
    tokens = torch.zeros(2, 3, 4)
    condition = Condition(tokens=tokens).joined(Condition(sizes=SIZES))
    assert torch.equal(condition[1:].sizes, SIZES[1:])
    assert torch.equal(Condition.cat([condition, condition]).sizes, torch.cat([SIZES, SIZES]))
    assert condition.before(condition) is not None
    with pytest.raises(ConditioningError, match="two conditions have sizes"):
        condition.joined(Condition(sizes=SIZES))


def test_sizes_and_crops_are_those_of_the_scaled_picture():
    buckets = assign(np.array([[480, 640], [900, 600], [512, 512]]), [(80, 48), (64, 64), (56, 72), (48, 80)])
    assert buckets.conditions().tolist() == [
        [480, 640, 0, 1, 56, 72],  # scaled to 56 x 74.7
        [900, 600, 0, 2, 80, 48],  # scaled to 80 x 53.3
        [512, 512, 0, 0, 64, 64],
    ]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for i in range(24):
        size = [(16, 16), (40, 24), (24, 40), (30, 33)][i % 4]
        (path / "abc"[i % 3]).mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path / "abc"[i % 3] / f"{i}.png")
    return path


@pytest.fixture(scope="module")
def model(world, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    more = (*OVERRIDES, f"autoencoder={world.model('kl')}", "train.steps=20", "optim.lr=0.01", "log.pictures=2")
    config = settings(TEXT, pictures, folder / "run", *more)
    (folder / "config.yaml").write_text(config.model_dump_json(exclude_unset=True))
    outcome = through("train_ldm", folder / "config.yaml")
    assert outcome.status == 0, outcome.err
    return folder / "run" / "model"


def test_batches_have_the_sizes_of_their_pictures(world, pictures, tmp_path):
    config = settings(TEXT, pictures, tmp_path / "run", *OVERRIDES, f"autoencoder={world.model('kl')}")
    method = open_method(config)
    for group in method.batches.groups:
        samples = [(p, int(i)) for p, i in enumerate(group)]
        batch = method.batches.__getitems__(samples)
        for row, (_, index) in zip(batch["sizes"].tolist(), samples, strict=True):
            with Image.open(pictures / method.data.train.records[index].name) as image:
                assert row[:2] == [image.height, image.width]
            assert row[4:] == [2 * side for side in batch["mean"].shape[2:]], "of an autoencoder that reduces by 2"
    assert method.heldout_loss() > 0
    batch = method.batches.__getitems__([(p, int(i)) for p, i in enumerate(method.batches.groups[0])])
    (_, loss, _), *_ = method.losses(batch, 0)
    (_, other, _), *_ = method.losses({**batch, "sizes": batch["sizes"] * 3}, 0)
    assert loss != other, "the network sees them"
    plain = open_method(settings(TEXT, pictures, tmp_path / "b", *OVERRIDES, "size_condition=false"))
    assert "sizes" not in plain.batches.__getitems__([(0, 0)])


def test_a_saved_model_takes_sizes_and_defaults_to_its_own(model):
    pipeline = Pipeline.load(model)
    assert pipeline.takes_sizes

    def sample(**options):
        return next(pipeline.generate(["a", "b"], [0, 1], SamplingOptions(steps=3, guidance_scale=4.0, **options)))

    own = sample()
    assert torch.equal(own, sample(original_size=(16, 16), crop=(0, 0)))
    assert torch.equal(sample(height=20, width=12), sample(height=20, width=12, original_size=(20, 12)))

    def latents(**options):  # pictures of so short a training may be equal when they are rounded
        resolved = SamplingOptions(steps=3, guidance_scale=4.0, **options).resolve(pipeline)
        *_, last = pipeline.states(["a", "b"], [0, 1], resolved)
        return last.x

    for changed in ({"original_size": (400, 300)}, {"crop": (300, 0)}, {"crop": (0, 300)}):
        assert not torch.equal(latents(), latents(**changed))
    unet = diffusers.UNet2DConditionModel.from_pretrained(model / "unet")
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 30])
    with torch.no_grad():
        condition = pipeline.condition(["a", "b"], PictureInputs(Condition(sizes=SIZES)))
        labels, mask = embed_sizes(SIZES), condition.mask
        theirs = unet(x, t, condition.tokens, class_labels=labels, encoder_attention_mask=mask).sample
        assert torch.allclose(pipeline.network()(x, t, condition), theirs, atol=1e-5)


def test_guidance_keeps_the_sizes(model, monkeypatch):
    pipeline, seen = Pipeline.load(model), []
    forward = pipeline.unet.forward

    def noted(*arguments, **options):
        seen.append(options["class_labels"])
        return forward(*arguments, **options)

    monkeypatch.setattr(pipeline.unet, "forward", noted)
    options = SamplingOptions(steps=1, guidance_scale=4.0, original_size=(40, 24), crop=(1, 2), height=20, width=12)
    next(pipeline.generate(["a"], [0], options))
    expected = embed_sizes(torch.tensor([[40.0, 24.0, 1.0, 2.0, 20.0, 12.0]]))
    labels = torch.cat(seen)
    assert len(labels) == 2, "with and without the prompt"
    assert torch.allclose(labels, expected.expand(2, -1))


def test_the_command_takes_them_and_others_refuse(world, model, tmp_path):
    given = ("sample", model, "a", "--steps", 1, "--out", tmp_path / "out")
    outcome = through(*given, "--original_size", 40, 24, "--crop", 0, 3)
    assert outcome.status == 0, outcome.err
    refused = through("sample", world.model("text"), "a", "--crop", 0, 3, "--out", tmp_path / "no")
    assert refused.status == 2
    assert "--crop is for models conditioned on sizes of pictures, and this is none" in refused.err
    wrong = through(*given, "--original_size", 0, 24)
    assert wrong.status == 2
    assert "--original_size is 0 24; expected two whole numbers of 1 or more" in wrong.err
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    edit = through("edit", "img2img", "--model", model, "--image", tmp_path / "a.png", "--prompt", "a", "--steps", 1)
    assert edit.status == 2
    assert "is conditioned on sizes of pictures, which only sample.py gives it" in edit.err


def test_models_that_do_not_fit_together_are_refused(world, model):
    sized, plain = Pipeline.load(model), Pipeline.load(world.model("text") / "model")
    sized.schedule_config = plain.schedule_config
    with pytest.raises(UserError, match="only the guide model is conditioned on sizes of pictures"):
        plain.with_guides(autoguidance_model=sized)
    with pytest.raises(UserError, match="only the model is conditioned on sizes"):
        sized.with_guides(autoguidance_model=plain)
    with pytest.raises(UserError, match=r"the model in .* is conditioned on sizes of pictures"):
        check_one_condition(None, plain.conditioner, model, sizes=True)


@pytest.mark.parametrize(
    ("tree", "overrides", "message"),
    [
        (TEXT, ("size_condition=true",), "size_condition needs the sizes of the image files, which only data.buckets"),
        (TEXT, (*OVERRIDES, "init=runs/x"), "size_condition does not go with init"),
        (TEXT, (*OVERRIDES, "guidance={}"), "size_condition does not go with guidance"),
    ],
)
def test_configs_that_do_not_fit_are_refused(pictures, tmp_path, tree, overrides, message):
    with pytest.raises(UserError, match=message):
        settings(tree, pictures, tmp_path / "run", *overrides)


@pytest.mark.parametrize("condition", ["condition={kind: none}", "condition={kind: class, form: vector}"])
def test_a_network_without_tokens_is_refused(pictures, tmp_path, condition):
    with pytest.raises(UserError, match="size_condition needs a network with tokens"):
        open_method(settings(CLASSES, pictures, tmp_path / "run", *OVERRIDES, condition))


def test_a_run_cannot_start_from_such_a_model(world, model, pictures, tmp_path):
    more = (f"autoencoder={world.model('kl')}", f"init={model}")
    with pytest.raises(UserError) as caught:
        open_method(settings(TEXT, pictures, tmp_path / "run", *more))
    assert "\n" not in str(caught.value)
