"""Pictures as conditions by a frozen encoder: what is embedded, the null condition, combinations, files, bad input."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file

from conditioning import ConditioningConfig, ConditioningError, ImageConfig, ImageEncoder, build, load, save
from conditioning.image import ENCODER, PROJECTION, open_saved
from ldm_kit.config import UserError
from ldm_kit.models.pretrained_images import open_image_encoder
from tests.conditioning.image_toys import clip_weights, pictures, timm_weights, unit_rms

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
TEXT = {"kind": "text", "width": 8, "layers": 1, "heads": 2, "vocabulary": 520, "length": 8}
CAPTIONS = ["a red cat", "a dog"]


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """(network, name) of each toy encoder."""
    folder = tmp_path_factory.mktemp("encoders")
    names = {name: timm_weights(folder, f"test_{name}") for name in ("vit", "resnet")}
    return {**names, "clip": clip_weights(folder), "other": clip_weights(folder, seed=1)}


def conditioner_of(name, time_width=16, **settings):
    config = ImageConfig(model=name, **settings)
    torch.manual_seed(3)
    built = build(config, time_width=time_width, open_encoder=open_image_encoder)
    for parameter in built.projection.parameters():  # the null condition, too, as if trained
        torch.nn.init.normal_(parameter)
    return built


def combined_of(*conditions):
    config = TypeAdapter(ConditioningConfig).validate_python([*conditions])
    return config, build(config, captions=CAPTIONS, time_width=16, open_encoder=open_image_encoder)


def normalised(x, mean, std, side, mode="bicubic"):
    x = x.float() / 255
    if x.shape[-1] != side:
        x = F.interpolate(x, (side, side), mode=mode, antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (mean, std))
    return (x - mean) / std


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@torch.no_grad()
def test_a_vector_is_timms_pooled_output_and_tokens_are_its_last_features(toys, kind):
    model, name = toys[kind]
    cfg, x = model.pretrained_cfg, pictures(2, 24)
    features = model.forward_features(normalised(x, cfg["mean"], cfg["std"], 160, cfg["interpolation"]))
    pooled = unit_rms(model.forward_head(features, pre_logits=True))
    positions = features.flatten(2).mT if kind == "resnet" else features[:, model.num_prefix_tokens :]
    vector, tokens = conditioner_of(name), conditioner_of(name, form="tokens")
    torch.testing.assert_close(vector.embed(x), pooled, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(tokens.embed(x), unit_rms(positions), atol=2e-4, rtol=1e-3)
    assert (vector.width, vector.vector_width) == (None, 16)
    assert (tokens.width, tokens.vector_width) == (512, None)
    assert tokens(**tokens.encode_pictures(x)).tokens.shape == (2, positions.shape[1], 512)


@torch.no_grad()
def test_a_network_of_timm_sees_the_side_that_the_config_says(toys):
    model, name = toys["resnet"]
    cfg, x = model.pretrained_cfg, pictures(2, 24)
    expected = model.forward_head(
        model.forward_features(normalised(x, cfg["mean"], cfg["std"], 64, cfg["interpolation"])), pre_logits=True
    )
    torch.testing.assert_close(conditioner_of(name, side=64).embed(x), unit_rms(expected), atol=2e-4, rtol=1e-3)
    small, whole = (conditioner_of(toys["vit"][1], form="tokens", side=side) for side in (32, None))
    assert (small.shape[0], whole.shape[0]) == (4, 100)  # patches of 16 pixels
    assert small.encoder_digest != whole.encoder_digest
    with pytest.raises(UserError, match=r"condition\.side is for networks of timm"):
        conditioner_of(toys["clip"][1], side=32)


@torch.no_grad()
def test_clips_vector_is_its_image_embedding(toys):
    model, name = toys["clip"]
    x = pictures(2, 16)
    seen = normalised(x, model.visual.image_mean, model.visual.image_std, 16)
    vector, tokens = conditioner_of(name), conditioner_of(name, form="tokens", width=6)
    torch.testing.assert_close(vector.embed(x), unit_rms(model.encode_image(seen)), atol=1e-5, rtol=1e-4)
    assert tokens.embed(x).shape == (2, 4, 12)
    before = tokens.encoder(x)
    assert tokens.embed(x).shape == (2, 4, 12)
    assert torch.equal(tokens.encoder(x), before), "tokens leave the tower as it was"
    torch.testing.assert_close(tokens.embed(x).square().mean(-1), torch.ones(2, 4))


@torch.no_grad()
def test_grey_and_alpha_are_seen_as_data_shows_them(toys):
    encoder = conditioner_of(toys["clip"][1])
    grey, alpha = pictures(2, 16, 1), pictures(2, 16, 4)
    alpha[:, 3] = 0
    assert torch.equal(encoder.embed(grey), encoder.embed(grey.expand(-1, 3, -1, -1)))
    assert torch.equal(encoder.embed(alpha), encoder.embed(torch.full_like(alpha[:, :3], 255)))
    assert encoder.embed(pictures(0)).shape == (0, 8)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"form": "tokens"}, {"context_tokens": 4, "width": 6}])
def test_the_null_condition_is_learned_and_stands_for_a_dropped_picture(toys, settings):
    conditioner = conditioner_of(toys["clip"][1], **settings)
    inputs, null = conditioner.encode_pictures(pictures(3)), conditioner.null_inputs()
    dropped = conditioner(**conditioner.drop(inputs, null, torch.tensor([[True], [False], [True]])))
    given, nothing = conditioner(**inputs), conditioner(**conditioner.null_inputs(3))
    for name in ("tokens", "vector"):
        values = [getattr(condition, name) for condition in (dropped, given, nothing)]
        if values[0] is None:
            continue
        own, whole, none = values
        assert torch.equal(own[1], whole[1])
        assert torch.equal(own[[0, 2]], none[[0, 2]])
        assert torch.equal(none[0], none[1])
        assert not torch.allclose(whole[0], whole[1])
    if conditioner.vector_width is not None:
        assert torch.equal(nothing.vector[0], conditioner.projection.null_vector)
    if conditioner.width is not None:
        assert torch.equal(nothing.tokens[0], conditioner.projection.null_tokens.expand_as(nothing.tokens[0]))


def test_unclips_decoder_gets_a_vector_and_context_tokens(toys):
    conditioner = conditioner_of(toys["clip"][1], context_tokens=4)
    condition = conditioner(**conditioner.encode_pictures(pictures(2)))
    assert condition.vector.shape == (2, 16)
    assert condition.tokens.shape == (2, 4, 512)
    assert (conditioner.width, conditioner.vector_width) == (512, 16)
    assert type(conditioner).widths(ImageConfig(model="x", context_tokens=4), 16) == (512, 16)


def test_the_encoder_is_neither_trained_nor_part_of_the_module(toys):
    conditioner = conditioner_of(toys["clip"][1])
    assert not any(parameter.requires_grad for parameter in conditioner.encoder.parameters())
    assert {name.partition(".")[0] for name in conditioner.state_dict()} == {"projection"}
    assert {*conditioner.trainable} == {PROJECTION}


def test_the_map_is_drawn_alike_whatever_encoder_is_opened(toys, tmp_path):
    save(conditioner_of(toys["clip"][1]), tmp_path)
    drawn = []
    for name in (toys["clip"][1], str(tmp_path)):
        torch.manual_seed(5)
        drawn.append(build(ImageConfig(model=name), time_width=16, open_encoder=open_image_encoder).state_dict())
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


@pytest.mark.parametrize(
    ("kind", "settings"), [("vit", {"side": 32, "form": "tokens"}), ("clip", {"context_tokens": 2})]
)
@torch.no_grad()
def test_a_saved_folder_needs_nothing_else(toys, tmp_path, kind, settings):
    conditioner, x = conditioner_of(toys[kind][1], **settings), pictures(2)
    entries = save(conditioner, tmp_path)
    assert entries == {
        ENCODER: ("conditioning.image_encoder", "ImageEncoder"),
        PROJECTION: ("conditioning.image_projection", "ImageProjection"),
    }
    again = load(tmp_path)
    inputs, expected = again.encode_pictures(x), conditioner.encode_pictures(x)
    assert torch.equal(inputs["embedding"], expected["embedding"])
    assert torch.equal(again(**inputs).tokens, conditioner(**expected).tokens)
    assert (again.width, again.vector_width) == (conditioner.width, conditioner.vector_width)
    assert again.frozen_encoder == conditioner.frozen_encoder
    assert open_saved(str(tmp_path)).sha256() == conditioner.encoder_digest


def test_a_folder_of_another_encoder_is_refused(toys, tmp_path):
    save(conditioner_of(toys["clip"][1]), tmp_path / "one")
    save(conditioner_of(toys["other"][1]), tmp_path / "two")
    save(conditioner_of(toys["resnet"][1], side=32), tmp_path / "three")
    for other, message in (
        ("two", "is not the image encoder that image_projection was trained with"),
        ("three", r"gives embeddings of shape \[96\], but image_projection takes \[8\]"),
    ):
        folder = shutil.copytree(tmp_path / "one", tmp_path / f"with-{other}")
        shutil.rmtree(folder / ENCODER)
        shutil.copytree(tmp_path / other / ENCODER, folder / ENCODER)
        with pytest.raises(ConditioningError, match=message):
            load(folder)


def test_broken_folders_are_one_sentence(toys, tmp_path):
    save(conditioner_of(toys["clip"][1]), tmp_path)
    path = tmp_path / ENCODER / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["network.ln_post.weight"]
    save_file(weights, path)
    with pytest.raises(ConditioningError, match="lacks 1 tensors, such as network"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(ConditioningError, match="cannot open the image encoder in"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("library", "architecture"),
    [("timm", "hf-hub:a/b"), ("timm", "nothing"), ("open_clip", "hf-hub:a/b"), ("open_clip", "nothing"), ("os", "x")],
)
def test_a_saved_config_opens_known_architectures_alone(library, architecture):
    with pytest.raises(ConditioningError, match="has no image encoder"):
        ImageEncoder(library=library, architecture=architecture, side=16, mean=[0.5] * 3, std=[0.5] * 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:no_such_network", "timm has no model 'no_such_network'"),
        ("timm:test_vit@nowhere.safetensors", "condition.model names 'nowhere.safetensors', but there is no such file"),
        ("timm:test_vit@package:no_such_package", "condition.model asks for the Python package no_such_package"),
        ("open_clip:nothing/x", "condition.model is open_clip:nothing/x; expected open_clip:ARCHITECTURE/WEIGHTS"),
        ("inception:x", "expected timm:NAME"),
        ("runs/nothing", "condition.model is 'runs/nothing': there is no saved image encoder"),
    ],
)
def test_encoders_that_cannot_be_loaded(name, message):
    with pytest.raises(UserError, match=message):
        conditioner_of(name)


def test_embeddings_and_prompts_that_do_not_fit(toys):
    conditioner = conditioner_of(toys["clip"][1])
    with pytest.raises(ConditioningError, match=r"got embeddings of shape \[9\]; expected \[8\]"):
        conditioner.embedded(torch.zeros(2, 9))
    with pytest.raises(ConditioningError, match="conditioned on an image alone and takes no prompt, got 'a cat'"):
        conditioner.prepare(["", "a cat"])
    with pytest.raises(ConditioningError, match="needs a width"):
        conditioner_of(toys["clip"][1], time_width=None)


def test_configs_that_contradict_themselves():
    adapter = TypeAdapter(ConditioningConfig)
    image = {"kind": "image", "model": "timm:test_vit"}
    with pytest.raises(ValidationError, match="context_tokens are made of the pooled embedding"):
        adapter.validate_python({**image, "form": "tokens", "context_tokens": 4})
    with pytest.raises(ValidationError, match="kind image and a picture to be concatenated would both be --image"):
        adapter.validate_python([image, {"kind": "inpainting"}])
    with pytest.raises(ValidationError, match="a model embeds one image"):
        adapter.validate_python([image, {**image, "form": "tokens"}])
    assert adapter.validate_python([image]).prompts.kind == "image"


@torch.no_grad()
def test_a_picture_beside_text_has_no_part_in_the_prompt(toys, tmp_path):
    image = {"kind": "image", "model": toys["clip"][1]}
    config, conditioner = combined_of(TEXT, image)
    assert config.sources == conditioner.sources == ("caption",)
    assert config.takes_pictures
    assert conditioner.reads_pictures
    x = pictures(2)
    inputs = conditioner.prepare(CAPTIONS) | conditioner.encode_pictures(x)
    alone = conditioner.parts[1].encode_pictures(x)
    assert torch.equal(inputs["1.embedding"], alone["embedding"])
    null = conditioner.null_inputs()
    one = conditioner.drop(inputs, null, torch.tensor([[False, True], [True, False]]))
    assert one["1.given"].tolist() == [False, True]
    assert torch.equal(one["0.ids"][0], inputs["0.ids"][0])
    assert torch.equal(one["0.ids"][1], null["0.ids"][0])
    condition = conditioner(**inputs)
    assert condition.tokens.shape[2] == 8
    assert torch.equal(condition.vector, conditioner.parts[1](**alone).vector)
    save(conditioner, tmp_path)
    again = load(tmp_path)
    assert again.sources == ("caption",)
    assert torch.equal(again(**(again.prepare(CAPTIONS) | again.encode_pictures(x))).vector, condition.vector)


def test_a_text_conditioner_embeds_no_picture():
    _, conditioner = combined_of(TEXT, {**TEXT, "width": 16})
    assert not conditioner.reads_pictures
    with pytest.raises(ConditioningError, match="conditioned on no image"):
        conditioner.encode_pictures(pictures(1))
