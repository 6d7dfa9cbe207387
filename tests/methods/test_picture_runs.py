"""Runs with a picture as condition: maps in training and sampling, resume, growth, guidance, columns, refusals."""

import json
import shutil

import pytest
import torch
from PIL import Image

from conditioning.condition import Condition, ConditioningError
from ldm_kit.config import UserError
from ldm_kit.diffusion.rng import PositionDraws
from ldm_kit.methods.latent import Latent
from ldm_kit.methods.latent_network import CONCAT, NOISE_LEVEL
from ldm_kit.methods.train import open_method, train
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.picture_condition import PictureInputs
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.nets.apply import apply_unet
from tests.training.helpers import STAGE_2, TEXT, picture_folder, play, reset, settings

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers on numpy 2
    pytest.mark.usefixtures("own_cache"),
]
INPAINT, SMALL = {"kind": "inpainting"}, {"kind": "super_resolution", "factor": 4}
PLAIN = {**STAGE_2, "unet": {**STAGE_2["unet"], "dropout": 0.0}}
EXACT = ("train.attention=sdpa", "train.channels_last=false")
HELD = {**STAGE_2["data"], "heldout": 0.3}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = picture_folder(tmp_path_factory.mktemp("pictures") / "set")
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    (folder / "depth").mkdir()
    for k, line in enumerate(lines):
        line["depth"] = f"depth/{k}.png"
        Image.new("RGB", (16, 16), (k * 10, 0, 0)).save(folder / line["depth"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "depth" / ".keep").touch()
    return folder


def opened(condition, pictures, *overrides, **more) -> Latent:
    tree = {**PLAIN, "condition": condition, **more}
    return open_method(settings(tree, pictures, pictures.parent / "run", *EXACT, *overrides))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """A model of text and inpainting, and one of upscaling, with weights that are not the first ones."""
    models = {}
    conditions = {"inpaint": [TEXT["condition"], INPAINT], "small": SMALL, "text": TEXT["condition"]}
    for name, condition in conditions.items():
        tree = {**PLAIN, "condition": condition, "data": HELD, "train": {"steps": 2, "batch_size": 4}}
        reset()
        models[name] = train(settings(tree, pictures, tmp_path_factory.mktemp("runs") / name, *EXACT))
    return models


def batch_of(method, *positions):
    return method.batches.__getitems__([(position, position % 5) for position in positions])


def test_maps_are_those_of_the_view_that_is_trained_on(pictures):
    method = opened(INPAINT, pictures)
    batch = batch_of(method, *range(12))
    assert torch.allclose(batch["picture"], batch["mean"])  # pixels, mirrored alike
    assert not torch.equal(batch["mean"][0::5], batch["mean"][:1].expand(3, -1, -1, -1))  # some are mirrored
    maps = method.maps.inputs(batch, 0)[CONCAT]
    mask = maps[:, :1]
    assert torch.equal(maps[:, 1:], batch["picture"] * (1 - mask))
    assert 0 < mask.mean() < 1


def test_masks_and_levels_are_addressed(pictures):
    """Whatever the batch, the number of processes or a resume: equal at equal positions of the run."""
    for condition in (INPAINT, SMALL):
        method = opened(condition, pictures)
        whole = method.maps.inputs(batch_of(method, *range(8)), 3)
        halves = [method.maps.inputs(batch_of(method, *positions), 3) for positions in (range(0, 8, 2), range(1, 8, 2))]
        for name, value in whole.items():
            assert torch.equal(value[0::2], halves[0][name])
            assert torch.equal(value[1::2], halves[1][name])
        assert any(
            not torch.equal(v, whole[name]) for name, v in method.maps.inputs(batch_of(method, *range(8)), 4).items()
        )


def test_the_loss_is_that_of_the_network_with_its_maps(pictures):
    """Text may be dropped, the mask and the masked picture stay."""
    method = opened([TEXT["condition"], INPAINT], pictures, "condition_dropout=0.5")
    seen = []
    method.module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    batch = batch_of(method, *range(40))
    _ = [*method.losses(batch, 0)]
    inputs = seen[0][2]
    expected = method.maps.inputs(batch, method.config.seed)
    assert torch.equal(inputs[CONCAT], expected[CONCAT])
    null = method.module.conditioner.null_inputs()["ids"]
    dropped = (inputs["ids"] == null).all(1)
    assert 8 < dropped.sum() < 32
    assert torch.equal(inputs["ids"][~dropped], batch["inputs"]["ids"][~dropped])


def test_a_run_resumes_bit_for_bit(pictures, tmp_path):
    tree = {**STAGE_2, "condition": [TEXT["condition"], INPAINT], "train": {"steps": 4, "batch_size": 4}}
    config = settings(tree, pictures, tmp_path / "run", "train.checkpoint_every=2")
    whole = play(config)
    shutil.rmtree(tmp_path / "run")
    play(config, until=2)
    resumed = play(config, resume="latest")
    assert resumed.weights == whole.weights
    assert resumed.lines == whole.lines[2:]


@torch.no_grad()
def test_a_saved_model_predicts_what_was_trained(trained, pictures):
    for name, count in (("inpaint", 3 + 1 + 3), ("small", 3 + 3)):
        pipeline = Pipeline.load(trained[name])
        assert pipeline.unet.config.in_channels == count
        assert pipeline.latent_shape == (3, 16, 16)
        settings_file = json.loads((trained[name] / "picture_condition.json").read_text())
        assert settings_file["kind"] == pipeline.picture.kind
    x = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    mask = torch.zeros(2, 16, 16, dtype=torch.bool)
    mask[:, 4:9] = True
    pipeline = Pipeline.load(trained["inpaint"])
    options = SamplingOptions(steps=2, guidance_scale=2)
    out = torch.cat([*pipeline.generate(["a", "b"], [0, 1], options, pictures={"image": x, "mask": mask})])
    kept = ~mask[:, None].expand_as(x)
    assert torch.equal(out[kept], x[kept])
    assert not torch.equal(out[~kept], x[~kept])
    singly = [*pipeline.generate(["a", "b"], [0, 1], options, 1, pictures={"image": x, "mask": mask})]
    assert torch.equal(torch.cat(singly)[kept], x[kept])  # each batch has its own pictures
    one = next(pipeline.generate(["b"], [1], options, pictures={"image": x[1:], "mask": mask[1:]}))
    assert (one.int() - out[1:].int()).abs().max() <= 1
    other = next(pipeline.generate(["b"], [1], options, pictures={"image": 255 - x[1:], "mask": mask[1:]}))
    assert not torch.equal(other[:, :, 4:9], one[:, :, 4:9])


@torch.no_grad()
def test_guidance_keeps_the_picture_and_leaves_out_the_text(trained):
    pipeline = Pipeline.load(trained["inpaint"])
    options = SamplingOptions(steps=2, guidance_scale=3, clip="none").resolve(pipeline)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([20, 20])
    maps = PictureInputs(Condition(concat=torch.randn(2, 4, 16, 16)))
    guided = pipeline.guided_denoiser(["a", "b"], options, maps)(x, t, pipeline.condition(["a", "b"], maps))
    with_text, without = (pipeline.denoiser()(x, t, pipeline.condition(p, maps)) for p in (["a", "b"], ["", ""]))
    assert torch.allclose(guided.x_0, without.x_0 + 3 * (with_text.x_0 - without.x_0), atol=1e-5)
    with pytest.raises(UserError, match="conditioned on a picture; expected --image and --mask of 16 x 16"):
        pipeline.condition(["a"])


def test_training_with_the_scale_as_input_keeps_the_maps_without_the_text(pictures):
    scaled = ("guidance.max_scale=4", "guidance.width=16", "sample.guidance_scale=2")
    method, seen = opened([TEXT["condition"], INPAINT], pictures, *scaled), []
    method.module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[2]))
    next(method.losses(batch_of(method, *range(4)), 0))[1].backward()
    conditional, null = seen
    assert torch.equal(conditional[CONCAT], null[CONCAT])
    assert torch.equal(null["ids"], method.null["ids"])


