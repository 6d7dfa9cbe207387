"""Single-file checkpoints: what is written opens in plain diffusers, and what is read back is the same bit for bit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.loaders import single_file_utils
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from conditioning.inpainting import Inpainting
from ldm_kit.cli import app
from ldm_kit.config import UserError
from ldm_kit.convert.single_file import convert_single_file, write_single_file
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.methods.export import saved_model
from ldm_kit.models.options import SamplerOptions, SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.saved_sampling import SavedSampling
from ldm_kit.nets.unet import UNetConfig, build_unet
from tests.models.cascades import model, text
from tests.world import through

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning", "ignore::FutureWarning:diffusers"
)
VAE = {"block_out_channels": (8, 16), "layers_per_block": 2, "latent_channels": 4, "norm_num_groups": 4}
BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
NETS = {
    "two": UNetConfig(widths=(8, 16), attention_levels=(True, False), heads=2, norm_num_groups=4, layers_per_block=2),
    "three": UNetConfig(widths=(8, 16, 16), attention_levels=(False, True, True), heads=2, norm_num_groups=4),
}


def pipeline(name: str, picture=None) -> Pipeline:
    torch.manual_seed(3)
    vae = AutoencoderKL(**VAE, **BLOCKS, scaling_factor=0.18215).eval()
    channels = 4 + (0 if picture is None else picture.channels(3, 4))
    unet = build_unet(NETS[name], sample_size=8, channels=channels, out_channels=4, cross_width=16).eval()
    return Pipeline(vae, unet, text(), ScheduleConfig(kind="scaled_linear"), "eps", picture=picture)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name in NETS:
        pipeline(name).save(root / name)
        write_single_file(root / name, root / f"{name}.safetensors")
    return {path.name: path for path in root.iterdir()}


def states(one: Pipeline) -> dict[str, torch.Tensor]:
    parts = {"unet": one.unet, "vae": one.vae, **one.conditioner.trainable}
    return {f"{part}.{name}": value for part, net in parts.items() for name, value in net.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("name", NETS)
def test_diffusers_opens_what_is_written(folders, name, layout):
    theirs = StableDiffusionPipeline.from_single_file(
        str(folders[f"{name}.safetensors"]), config=str(folders[name]), local_files_only=True
    )
    ours = Pipeline.load(folders[name])
    for part, net in (("unet", ours.unet), ("vae", ours.vae), ("text_encoder", ours.conditioner.text_encoder)):
        assert_same(getattr(theirs, part).state_dict(), net.state_dict())


def settings_alone(folder: Path, out: Path) -> Path:
    """The folder of a model without its weights."""
    shutil.copytree(folder, out)
    for path in [*out.rglob("*.safetensors"), *out.rglob("manifest.json")]:
        path.unlink()
    return out


@pytest.mark.parametrize("name", NETS)
def test_reading_gives_the_model_back(folders, name, tmp_path):
    config = settings_alone(folders[name], tmp_path / "settings")
    done = convert_single_file(folders[f"{name}.safetensors"], tmp_path / "out", config)
    assert done == f"model in {tmp_path / 'out'}"
    before, after = Pipeline.load(folders[name]), Pipeline.load(tmp_path / "out")
    assert_same(states(before), states(after))
    options = SamplingOptions(steps=2, guidance_scale=3.0)
    one, other = (next(each.generate(["a red square"], [1], options)) for each in (before, after))
    assert torch.equal(one, other)
    StableDiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    write_single_file(tmp_path / "out", tmp_path / "again.safetensors")
    assert_same(load_file(tmp_path / "again.safetensors"), load_file(folders[f"{name}.safetensors"]))


def test_the_layout_is_that_of_stable_diffusion(folders):
    """Names and shapes as in the published checkpoints, whose autoencoder attends by 1x1 convolutions."""
    weights = load_file(folders["three.safetensors"])
    expected = {
        "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
        "model.diffusion_model.input_blocks.2.0.op.weight": (8, 8, 3, 3),
        "model.diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight": (16, 16),
        "model.diffusion_model.middle_block.1.norm.weight": (16,),
        "model.diffusion_model.middle_block.2.out_layers.3.bias": (16,),
        "model.diffusion_model.output_blocks.1.2.conv.weight": (16, 16, 3, 3),
        "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": (16, 8, 1, 1),
        "first_stage_model.encoder.mid.attn_1.q.weight": (16, 16, 1, 1),
        "first_stage_model.decoder.up.1.upsample.conv.weight": (16, 16, 3, 3),
        "first_stage_model.decoder.mid.attn_1.proj_out.weight": (16, 16, 1, 1),
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": (16,),
    }
    assert {name: tuple(weights[name].shape) for name in expected} == expected
    assert len({value.data_ptr() for value in weights.values()}) == len(weights)


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """A model in the shape of Stable Diffusion 2, a single file with OpenCLIP's names, and OpenCLIP's text encoder."""
    root = tmp_path_factory.mktemp("second")
    shape = UNetConfig(widths=(8, 16), attention_levels=(True, False), heads=2, norm_num_groups=4, layers_per_block=2,
                       linear_projection=True)  # fmt: skip
    torch.manual_seed(3)
    vae = AutoencoderKL(**VAE, **BLOCKS, scaling_factor=0.18215).eval()
    conditioner = text(layers=2)
    unet = build_unet(shape, sample_size=8, channels=4, out_channels=4, cross_width=16).eval()
    Pipeline(vae, unet, conditioner, ScheduleConfig(kind="scaled_linear"), "v").save(root / "model")
    write_single_file(root / "model", root / "first.safetensors")
    vocabulary = {"context_length": 8, "vocab_size": len(conditioner.tokenizer), "width": 16, "heads": 2, "layers": 2}
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    clip = open_clip.model.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=vocabulary).eval()
    with torch.no_grad():
        for name, value in clip.named_parameters():
            value.copy_(torch.randn_like(value) * 0.3 + (name.endswith("weight") and value.ndim == 1))
    weights = {name: value for name, value in load_file(root / "first.safetensors").items() if "cond_stage" not in name}
    weights |= {
        f"cond_stage_model.model.{name}": value.contiguous()
        for name, value in clip.state_dict().items()
        if not name.startswith("visual.")
    }
    unused = "cond_stage_model.model.transformer.resblocks.23.ln_1.weight"  # the last layer, which is left out
    save_file({**weights, unused: torch.ones(16)}, root / "second.safetensors")
    return root, clip


def test_files_of_stable_diffusion_2_are_read_as_diffusers_and_open_clip_do(second, tmp_path):
    root, clip = second
    names = load_file(root / "second.safetensors")
    assert names["model.diffusion_model.input_blocks.1.1.proj_in.weight"].shape == (8, 8), "a linear layer"
    assert "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight" in names
    config = settings_alone(root / "model", tmp_path / "settings")
    convert_single_file(root / "second.safetensors", tmp_path / "out", config)
    ours = Pipeline.load(tmp_path / "out")
    theirs = StableDiffusionPipeline.from_single_file(
        str(root / "second.safetensors"), config=str(root / "model"), local_files_only=True
    )
    for part, net in (("unet", ours.unet), ("vae", ours.vae), ("text_encoder", ours.conditioner.text_encoder)):
        assert_same(getattr(theirs, part).state_dict(), net.state_dict())
    ids = ours.conditioner.prepare(["a red square", "blue"])["ids"]
    with torch.no_grad():
        x = clip.token_embedding(ids) + clip.positional_embedding
        expected = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))
        torch.testing.assert_close(ours.conditioner(ids=ids).tokens, expected, atol=1e-4, rtol=1e-4)
    assert ours.target == "v"


def test_a_model_in_the_shape_of_stable_diffusion_2_goes_out_and_in(second, tmp_path):
    root, _ = second
    convert_single_file(root / "second.safetensors", tmp_path / "out", root / "model")
    write_single_file(tmp_path / "out", tmp_path / "again.safetensors")
    theirs = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "again.safetensors"), config=str(root / "model"), local_files_only=True
    )
    ours = Pipeline.load(tmp_path / "out")
    for part, net in (("unet", ours.unet), ("vae", ours.vae), ("text_encoder", ours.conditioner.text_encoder)):
        assert_same(getattr(theirs, part).state_dict(), net.state_dict())
    convert_single_file(tmp_path / "again.safetensors", tmp_path / "back", root / "model")
    assert_same(states(ours), states(Pipeline.load(tmp_path / "back")))


def test_half_precision_and_names_of_old_files_are_read(folders, tmp_path):
    weights = {name: value.half() for name, value in load_file(folders["two.safetensors"]).items()}
    weights["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(8)[None]
    weights["alphas_cumprod"] = torch.ones(1000)
    save_file(weights, tmp_path / "half.safetensors")
    convert_single_file(tmp_path / "half.safetensors", tmp_path / "out", folders["two"])
    before, after = states(Pipeline.load(folders["two"])), states(Pipeline.load(tmp_path / "out"))
    assert_same({name: value.half().float() for name, value in before.items()}, after)


def test_an_inpainting_model_comes_back_with_its_picture(tmp_path):
    pipeline("two", Inpainting()).save(tmp_path / "model")
    write_single_file(tmp_path / "model", tmp_path / "one.safetensors")
    convert_single_file(tmp_path / "one.safetensors", tmp_path / "out", tmp_path / "model")
    after = Pipeline.load(tmp_path / "out")
    assert after.picture == Inpainting()
    assert_same(states(after), states(Pipeline.load(tmp_path / "model")))


def test_sampling_options_of_the_settings_come_with_the_model(folders, tmp_path):
    """Both those of this kit and, in model_index.json, what diffusers needs to open a model without some parts."""
    made = replace(
        pipeline("two"), saved=SavedSampling.of("sampling", SamplerOptions(steps=7, guidance_scale=4.5), 0.1)
    )
    made.save(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    config = settings_alone(tmp_path / "model", tmp_path / "settings")
    (config / "model_index.json").write_text(json.dumps(index))
    convert_single_file(folders["two.safetensors"], tmp_path / "out", config)
    resolved = SamplingOptions().resolve(Pipeline.load(tmp_path / "out"))
    assert (resolved.steps, resolved.guidance_scale) == (7, 4.5)
    out = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert (out["safety_checker"], out["requires_safety_checker"]) == ([None, None], False)


def test_settings_that_do_not_fit_together_leave_no_folder(folders, tmp_path):
    config = settings_alone(folders["two"], tmp_path / "settings")
    path = config / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "nonsense"}))
    with pytest.raises(UserError, match="prediction_type"):
        convert_single_file(folders["two.safetensors"], tmp_path / "out", config)
    assert not (tmp_path / "out").exists()
    index = json.loads((config / "model_index.json").read_text())
    (config / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderTiny"]}))
    with pytest.raises(UserError, match=r"vae is .*AutoencoderTiny.*; expected .*AutoencoderKL"):
        convert_single_file(folders["two.safetensors"], tmp_path / "out", config)


def test_what_would_not_be_read_back_is_not_written(folders, tmp_path, monkeypatch):
    """diffusers' reading of the file is compared with the networks, tensor by tensor."""

    def changed(kind):
        read = getattr(single_file_utils, f"convert_ldm_{kind}_checkpoint")

        def convert(*arguments):
            weights = read(*arguments)
            return {**weights, min(weights): weights[min(weights)] + 1}

        return convert

    def more(kind):
        read = getattr(single_file_utils, f"convert_ldm_{kind}_checkpoint")
        return lambda *arguments: {**read(*arguments), "a.stranger": torch.zeros(1)}

    for kind, network in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
        for spoiled in (changed, more):
            with monkeypatch.context() as patch:
                patch.setattr(single_file_utils, f"convert_ldm_{kind}_checkpoint", spoiled(kind))
                with pytest.raises(UserError, match=f"{network} does not fit into a"):
                    write_single_file(folders["two"], tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == []


def damaged(folders, tmp_path, change) -> Path:
    weights = load_file(folders["two.safetensors"])
    change(weights)
    save_file(weights, tmp_path / "damaged.safetensors")
    return tmp_path / "damaged.safetensors"


UNET_KEY = "model.diffusion_model.middle_block.0.in_layers.2.weight"
DAMAGES = {
    "a missing tensor": (lambda w: w.pop(UNET_KEY), "mid_block.resnets.0.conv1.weight"),
    "another shape": (lambda w: w.update({UNET_KEY: torch.zeros(2, 2)}), "does not fit"),
    "no text encoder": (
        lambda w: [w.pop(name) for name in list(w) if name.startswith("cond_stage_model")],
        "has no text encoder (cond_stage_model....)",
    ),
    "no autoencoder": (
        lambda w: [w.pop(name) for name in list(w) if name.startswith("first_stage_model")],
        "has no autoencoder (first_stage_model....)",
    ),
    "a text tensor less": (
        lambda w: w.pop("cond_stage_model.transformer.text_model.final_layer_norm.weight"),
        "final_layer_norm.weight",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_files_that_are_not_whole(folders, tmp_path, name):
    change, message = DAMAGES[name]
    path = damaged(folders, tmp_path, change)
    with pytest.raises(UserError) as error:
        convert_single_file(path, tmp_path / "out", folders["two"])
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_is_refused(folders, tmp_path):
    file = folders["two.safetensors"]
    with pytest.raises(UserError, match=r"does not fit|lacks|of which"):
        convert_single_file(file, tmp_path / "out", folders["three"])
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"model\.ckpt is no \.safetensors file; other files may hold code"):
        convert_single_file(tmp_path / "model.ckpt", tmp_path / "out", folders["two"])
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"cannot read .*broken\.safetensors"):
        convert_single_file(tmp_path / "broken.safetensors", tmp_path / "out", folders["two"])
    with pytest.raises(UserError, match="exists already"):
        convert_single_file(file, folders["two"], folders["two"])
    with pytest.raises(UserError, match="is no model's folder"):
        convert_single_file(file, tmp_path / "out", tmp_path)
    plain = settings_alone(folders["two"], tmp_path / "plain")
    index = json.loads((plain / "model_index.json").read_text())
    (plain / "model_index.json").write_text(json.dumps({**index, "_class_name": "LDMPipeline"}))
    with pytest.raises(UserError, match="_class_name is 'LDMPipeline'; expected StableDiffusionPipeline"):
        convert_single_file(file, tmp_path / "out", plain)
    with pytest.raises(UserError, match=r"model\.ckpt is one file; `ldm-kit convert single-file"):
        saved_model(tmp_path / "model.ckpt")


def test_models_that_no_single_file_holds(folders, tmp_path):
    model(text(), 8).save(tmp_path / "pixels")
    with pytest.raises(UserError, match="is no StableDiffusionPipeline or StableDiffusionInpaintPipeline"):
        write_single_file(tmp_path / "pixels", tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"x\.bin is no \.safetensors file"):
        write_single_file(folders["two"], tmp_path / "x.bin")
    with pytest.raises(UserError, match="exists already"):
        write_single_file(folders["two"], folders["three.safetensors"])
    assert not (tmp_path / "x.safetensors").exists()


def test_the_commands(folders, tmp_path):
    runner, file = CliRunner(), tmp_path / "one.safetensors"
    done = runner.invoke(app, ["export", str(folders["two"]), "--single_file", str(file)])
    assert (done.exit_code, done.output.strip()) == (0, f"weights in {file}"), done.output
    wrong = runner.invoke(app, ["export", str(folders["two"]), "--single_file", str(file), "--checkpoint", "last"])
    assert wrong.exit_code == 2
    assert "--single_file takes a saved model alone, without checkpoint" in wrong.output
    arguments = ["convert", "single-file", str(file), str(tmp_path / "out"), "--config", str(folders["two"])]
    done = runner.invoke(app, arguments)
    assert (done.exit_code, done.output.strip()) == (0, f"model in {tmp_path / 'out'}"), done.output
    refused = through("sample", file, "a cat", "--out", tmp_path / "samples")
    assert refused.status == 2
    assert "is one file; `ldm-kit convert single-file" in refused.err


def test_a_write_that_fails_leaves_no_file(folders, tmp_path, monkeypatch):
    def broken(weights, path, **_):
        path.write_bytes(b"half")
        raise SafetensorError("no space left")

    monkeypatch.setattr("ldm_kit.convert.single_file.save_file", broken)
    with pytest.raises(UserError, match=r"cannot write .*: no space left"):
        write_single_file(folders["two"], tmp_path / "x.safetensors")
    assert [*tmp_path.iterdir()] == []
