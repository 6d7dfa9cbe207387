"""Wrong input to sample.py: exit status 2, one sentence with what, where and what was expected; nothing is written."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.world import World, through

WEIGHTS = "diffusion_pytorch_model.safetensors"
FLAGS = [  # (model, arguments, what the sentence says)
    ("text", [], "samples from prompts or class names; give at least one, or --prompts_file"),
    (
        "text",
        ["red", "--solver", "rk4"],
        "--solver is 'rk4'; expected one of ddpm, .*ddim, dpm[+][+], .* or diffusers:",
    ),
    ("text", ["red", "--steps", "1001"], "--steps 1001: cannot walk 1000 training times in 1001 steps; expected 1 to"),
    ("text", ["red", "--steps", "0"], "--steps is 0; expected 1 or more"),
    ("text", ["red", "--steps", "few"], "invalid value for '--steps'"),
    ("text", ["red", "--seed", "-1"], "--seed is -1; expected 0 to"),
    ("text", ["red", "--seed", "18446744073709551616"], "--seed is 18446744073709551616; expected 0 to"),
    ("text", ["red", "--seed", "18446744073709551615", "--count", "2"], "--seed is 1844"),
    ("text", ["red", "--count", "0"], "--count is 0; expected 1 or more"),
    ("text", ["red", "--batch_size", "0"], "--batch_size is 0; expected 1 or more"),
    ("text", ["red", "--guidance_scale", "-2"], "--guidance_scale is -2.0; expected"),
    ("text", ["red", "--guidance_scale", "nan"], "--guidance_scale is nan; expected"),
    ("text", ["red", "--guidance_scale", "inf"], "--guidance_scale is inf; expected"),
    ("text", ["red", "--guidance_scale", "1", "--negative_prompt", "x"], "no effect at --guidance_scale 1"),
    ("text", ["red", "--precision", "fp8"], "--precision is 'fp8'; expected no, bf16, fp16 or auto"),
    ("text", ["red", "--device", "tpu9"], "cannot use the device 'tpu9'"),
    ("text", ["red", "--device", "meta"], "cannot use the device 'meta'"),
    ("text", ["red", "--device", "cuda:77"], "cannot use the device 'cuda:77'"),
    ("text", ["--prompts_file", "{tmp}/empty.txt"], "empty.txt holds no prompt; expected one a line"),
    ("text", ["--prompts_file", "{tmp}/absent.txt"], "cannot read prompts from .*absent.txt: No such file"),
    ("text", ["--prompts_file", "{tmp}/latin.txt"], "latin.txt is not UTF-8 text"),
    ("text", ["--prompts_file", "{tmp}"], "cannot read prompts"),
    ("text", ["red", "--out", "{tmp}/empty.txt"], "cannot write to .*: .*empty.txt is no folder"),
    ("text", ["red", "--out", "{tmp}/empty.txt/below"], "cannot write to .*below: .*empty.txt is no folder"),
    ("text", ["red", "--guidance", "3"], "no such option: --guidance"),
    ("plain", ["red"], "this model is unconditional and takes no prompt, got 'red'; use --count alone"),
    ("plain", ["--negative_prompt", "red"], "--negative_prompt is for models with a condition, and this one is uncond"),
    ("class", ["redd"], "unknown class 'redd': the nearest of 3 known classes are red"),
    ("class", ["red", "--negative_prompt", "gren"], "unknown class 'gren': .* green"),
]

JUDGED, PIXELS = ["--classifier", "{world:classifier}"], ["--classifier", "{world:pixel_classifier}"]
GUIDANCE = [  # the same, of guidance and of where samplers walk; {world:x} is the folder of the model x
    ("plain", ["--classifier_scale", "4"], "--classifier_scale needs --classifier DIR"),
    ("plain", ["--classifier_class", "red"], "--classifier_class needs --classifier DIR"),
    ("plain", ["--algorithm", "2"], "--algorithm needs --classifier DIR"),
    (
        "plain",
        [*JUDGED, "red", "--classifier_scale", "-1"],
        "--classifier_scale is -1.0; expected 0 or more .* 0: no guidance",
    ),
    ("plain", [*JUDGED, "red", "--classifier_scale", "nan"], "--classifier_scale is nan; expected 0 or more"),
    ("plain", [*JUDGED, "red", "--algorithm", "3"], "--algorithm is 3; expected 1 or 2"),
    ("plain", [*JUDGED, "red", "--algorithm", "1"], "--algorithm 1 shifts the mean of ddpm.*, and dpm[+][+] has none"),
    ("plain", [*JUDGED], "a classifier needs a class; give class names as prompts, or --classifier_class NAME"),
    ("plain", [*JUDGED, "redd"], "unknown class 'redd': the nearest of the classifier's 3 are red"),
    ("plain", [*JUDGED, "--classifier_class", "gren"], "unknown class 'gren': the nearest of the .* green"),
    ("plain", [*JUDGED, "red", "--classifier_class", "red"], "this model is unconditional and takes no prompt"),
    ("class", [*JUDGED, "gren"], "unknown class 'gren'"),
    ("text", [*JUDGED, "red"], "a text prompt is not; give --classifier_class NAME"),
    ("plain", [*PIXELS, "red"], r"the classifier takes .*\(3, 16, 16\), but the model samples \(4, 8, 8\)"),
    (
        "plain_flow",
        [*JUDGED, "red"],
        "the classifier was trained under .*kind scaled_linear.*, but the model .*kind flow",
    ),
    (
        "plain_vq",
        [*JUDGED, "red"],
        r"the classifier takes latents of the autoencoder \w{12}, but .* autoencoder \w{12}",
    ),
    ("plain", ["--classifier", "{world:plain}", "red"], "holds a diffusion model"),
    ("plain", ["--classifier", "{tmp}", "red"], "is no saved classifier"),
    ("classifier", ["red"], "holds a noisy classifier, which guides but cannot sample"),
    ("plain", ["--autoguidance_scale", "2"], "--autoguidance_scale needs --autoguidance_model DIR"),
    (
        "plain",
        ["--autoguidance_model", "{world:plain}", "--autoguidance_scale", "-2"],
        "--autoguidance_scale is -2.0; expected",
    ),
    ("plain", ["--autoguidance_model", "{tmp}"], "is no saved model"),
    (
        "plain",
        ["--autoguidance_model", "{world:pixels}"],
        r"the guide model takes .*\(3, 16, 16\), but .* samples \(4, 8, 8\)",
    ),
    (
        "plain",
        ["--autoguidance_model", "{world:plain_flow}"],
        "the guide model was trained under .*kind flow.*, but the model .*kind scaled",
    ),
    ("plain", ["--autoguidance_model", "{world:plain_vq}"], "the guide model takes latents of the autoencoder"),
    (
        "plain",
        ["--autoguidance_model", "{world:class}"],
        "the guide model samples from classes, but the model samples from no cond",
    ),
    (
        "class",
        ["red", "--autoguidance_model", "{world:text}"],
        "the guide model samples from text, but the model samples from class",
    ),
    ("text", ["red", "--guidance_rescale", "1.5"], "--guidance_rescale is 1.5; expected 0 to 1"),
    ("text", ["red", "--guidance_rescale", "nan"], "--guidance_rescale is nan; expected 0 to 1"),
    ("text", ["red", "--guidance_rescale", "1", "--guidance_scale", "1"], "--guidance_rescale has no effect at --guid"),
    ("plain", ["--guidance_rescale", "0.5"], "--guidance_rescale is for models with a condition"),
    ("text", ["red", "--guidance_interval", "0.8", "0.2"], "--guidance_interval is 0.8 0.2; expected .*LOW < HIGH"),
    ("text", ["red", "--guidance_interval", "-1", "0.2"], "--guidance_interval is -1 0.2; expected"),
    ("text", ["red", "--guidance_interval", "0", "2"], "--guidance_interval is 0 2; expected"),
    ("text", ["red", "--guidance_interval", "nan", "1"], "--guidance_interval is nan 1; expected"),
    ("text", ["red", "--guidance_interval", "0.5"], "--guidance_interval"),
    ("plain", ["--guidance_interval", "0", "0.5"], "--guidance_interval is for models with a condition"),
    ("plain", ["--spacing", "ddim60"], "--spacing ddim60: no integer stride takes 60 of 1000 .*ddim59 and ddim63"),
    ("plain", ["--spacing", "ddim"], "--spacing ddim: unknown spacing 'ddim'; expected trailing"),
    ("plain", ["--spacing", "1,501"], "--spacing 1,501: section 2 of 1,501 has 500"),
    (
        "plain",
        ["--spacing", "even"],
        "unknown spacing 'even'; expected trailing, leading, linspace, ddimN, or sections",
    ),
    ("plain", ["--eta", "0.5"], "--eta 0.5 is for ddim alone, but --solver is dpm[+][+]"),
    ("plain", ["--eta", "2", "--solver", "ddim"], "--eta is 2.0; expected 0 to 1"),
    ("plain", ["--clip", "soft"], "--clip is 'soft'; expected auto, none, clip, dynamic or published"),
    ("plain", ["--clip", "dynamic"], "--clip dynamic is for pixels, but this model denoises latents"),
    ("plain", ["--clip", "clip"], "--clip clip is for pixels, but this model denoises latents"),
    ("plain", [*JUDGED, "red", "--solver", "ddpm", "--steps", "1"], "--algorithm 1 shifts by a step's variance, and a"),
    ("plain", ["--solver", "diffusers:DDIMScheduler", "--spacing", "leading"], "--spacing is for our own solvers"),
    ("plain", ["--solver", "diffusers:Nothing"], "diffusers has no scheduler Nothing"),
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Prompt files that are wrong in one way each."""
    (tmp_path / "empty.txt").write_text("\n  \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    return tmp_path


def sentence(*arguments: object, out: Path) -> str:
    """The one error sentence of sample.py, once it is sure that no picture was written."""
    given = arguments if "--out" in arguments else (*arguments, "--out", out)
    found = through("sample", *given)
    assert found.status == 2, found.err
    assert len(found.errors) == 1, found.err
    assert "Traceback" not in found.err
    assert len(found.errors[0]) < 700
    assert not list(out.rglob("*.png"))
    assert not (out / "out").exists()
    return found.errors[0]


@pytest.mark.parametrize(
    ("model", "arguments", "said"), FLAGS + GUIDANCE, ids=lambda v: " ".join(v) if isinstance(v, list) else None
)
def test_flags(world, place, model, arguments, said):
    filled = [_filled(world, text).replace("{tmp}", str(place)) for text in arguments]
    found = sentence(world.model(model), *filled, out=place / "out")
    assert re.search(said, found), found


def _filled(world: World, text: str) -> str:
    return str(world.model(text[7:-1])) if text.startswith("{world:") else text


def _set(file: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def _text(file: str, text: str) -> Callable[[Path], None]:
    return lambda folder: void((folder / file).write_text(text))


def void(value: object) -> None:
    """Nothing."""


def _cut(file: str) -> Callable[[Path], None]:
    return lambda folder: void((folder / file).write_bytes((folder / file).read_bytes()[:-20]))


def _lose(part: str) -> Callable[[Path], None]:
    return lambda folder: void((folder / part).unlink() if (folder / part).is_file() else shutil.rmtree(folder / part))


def _lack(file: str, key: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / file)
        del tensors[key]
        save_file(tensors, folder / file, metadata={"format": "pt"})

    return change


FOLDERS = [  # (what is done to a copy of the text model, what the sentence says)
    (_lose("model_index.json"), "is no saved model: its model_index.json is missing or no JSON object"),
    (_text("model_index.json", "{"), "model_index.json is missing or no JSON object"),
    (_text("model_index.json", "[]"), "model_index.json is missing or no JSON object"),
    (_text("unet/config.json", "{"), "unet/config.json is missing or no JSON object"),
    (_text("text_encoder/config.json", "{"), "text_encoder/config.json is missing or no JSON object"),
    (_text("tokenizer/tokenizer.json", "{"), "cannot open the conditioner in"),
    (_text("scheduler/scheduler_config.json", "[]"), "scheduler_config.json is missing or no JSON object"),
    (_lose("vae"), "is incomplete: its folder vae is missing"),
    (_lose("unet"), "is incomplete: its folder unet is missing"),
    (_lose("text_encoder"), "is incomplete: its folder text_encoder is missing"),
    (_lose("tokenizer"), "is incomplete: its folder tokenizer is missing"),
    (_lose("scheduler"), "scheduler_config.json is missing"),
    (_cut(f"vae/{WEIGHTS}"), "cannot open .*vae"),
    (_cut(f"unet/{WEIGHTS}"), "cannot open .*unet"),
    (_cut("text_encoder/model.safetensors"), "cannot open the conditioner in"),
    (_lack(f"unet/{WEIGHTS}", "conv_in.bias"), "lack 1 tensors, the first being conv_in.bias"),
    (_lack(f"vae/{WEIGHTS}", "decoder.conv_in.bias"), "lack 1 tensors, the first being decoder.conv_in.bias"),
    (
        _lack("text_encoder/model.safetensors", "text_model.embeddings.position_embedding.weight"),
        "text_encoder lack 1 tensors",
    ),
    (_set("unet/config.json", block_out_channels=[16, 32]), "cannot open .*unet: .*shape"),
    (_set("unet/config.json", down_block_types=["Evil", "Evil"]), "cannot open .*unet: Evil does not exist"),
    (_set("unet/config.json", _class_name="UNet2DModel"), "is of class UNet2DModel, but model_index.json says"),
    (_set("model_index.json", unet=["diffusers", "DiTTransformer2DModel"]), "unet is .*DiT.*, expected diffusers with"),
    (_set("model_index.json", unet=["my_code", "UNet2DConditionModel"]), "unet is .*my_code.*; no other code is run"),
    (_set("model_index.json", vae=["os", "system"]), "vae is .*os.*; no other code is run"),
    (_set("model_index.json", text_encoder=["transformers", "T5EncoderModel"]), "T5EncoderModel.*, expected"),
    (
        _set("model_index.json", text_encoder_2=["transformers", "CLIPTextModel"]),
        "its folder text_encoder_2 is missing",
    ),
    (_set("model_index.json", text_encoder_5=["transformers", "CLIPTextModel"]), "has a part 'text_encoder_5'"),
    (_set("model_index.json", unet=None), "names no unet"),
    (_set("model_index.json", scheduler=[None, None]), "names no scheduler"),
    (_set("text_encoder/config.json", auto_map={"AutoModel": "evil.Model"}), "code of its own .auto_map."),
    (_set("unet/config.json", auto_map={"AutoModel": "evil.Model"}), "code of its own .auto_map."),
    (_set("scheduler/scheduler_config.json", num_train_timesteps="many"), "num_train_timesteps: expected"),
    (_set("scheduler/scheduler_config.json", num_train_timesteps=-4), "num_train_timesteps: expected"),
    (_set("scheduler/scheduler_config.json", beta_schedule="exotic"), "has beta_schedule 'exotic'; expected one of"),
    (_set("scheduler/scheduler_config.json", prediction_type="noise"), "has prediction_type 'noise'; expected one of"),
    (_set("scheduler/scheduler_config.json", trained_betas=[7]), "hold"),
    (
        _set("scheduler/scheduler_config.json", variance_type="learned_range"),
        "the U-Net has 4 channels in and 4 out, but a latent has 4, and the scheduler says a learned variance, with "
        "which 8 come out",
    ),
]


@pytest.mark.parametrize("case", range(len(FOLDERS)), ids=lambda i: FOLDERS[i][1])
def test_folders(world, tmp_path, case):
    change, said = FOLDERS[case]
    shutil.copytree(world.model("text") / "model", tmp_path / "model", ignore=shutil.ignore_patterns("manifest.json"))
    change(tmp_path / "model")
    found = sentence(tmp_path / "model", "red", out=tmp_path / "out")
    assert re.search(said, found), found


def test_no_such_model(tmp_path):
    found = sentence(tmp_path / "nowhere", "red", out=tmp_path / "out")
    assert "nowhere is no saved model: its model_index.json is missing" in found


def test_a_class_model_without_its_classes(world: World, tmp_path):
    shutil.copytree(world.model("class") / "model", tmp_path / "model", ignore=shutil.ignore_patterns("manifest.json"))
    _set("class_encoder/config.json", classes=["only one"])(tmp_path / "model")
    assert "cannot open the conditioner" in sentence(tmp_path / "model", "red", out=tmp_path / "out")


def test_a_learned_variance_that_the_scheduler_does_not_know(world: World, tmp_path):
    shutil.copytree(
        world.model("learned") / "model", tmp_path / "model", ignore=shutil.ignore_patterns("manifest.json")
    )
    _set("scheduler/scheduler_config.json", variance_type="fixed_small")(tmp_path / "model")
    found = sentence(tmp_path / "model", out=tmp_path / "out")
    assert "3 channels in and 6 out, but a picture has 3, and the scheduler says no learned variance" in found


def test_a_vector_that_nobody_gives(world: World, tmp_path):
    shutil.copytree(
        world.model("class_pixels") / "model", tmp_path / "model", ignore=shutil.ignore_patterns("manifest.json")
    )
    shutil.rmtree(tmp_path / "model" / "class_encoder")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    del index["class_encoder"]
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    found = sentence(tmp_path / "model", out=tmp_path / "out")
    assert "the U-Net takes a vector of width 64, but the conditioner's have None" in found


def test_a_classifier_of_another_noise(world: World, tmp_path):
    shutil.copytree(
        world.model("classifier") / "model", tmp_path / "classifier", ignore=shutil.ignore_patterns("manifest.json")
    )
    _set("scheduler/scheduler_config.json", beta_end=0.02)(tmp_path / "classifier")
    found = sentence(world.model("plain"), "red", "--classifier", tmp_path / "classifier", out=tmp_path / "out")
    assert re.search(
        r"the classifier was trained under .*end 0\.02\b.*, but the model samples under .*end 0\.012", found
    ), found


def test_parts_that_do_not_fit(world: World, tmp_path):
    """Conditioner and U-Net of different models."""
    shutil.copytree(world.model("plain") / "model", tmp_path / "model", ignore=shutil.ignore_patterns("manifest.json"))
    shutil.copytree(world.model("class") / "model" / "class_encoder", tmp_path / "model" / "class_encoder")
    found = sentence(tmp_path / "model", "red", out=tmp_path / "out")
    assert "attends to tokens of width None, but the conditioner's have 16" in found