@torch.no_grad()
def test_the_level_of_upscaling_reaches_the_network(trained):
    pipeline, small = Pipeline.load(trained["small"]), torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    levels = []
    pipeline.unet.register_forward_pre_hook(
        lambda _, args, kwargs: levels.append(kwargs["class_labels"]), with_kwargs=True
    )
    for level in (None, 7):
        options = SamplingOptions(steps=1, noise_level=level)
        assert next(pipeline.generate([""], [3], options, pictures={"image": small})).shape == (1, 3, 16, 16)
    assert [value.tolist() for value in levels] == [[20], [7]]
    network, x, t = pipeline.network(), torch.randn(1, 3, 16, 16), torch.tensor([9])
    torch.nn.init.normal_(pipeline.unet.class_embedding.linear_2.weight)
    one, two = (network(x, t, Condition(concat=x, level=torch.tensor([level]))) for level in (0, 300))
    assert not torch.allclose(one, two)


@torch.no_grad()
@pytest.mark.parametrize("condition", [[TEXT["condition"], INPAINT], [TEXT["condition"], SMALL]])
def test_growth_keeps_the_prediction_of_a_model_without_pictures(pictures, trained, condition):
    before = Pipeline.load(trained["text"])
    method = opened(condition, pictures, f"init={trained['text']}")
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 40])
    ours, raw = method.module.eval(), ["a thing of kind 1", ""]
    maps = method.maps.inputs(batch_of(method, 0, 1), 0)
    grown = ours(x, t, {**ours.conditioner.prepare(raw), **maps})
    old = apply_unet(before.unet, x, t, before.condition(raw))
    assert torch.allclose(grown, old, rtol=0, atol=1e-5)  # but for the rounding of a wider convolution
    weights, grown_weights = before.unet.state_dict(), method.module.unet.state_dict()
    assert all(
        torch.equal(grown_weights[name][:, :3] if name == "conv_in.weight" else grown_weights[name], value)
        for name, value in weights.items()
    )
    assert not grown_weights["conv_in.weight"][:, 3:].any()
    assert any("conv_in grows from 3 to" in note for note in method.notes)
    assert (NOISE_LEVEL in maps) == any("class_embedding" in note for note in method.notes)
    with torch.enable_grad():
        loss = next(method.losses(batch_of(method, *range(4)), 0))[1]
        loss.backward()
    assert method.module.unet.conv_in.weight.grad[:, 3:].abs().sum() > 0


