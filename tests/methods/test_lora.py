"""LoRA: what is trained and saved, that diffusers and we draw the same with it, and what is refused."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from conditioning.none import NoCondition
from ldm_kit import config as configs
from ldm_kit import load
from ldm_kit.config import UserError
from ldm_kit.diffusion import rng
from ldm_kit.methods import check_run, read_run
from ldm_kit.methods.export import export
from ldm_kit.methods.lora import averaged_modules
from ldm_kit.methods.lora_config import LoraConfig
from ldm_kit.methods.lora_export import export_with_lora
from ldm_kit.methods.train import open_method, train
from ldm_kit.models.lora_files import LoraFile, adapter_layers
from ldm_kit.models.lora_paths import WEIGHTS, LoraPath
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.nets.unet import build_unet
from tests.training.helpers import play, reset
from tests.world import World, through

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
PROMPT, SEED, STEPS = "red square 1", 7, 5
OPTIONS = SamplingOptions(steps=STEPS, solver="ddim", guidance_scale=3.0)
EXACT = ("train.attention=sdpa", "train.channels_last=false")


def settings(world: World, name: str, run: Path, *overrides: str):
    """The config of a run that tunes the model `name` of the world by LoRA."""
    tree = copy.deepcopy(world.ldm(name, "unused"))
    tree |= {"run": str(run), "init": str(world.model(name)), "optim": {"lr": 3e-2, "warmup": 0}}
    tree["lora"] = {"rank": 2, "alpha": 6}
    for override in ("train.steps=3", *EXACT, *overrides):
        configs.assign(tree, override)
    return check_run(tree, "the test's config")


def trained(world: World, name: str, run: Path, *overrides: str) -> Path:
    reset()
    train(settings(world, name, run, *overrides))
    return run


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> Path:
    """A run that tuned the text model, U-Net and text encoder."""
    return trained(world, "text", tmp_path_factory.mktemp("lora") / "run")


@pytest.fixture(scope="module")
def second(world, tmp_path_factory) -> Path:
    """Another LoRA of the same base: other layers, another rank, convolutions among them, no text encoder."""
    folder = tmp_path_factory.mktemp("second") / "run"
    more = ("lora.rank=3", "lora.targets=[conv1, to_q, ff.net.2]", "lora.text_targets=[]", "seed=5")
    return trained(world, "text", folder, *more)


def weights(pipeline: Pipeline) -> dict[str, torch.Tensor]:
    networks = {"unet": pipeline.unet, **pipeline.conditioner.trainable}
    return {f"{n}.{key}": value for n, net in networks.items() for key, value in net.state_dict().items()}


@torch.no_grad()
def latents(pipeline: Pipeline) -> torch.Tensor:
    return [*pipeline.states([PROMPT], [SEED], OPTIONS.resolve(pipeline))][-1].x


def of_diffusers(base: Path, **lora) -> torch.Tensor:
    """The latents that plain diffusers samples from the base, after `load_lora_weights` of a file in a folder."""
    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    if lora:
        pipe.load_lora_weights(lora.pop("folder"), **lora)
    noise = rng.initial_noise([SEED], (4, 8, 8))
    return pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=3.0, latents=noise, output_type="latent").images


def test_plain_diffusers_samples_the_same_with_the_file(world, run):
    base = world.model("text") / "model"
    theirs = of_diffusers(base, folder=run / "model")
    untuned = of_diffusers(base)
    assert (theirs - untuned).abs().max() > 0.05
    torch.testing.assert_close(latents(Pipeline.load(base)), untuned, rtol=0, atol=1e-4)
    torch.testing.assert_close(latents(Pipeline.load(base, lora=[run])), theirs, rtol=0, atol=1e-4)
    torch.testing.assert_close(latents(Pipeline.load(run)), theirs, rtol=0, atol=1e-4)  # model/ has it merged
    torch.testing.assert_close(of_diffusers(run / "model"), theirs, rtol=0, atol=1e-4)


def test_the_file_has_the_names_that_diffusers_writes(world, run, tmp_path):
    from peft import get_peft_model_state_dict

    method = open_method(settings(world, "text", tmp_path / "run"))
    networks = {"unet": method.module.unet, "text_encoder": method.module.conditioner.text_encoder}  # type: ignore[attr-defined]
    layers = {f"{n}_lora_layers": get_peft_model_state_dict(net) for n, net in networks.items()}
    StableDiffusionPipeline.save_lora_weights(tmp_path, **layers)
    ours, theirs = load_file(run / "model" / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert {name: value.shape for name, value in ours.items()} == {name: v.shape for name, v in theirs.items()}
    lora = LoraFile.read(run / "model" / WEIGHTS)
    assert {name: (s.lora_alpha, s.use_rslora) for name, s in lora.settings.items()} == {
        "unet": (6, False),
        "text_encoder": (6, False),
    }
    assert lora.base == method.start["sha256"]  # type: ignore[index]


def test_the_base_stays_and_nothing_else_is_optimised_or_averaged(world, run):
    (path,) = run.glob("checkpoint-*")
    state = load_file(path / "model" / "denoiser.safetensors")
    plain = {name.replace(".base_layer", ""): value for name, value in state.items() if ".lora_" not in name}
    base = weights(Pipeline.load(world.model("text")))
    base = {name.replace("text_encoder", "conditioner.text_encoder", 1): value for name, value in base.items()}
    assert plain.keys() == base.keys()
    assert all(torch.equal(plain[name], value) for name, value in base.items())
    matrices = {name for name in state if ".lora_" in name}
    averaged = {n: load_file(path / "ema" / f"{n}.safetensors") for n in ("unet", "text_encoder")}
    assert sum(map(len, averaged.values())) == len(matrices)
    assert {f"unet.{name}" for name in averaged["unet"]} == {name for name in matrices if name.startswith("unet.")}
    moments = load_file(path / "optimizer" / "denoiser.safetensors")
    assert len({name.split(".")[0] for name in moments}) == len(matrices)


def test_the_saved_matrices_are_the_averages(run):
    (path,) = run.glob("checkpoint-*")
    averages = load_file(path / "ema" / "unet.safetensors")
    saved = LoraFile.read(run / "model" / WEIGHTS).tensors["unet"]
    assert {name.replace(".default", "") for name in averages} == saved.keys()
    assert all(torch.equal(saved[name.replace(".default", "")], value) for name, value in averages.items())
    exported = export(run, out=run.parent / "exported")
    for name in (WEIGHTS, "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (exported / name).read_bytes() == (run / "model" / name).read_bytes()


def test_scales_and_sums(world, run, second):
    base = world.model("text")
    w, one, other = (weights(Pipeline.load(base, lora=lora)) for lora in ((), [run], [second]))
    none = weights(Pipeline.load(base, lora=[f"{run}:0", LoraPath(second, 0.0)]))
    both, half = (weights(Pipeline.load(base, lora=lora)) for lora in ([run, f"{second}:-2"], [f"{run}:0.5"]))
    assert all(torch.equal(none[name], value) for name, value in w.items())
    changed = {name for name in w if not torch.equal(one[name], w[name])}
    assert {name.split(".")[-2] for name in changed} == {"to_q", "to_k", "to_v", "0", *"qkv", "q_proj"} - {*"qkv"} | {
        "k_proj",
        "v_proj",
        "out_proj",
    }
    also = {name.split(".")[-2] for name in w if not torch.equal(other[name], w[name])}
    assert also == {"conv1", "to_q", "2"}
    for name, value in w.items():
        torch.testing.assert_close(half[name] - value, 0.5 * (one[name] - value), rtol=0, atol=1e-6)
        delta = one[name] - value - 2 * (other[name] - value)
        torch.testing.assert_close(both[name] - value, delta, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "channels_last", "more"),
    [
        ("text", 0, ("lora.targets=[to_q, conv1, conv2, proj_in]", "lora.dora=true")),
        ("class", 0, ()),
        ("plain", 1, ("lora.rank=4", "lora.targets=[to_q, conv_in]")),
        ("text", 1, ("lora.targets=[to_q, conv1, conv2, proj_in]",)),
    ],
)
def test_merged_is_unmerged_and_a_new_one_is_the_base(world, name, channels_last, more, tmp_path, monkeypatch):
    """For text, class vectors and no condition; LoRA of convolutions and DoRA; in both memory layouts."""
    monkeypatch.setenv("LDM_KIT_CHANNELS_LAST", str(channels_last))
    config = settings(world, name, tmp_path / "run", "train.channels_last=null", "train.attention=auto", *more)
    method, base = open_method(config), Pipeline.load(world.model(name))
    prompts = ["red" if name == "class" else "red square 1" if name == "text" else ""]
    x, t = rng.initial_noise([1], base.latent_shape), torch.tensor([300])

    def predicted(pipeline):
        return pipeline.network()(x, t, pipeline.condition(prompts))

    method.modules["denoiser"].eval()
    with torch.no_grad():
        before = predicted(method.pipeline)  # type: ignore[attr-defined]
        torch.testing.assert_close(before, predicted(base), rtol=0, atol=1e-5 if "lora.dora=true" in more else 0)
        torch.manual_seed(1)
        for weight in method.modules["denoiser"].parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn_like(weight))
        unmerged = predicted(method.pipeline)  # type: ignore[attr-defined]
        method.save_model(tmp_path / "model")
        assert (unmerged - before).abs().max() > 0.01
        torch.testing.assert_close(predicted(method.pipeline), unmerged, rtol=0, atol=0)  # type: ignore[attr-defined]
        for merged in (Pipeline.load(tmp_path / "model"), load(world.model(name), lora=[tmp_path / "model"])):
            assert not adapter_layers(merged.unet)  # type: ignore[union-attr]
            torch.testing.assert_close(predicted(merged), unmerged, rtol=1e-4, atol=1e-4)
        if name != "text":
            return
        theirs = UNet2DConditionModel.from_pretrained(world.model(name) / "model" / "unet").eval()
        theirs.load_lora_adapter(tmp_path / "model", weight_name=WEIGHTS, prefix="unet")
        tokens = Pipeline.load(tmp_path / "model").condition(prompts).tokens
        torch.testing.assert_close(theirs(x, t, tokens).sample, unmerged, rtol=1e-4, atol=1e-4)


def test_it_resumes_bit_for_bit_without_the_base(world, tmp_path, monkeypatch):
    def config(name):
        return settings(
            world, "text", tmp_path / name, "train.checkpoint_every=1", "lora.dropout=0.3", "lora.dora=true"
        )

    whole = play(config("whole"))
    part = play(config("part"), until=1)
    monkeypatch.setattr("ldm_kit.methods.latent_init.locate_start", None)  # the base is not opened again
    rest = play(config("part"), "latest")
    assert part.lines + rest.lines == whole.lines
    assert rest.weights == whole.weights
    files = [sorted((tmp_path / name / "checkpoint-00000003").rglob("*.safetensors")) for name in ("whole", "part")]
    assert len(files[0]) == len(files[1]) == 4
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True))


def test_micro_batches_train_the_same(world, tmp_path):
    whole, parts = (play(settings(world, "text", tmp_path / str(n), f"train.micro_batch={n}")) for n in (8, 2))
    torch.testing.assert_close(whole.numbers("denoiser_loss"), parts.numbers("denoiser_loss"), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["kohya", "diffusers"])
def test_other_formats_change_the_weights_alike(world, run, kind, tmp_path):
    lora = LoraFile.read(run / "model" / WEIGHTS)
    tensors: dict[str, torch.Tensor] = {}
    for network, of in lora.tensors.items():
        for name, value in of.items():
            layer, matrix = name.split(".lora_")
            down = "down" if matrix == "A.weight" else "up"
            if kind == "diffusers":
                word = "lora" if network == "unet" else "lora_linear_layer"
                scale = 3 if down == "up" else 1  # alpha / rank, which this format has no word for
                tensors[f"{network}.{layer}.{word}.{down}.weight"] = scale * value
                continue
            prefix = "lora_unet" if network == "unet" else "lora_te_text_model"
            key = f"{prefix}_{layer.replace('.', '_')}"
            tensors |= {f"{key}.lora_{down}.weight": value, f"{key}.alpha": torch.tensor(6.0)}
    save_file(tensors, tmp_path / "x.safetensors")
    base = world.model("text")
    ours, other = (weights(Pipeline.load(base, lora=[path])) for path in (run, tmp_path / "x.safetensors"))
    for name, value in ours.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-6)


def test_rank_8_is_under_5_percent_of_the_faces_model():
    config = read_run(Path(__file__).parents[2] / "configs" / "faces" / "ldm_text.yaml")
    unet = build_unet(config.unet, sample_size=16, channels=4, out_channels=4, cross_width=128)  # type: ignore[attr-defined]
    total = sum(weight.numel() for weight in unet.parameters())
    modules = averaged_modules(LoraConfig(rank=8), unet, NoCondition())
    trainable = sum(weight.numel() for weight in unet.parameters() if weight.requires_grad)
    assert sum(weight.numel() for weight in modules["unet"].parameters()) == trainable
    assert 0.01 * total < trainable < 0.05 * total


def test_the_opening_text_has_the_share(world, tmp_path):
    method = open_method(settings(world, "text", tmp_path / "run", "optim.muon.lr=0.01"))
    trainable = sum(weight.numel() for weight in method.modules["denoiser"].parameters() if weight.requires_grad)
    total = sum(weight.numel() for weight in method.modules["denoiser"].parameters())
    assert f"with {trainable:,} of {total:,} parameters trained ({trainable / total:.2%}".replace("%", " %)") in (
        method.describe()
    )
    assert "those of lora have a side of 2: AdamW trains them all, at optim.lr 0.03" in method.describe()


def test_the_script_samples_with_it_and_says_so(world, run, second, tmp_path):
    def sample(model, *flags):
        out = tmp_path / str(len([*tmp_path.iterdir()]))
        found = through("sample", model, PROMPT, "--out", out, "--seed", SEED, "--steps", 2, *flags)
        assert found.status == 0, found.err
        from PIL import Image

        (path,) = [path for path in out.glob("*.png") if path.name != "grid.png"]
        with Image.open(path) as picture:
            return picture.tobytes(), picture.info

    base = world.model("text")
    plain, half = sample(base), sample(base, "--lora", f"{run}:0.5", "--lora", second)
    merged = export_with_lora(base, [f"{run}:0.5", str(second)], tmp_path / "merged")
    assert half[0] == sample(merged)[0] != plain[0]
    assert "lora" not in plain[1]
    assert [part.rpartition(":")[2] for part in half[1]["lora"].split(", ")] == ["0.5", "1"]
    assert not adapter_layers(Pipeline.load(merged).unet)
    assert sample(base, "--lora", f"{run}:0")[0] == plain[0]
    (checkpoint,) = run.glob("checkpoint-*")
    assert sample(base, "--lora", checkpoint)[0] == sample(base, "--lora", run / "model" / WEIGHTS)[0]


def write(folder: Path, tensors, **header) -> Path:
    path = folder / "lora.safetensors"
    save_file(tensors, path, metadata={"format": "pt", **header})
    return path


QUERY = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def wrong_files(folder: Path, run: Path) -> dict[str, tuple[object, str]]:
    """By name, what `lora` gets, and what the sentence says."""
    ours = load_file(run / "model" / WEIGHTS)
    narrow = {
        name: value[:, :5].contiguous() if name == f"{QUERY}.lora_A.weight" else value for name, value in ours.items()
    }
    torch.save({"a": torch.zeros(1)}, folder / "pickle.bin")

    def made(name, *args, **header):
        (folder / name).mkdir()
        return write(folder / name, *args, **header)

    return {
        "missing": (folder / "none", "no LoRA in .*none; expected a .safetensors file, or a folder with pytorch_lora"),
        "scale": (f"{run}:much", r"its scale 'much' is no number; expected PATH or PATH:SCALE"),
        "nan": (f"{run}:nan", r"its scale 'nan' is no number"),
        "no path": (":0.5", r"LoRA ':0.5' names no file"),
        "nothing": ("", r"LoRA '' names no file"),
        "pickle": (folder / "pickle.bin", r"cannot read the LoRA .*expected a .safetensors file, never a pickle"),
        "model": (made("m", {"conv_in.weight": torch.zeros(2)}), "is no LoRA of ours: 'conv_in.weight' is not of unet"),
        "empty": (made("e", {}), "is no LoRA: it holds no tensors"),
        "digest": (made("d", ours, base_sha256="ab" * 32), r"trained on another base, of sha256 abababababab; this"),
        "shape": (made("s", narrow), rf"does not fit this model's unet: {QUERY[5:]}.lora_A.weight is \(2, 5\) there"),
        "layer": (
            made("l", {f"unet.nowhere.lora_{m}.weight": torch.zeros(2, 2) for m in "AB"}),
            "does not fit this model's unet",
        ),
        "header": (made("h", ours, lora_adapter_metadata="[1"), "its lora_adapter_metadata is broken"),
        "alpha": (made("a", ours, lora_adapter_metadata='{"unet.lora_alpha": "x"}'), "its lora_adapter_metadata is br"),
    }


WRONG = (
    "missing",
    "scale",
    "nan",
    "no path",
    "nothing",
    "pickle",
    "model",
    "empty",
    "digest",
    "shape",
    "layer",
    "header",
    "alpha",
)


@pytest.fixture(scope="module")
def wrong(run, tmp_path_factory):
    files = wrong_files(tmp_path_factory.mktemp("wrong"), run)
    assert files.keys() == {*WRONG}
    return files


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_does_not_fit_is_refused(world, wrong, name):
    given, said = wrong[name]
    with pytest.raises(UserError, match=said):
        Pipeline.load(world.model("text"), lora=[given])


def test_a_lora_of_a_text_encoder_needs_one(world, run):
    with pytest.raises(UserError, match="changes the text_encoder, which this model does not have or train"):
        load(world.model("plain"), lora=[run])
    with pytest.raises(UserError, match=r"is a ldm_kit.NoisyClassifier, which takes no LoRA"):
        load(world.model("classifier"), lora=[run])


def test_the_tuned_model_is_not_the_base(run):
    with pytest.raises(UserError, match="was trained on another base"):
        load(run, lora=[run])


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("text", ["lora.targets=[to_q, to_w]"], r"lora.targets: 'to_w' matches no layer of the unet of init .*to_q"),
        ("text", ["lora.targets=[norm1]"], r"lora.targets: 'norm1' names other layers of the unet of init"),
        ("text", ["lora.text_targets=[fc9]"], r"lora.text_targets: 'fc9' matches no layer of the text_encoder of init"),
        ("class", ["lora.text_targets=[q_proj]"], r"lora.text_targets: init \S+ has no text encoder that is trained"),
        ("text", ["condition.width=32"], r"is of another condition, text; lora trains no new condition"),
        ("class", ["condition={kind: none}"], r"is of another condition, classes; lora trains no new condition"),
        ("plain", ["variance=learned_range"], r"lora trains no new weights of it: conv_out.bias is \(4,\) there"),
    ],
)
def test_what_lora_cannot_tune_is_refused_before_the_pictures(world, name, overrides, said, tmp_path):
    config = settings(world, name, tmp_path / "run", *overrides)
    config = config.model_copy(update={"data": config.data.model_copy(update={"path": tmp_path / "no pictures"})})
    with pytest.raises(UserError, match=said):
        open_method(config)


def test_settings_that_contradict_each_other(world, tmp_path):
    for override, said in (
        ("init=null", "lora tunes a trained model, but init names none"),
        ("lora.targets=[]", None),
        ("lora.rank=0", "lora.rank"),
        ("lora.dropout=1", "lora.dropout"),
    ):
        if said is not None:
            with pytest.raises(UserError, match=said):
                settings(world, "text", tmp_path / "run", override)
    with pytest.raises(UserError, match="targets and text_targets are both empty"):
        settings(world, "text", tmp_path / "run", "lora.targets=[]", "lora.text_targets=[]")
    text_alone = open_method(settings(world, "text", tmp_path / "run", "lora.targets=[]"))
    assert [*text_alone.ema_modules] == ["text_encoder"]


def test_without_peft_one_sentence(world, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    for use in (
        lambda: Pipeline.load(world.model("text"), lora=[run]),
        lambda: open_method(settings(world, "text", tmp_path / "run")),
    ):
        with pytest.raises(UserError, match=r"LoRA needs the package peft; pip install 'ldm_kit\[lora\]'"):
            use()
    assert json.loads((run / "model" / "manifest.json").read_text())["files"][WEIGHTS]["size"] > 0
    Pipeline.load(run)  # which has LoRA merged, and needs no peft


def test_export_with_lora_needs_a_new_folder(world, run, tmp_path):
    with pytest.raises(UserError, match="name its new folder with --out"):
        export_with_lora(world.model("text"), [str(run)], None)
    with pytest.raises(UserError, match="exists already; name a new folder"):
        export_with_lora(world.model("text"), [str(run)], tmp_path)