def test_a_column_names_the_pictures(pictures):
    method = opened({"kind": "column", "column": "depth"}, pictures, "flip=false")
    batch = method.batches.__getitems__([(k, k) for k in range(4)])
    assert torch.allclose(batch["picture"][:, 0, 0, 0], torch.arange(4.0) * 10 / 127.5 - 1)
    assert torch.equal(method.maps.inputs(batch, 0)[CONCAT], batch["picture"])


def test_rows_without_the_column_are_named(pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "set")
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    del lines[3]["depth"]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"condition.column is depth, but the metadata of 003.png have no such value"):
        opened({"kind": "column", "column": "depth"}, folder)
    (folder / "depth" / "1.png").unlink()
    lines[3]["depth"] = "depth/3.png"
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"depth names .*1.png, which cannot be read"):
        opened({"kind": "column", "column": "depth"}, folder)


def test_what_does_not_fit_is_refused(pictures, trained):
    with pytest.raises(UserError, match="factor is 3, which does not divide 16 pixels"):
        opened({"kind": "super_resolution", "factor": 3}, pictures)
    with pytest.raises(UserError, match="takes either a vector or a picture's noise level"):
        opened([{"kind": "class", "form": "vector"}, SMALL], pictures)
    with pytest.raises(UserError, match="conditioned on a picture of kind inpainting, and this run on no picture"):
        opened(TEXT["condition"], pictures, f"init={trained['inpaint']}")
    prior = {"method": "prior", "model": "m", "condition": INPAINT, "data": HELD, "train": STAGE_2["train"]}
    with pytest.raises(UserError, match="condition of kind inpainting is for method latent"):
        settings(prior, pictures, pictures / "r")
    with pytest.raises((UserError, ConditioningError), match="no such value"):
        opened({"kind": "column", "column": "mood"}, pictures)


def test_held_out_pictures_are_shown_and_measured(pictures):
    method = opened(INPAINT, pictures, data=HELD)
    given, shown = method.maps.examples([0, 1], heldout=True)
    assert given["image"].dtype == torch.uint8
    assert given["mask"].shape == (2, 16, 16)
    assert torch.equal(given["image"], method.data.heldout.pictures([0, 1]))
    grey = shown[given["mask"][:, None].expand_as(shown)]
    assert ((grey == 127) | (grey == 128)).all()
    again = method.maps.condition.example(
        method.maps.heldout[torch.tensor([1]), torch.tensor([0])], PositionDraws(0, torch.tensor([1]))
    )
    assert torch.equal(again["mask"][:, 0] > 0.5, given["mask"][1:])
    out = method.measured_pictures([0, 1], [5, 6])
    kept = ~given["mask"][:, None].expand_as(out)
    assert torch.equal(out[kept], given["image"][kept])
