"""Runs that start from trained weights: what they predict at first, what grows, what is refused, and their resuming."""

import gc
import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModel

import conditioning.factory as conditioners
from conditioning.condition import Condition
from conditioning.labels import ClassConditioner, ClassEmbedder
from conditioning.pretrained import PretrainedConditioner, PretrainedTextConfig
from conditioning.text import TextConditioner, TextConfig
from ldm_kit.config import UserError
from ldm_kit.diffusion.posterior import VarianceType
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.methods import train as training
from ldm_kit.methods.export import export
from ldm_kit.methods.latent import Latent
from ldm_kit.methods.train import open_method
from ldm_kit.models import hub
from ldm_kit.models.growth import grow
from ldm_kit.nets.apply import apply_unet
from ldm_kit.solvers.scheduler_config import saved_scheduler
from tests.training.helpers import CLASSES, STAGE_2, TEXT, digest, picture_folder, play, reset, settings

EXACT = ("train.attention=sdpa", "train.channels_last=false", "unet.dropout=0")
SHAPE = {"sample_size": 16, "in_channels": 3, "out_channels": 3, "block_out_channels": (8, 16), "layers_per_block": 1}
OTHERS = {"norm_num_groups": 4, "norm_eps": 1e-6, "freq_shift": 1, "flip_sin_to_cos": False}  # two are not our defaults
CROSSED = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
}
PLAIN = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
}
SCALED = ("guidance.max_scale=6", "guidance.width=16", "sample.guidance_scale=2")


def unet_of(kind, **changes):
    torch.manual_seed(3)
    shape = CROSSED if kind is UNet2DConditionModel else PLAIN
    return kind(**{**SHAPE, **OTHERS, **shape, **changes}).eval()


def write_model(folder: Path, unet, conditioner=None, variance: VarianceType = "small") -> Path:
    """Save a pixel model as diffusers does: a folder for each component."""
    entries = {} if conditioner is None else conditioners.save(conditioner, folder)
    unet.save_pretrained(folder / "unet")
    scheduler = saved_scheduler(ScheduleConfig(kind="linear", num_train_timesteps=50), "v", variance)
    scheduler.save_pretrained(folder / "scheduler")
    names = {"unet": ("diffusers", type(unet).__name__), "scheduler": ("diffusers", type(scheduler).__name__)}
    (folder / "model_index.json").write_text(json.dumps({**names, **entries}))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models with and without text; the captions of the tokenizer are not those of the pictures."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(4)
    config = TextConfig.model_validate({**TEXT["condition"], "vocabulary": 530})
    text = TextConditioner.build(config, captions=["some other words", "other words"] * 3)
    write_model(folder / "text", unet_of(UNet2DConditionModel), text)
    write_model(folder / "plain", unet_of(UNet2DModel))
    half = TextConditioner.load(folder / "text")
    half.text_encoder.half()
    write_model(folder / "half", unet_of(UNet2DConditionModel).half(), half)
    torch.manual_seed(5)
    classes = ClassConditioner(ClassEmbedder(["c", "a", "x"], 16))
    return {
        "text": folder / "text",
        "half": folder / "half",
        "plain": folder / "plain",
        "class": write_model(folder / "class", unet_of(UNet2DConditionModel), classes),
    }


def opened(tree, pictures, init, *overrides) -> Latent:
    return open_method(settings(tree, pictures, pictures.parent / "run", f"init={init}", *EXACT, *overrides))  # type: ignore[return-value]


def noisy(channels=3):
    torch.manual_seed(7)
    return torch.randn(2, channels, 16, 16), torch.tensor([3, 40])


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "kind", "tree"),
    [
        ("text", UNet2DConditionModel, TEXT),
        ("plain", UNet2DModel, {**STAGE_2, "unet": {**STAGE_2["unet"], "heads": None, "head_size": 8}}),
    ],
)
def test_the_network_predicts_bit_for_bit_what_diffusers_does(pictures, models, name, kind, tree):
    method, (x, t) = opened(tree, pictures, models[name]), noisy()
    theirs = kind.from_pretrained(models[name] / "unet").eval()
    ours = method.module.eval()
    raw = ["a thing of kind 1", ""]
    inputs = ours.conditioner.prepare(raw)
    given = {}
    if name == "text":
        encoder = CLIPTextModel.from_pretrained(models[name] / "text_encoder", attn_implementation="sdpa").eval()
        given["encoder_hidden_states"] = encoder(inputs["ids"]).last_hidden_state
        assert (ours.conditioner.tokenizer.get_vocab()) == TextConditioner.load(models[name]).tokenizer.get_vocab()
    assert torch.equal(ours(x, t, inputs), theirs(x, t, **given).sample)
    assert isinstance(method.start, dict)
    assert method.start["sha256"] in method.notes[0]
    assert all(p.requires_grad for p in method.module.parameters())


@torch.no_grad()
@pytest.mark.parametrize(
    ("changes", "extra"),
    [
        ({"time_cond_proj_dim": 16}, {"scale": torch.tensor([1.0, 5.0])}),
        ({"out_channels": 6}, {}),
        ({"sample_size": 32}, {}),
    ],
    ids=["guidance scale", "learned variance", "size"],
)
def test_growth_keeps_the_prediction(changes, extra):
    old, (x, t), tokens = unet_of(UNet2DConditionModel), noisy(), torch.randn(2, 3, 16)
    new, notes = grow(
        "init old", old, unet_of(UNet2DConditionModel, norm_eps=1e-5, **changes), learned="out_channels" in changes
    )
    condition = Condition(tokens=tokens)
    found, expected = apply_unet(new.eval(), x, t, condition, **extra), apply_unet(old, x, t, condition)
    assert torch.equal(found[:, :3], expected)
    assert not found[:, 3:].any()
    assert len(notes) == (0 if "sample_size" in changes else 1)
    assert new.config.norm_eps == 1e-6, "not what the run decides"


@pytest.mark.parametrize(("channels", "learned"), [(4, False), (6, False), (6, True)])
def test_data_of_more_channels_are_no_growth(channels, learned):
    """Twice the channels are not a learned variance."""
    more = unet_of(UNet2DConditionModel, in_channels=channels, out_channels=channels * (1 + learned))
    with pytest.raises(UserError, match=r"conv_in.weight is \(8, 3, 3, 3\) there, .*conv_out.bias is \(3,\) there"):
        grow("init old", unet_of(UNet2DConditionModel), more, learned=learned)


def test_data_of_twice_the_channels_are_no_growth_of_a_model_that_learns_its_variance():
    """Both convolutions have twice the channels then, as if inputs and a variance were new."""
    old, new = (unet_of(UNet2DConditionModel, in_channels=n, out_channels=2 * n) for n in (3, 6))
    with pytest.raises(UserError, match=r"conv_in.weight is \(8, 3, 3, 3\) there, expected \(8, 6, 3, 3\)"):
        grow("init old", old, new, learned=True)


def test_a_new_width_of_tokens_costs_the_attention_to_them_alone():
    old = unet_of(UNet2DConditionModel)
    new, (note,) = grow("init old", old, unet_of(UNet2DConditionModel, cross_attention_dim=24))
    weights = new.state_dict()
    differing = {
        key
        for key, value in old.state_dict().items()
        if value.shape != weights[key].shape or not torch.equal(value, weights[key])
    }
    assert differing == {key for key in weights if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    assert all(weights[key].std() > 0.01 for key in differing)
    assert "24 channels wide, not 16" in note


@torch.no_grad()
def test_classes_of_the_same_name_keep_their_vectors(pictures, models):
    method = opened(CLASSES, pictures, models["class"])  # a, b and c
    old = load_file(models["class"] / "class_encoder" / "diffusion_pytorch_model.safetensors")["embedding.weight"]
    table = method.module.conditioner.class_encoder.embedding.weight
    assert torch.equal(table, old[[1, 3, 0, 3]]), "c, a and x were 0, 1 and 2, the null class 3"
    assert "2 of the 3 classes keep their vectors, others begin with the vector of the null class" in method.notes


@torch.no_grad()
def test_a_table_without_null_class_gets_the_mean_as_one():
    table = ClassConditioner(ClassEmbedder(["a", "b"], 4, null=False))
    new, _ = table.with_classes(["b", "c"])
    rows = table.class_encoder.embedding.weight
    assert torch.equal(new.class_encoder.embedding.weight, torch.stack([rows[1], rows.mean(0), rows.mean(0)]))


@torch.no_grad()
def test_classes_that_are_new_change_nothing_at_first(pictures, models):
    plain = "unet.heads=null", "unet.head_size=8"
    method, (x, t) = (
        opened(CLASSES, pictures, models["plain"], *plain, "condition.form=vector", "condition.width=null"),
        noisy(),
    )
    theirs = UNet2DModel.from_pretrained(models["plain"] / "unet").eval()
    assert torch.equal(method.module.eval()(x, t, method.module.conditioner.prepare(["a", "c"])), theirs(x, t).sample)
    assert any("begin at 0" in note for note in method.notes)


def test_another_condition_is_new_and_said(pictures, models):
    notes = opened(TEXT, pictures, models["class"]).notes
    assert any("was trained on classes; the condition of this run, text, is new" in note for note in notes)
    notes = opened(TEXT, pictures, models["text"], "condition.width=24").notes
    assert len(notes) == 3
    assert ": tokens are 24 channels wide, not 16" in notes[1]
    assert notes[2].endswith("with an encoder of text, and that of this run is another one, with random weights")


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ("text", "a", "that of this run is another one"),
        ("a", "text", "that of this run is another one, with random weights"),
        ("a", "b", "that of this run is another one"),
        ("a", "a", None),
        ("text", "text", None),
    ],
    ids=str,
)
def test_another_text_encoder_of_equal_width_is_said(pictures, models, tmp_path, before, now, said):
    """Nothing of the U-Net changes its shape then."""
    encoders = {name: frozen_encoder(tmp_path / name, models["text"], index) for index, name in enumerate("ab")}

    def condition(name):
        return {"kind": "pretrained", "model": str(encoders[name]), "length": 8, "dtype": "float32"}

    model = models["text"]
    if before != "text":
        conditioner = PretrainedConditioner(PretrainedTextConfig(**condition(before)))
        model = write_model(tmp_path / "model", unet_of(UNet2DConditionModel), conditioner)
        if now != before:
            shutil.rmtree(encoders[before])  # only its sha256 is needed
    tree = TEXT if now == "text" else {**TEXT, "condition": condition(now)}
    _, *notes = opened(tree, pictures, model).notes
    expected = [f"init {model} was trained with an encoder of text, and {said}"] if said else []
    assert [note for note in notes if "encoder" in note] == expected
    assert not any("channels wide" in note for note in notes)


def frozen_encoder(folder: Path, model: Path, seed: int) -> Path:
    """A text encoder of the same shape as a model's, with random weights, for condition.kind pretrained."""
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(model / name, folder, dirs_exist_ok=True)
    torch.manual_seed(seed)
    weights = load_file(folder / "model.safetensors")
    more = {key: value + 0.01 * torch.randn_like(value) for key, value in weights.items()}
    save_file(more, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("name", "tree", "overrides", "said"),
    [
        (
            "text",
            TEXT,
            ("unet.widths=[8, 24]",),
            r"block_out_channels \[8, 16\], but this run's unet.widths gives \[8, 24\]",
        ),
        (
            "text",
            TEXT,
            ("unet.layers_per_block=2",),
            r"layers_per_block 1, but this run's unet.layers_per_block gives 2",
        ),
        ("text", TEXT, ("unet.heads=1",), r"attention_head_dim 2, but this run's unet.heads or head_size gives 1"),
        ("text", TEXT, ("unet.attention_levels=[true, true]",), r"unet.attention_levels"),
        ("text", TEXT, ("unet.transformer_depth=2",), r"unet.transformer_depth gives 2"),
        ("text", TEXT, ("unet.time=scale_shift",), r"unet.time gives scale_shift"),
        ("text", TEXT, ("prediction_type=eps",), "predicts v, but this run's prediction_type is eps"),
        (
            "text",
            TEXT,
            ("schedule.num_train_timesteps=60",),
            "was trained under the noise schedule .* 50.* this run's is .* 60",
        ),
        ("text", TEXT, ("condition.layers=2",), "its text encoder has layers 1, but condition.layers is 2"),
        (
            "text",
            TEXT,
            ("data.channels=1",),
            r"conv_in.weight is \(8, 3, 3, 3\) there, expected \(8, 1, 3, 3\); conv_out.bias is \(3,\)",
        ),
        ("text", STAGE_2, (), "has a UNet2DConditionModel, but this run's config asks for a UNet2DModel; .*condition"),
        ("plain", TEXT, (), "has a UNet2DModel, but this run's config asks for a UNet2DConditionModel"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_before_the_pictures_are_read(
    pictures, models, monkeypatch, name, tree, overrides, said
):
    monkeypatch.setattr(training, "load", lambda *a, **k: pytest.fail("the pictures were read"))
    with pytest.raises(UserError, match=said) as refused:
        opened(tree, pictures, models[name], *overrides)
    assert "\n" not in str(refused.value)
    assert str(models[name]) in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop("conv_in.bias"), "lack 1 tensors, the first being conv_in.bias"),
        (lambda weights: weights.update(more=torch.zeros(2)), "have 1 tensors that the network has not: more"),
        (lambda weights: weights.update({"conv_in.bias": torch.zeros(3)}), "conv_in.bias"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_weights_that_are_not_those_of_their_config_are_named(pictures, models, tmp_path, change, said):
    shutil.copytree(models["plain"], tmp_path / "broken")
    path = tmp_path / "broken" / "unet" / "diffusion_pytorch_model.safetensors"
    change(weights := load_file(path))
    save_file(weights, path)
    with pytest.raises(UserError, match=said) as refused:
        opened(STAGE_2, pictures, tmp_path / "broken", "unet.heads=null", "unet.head_size=8")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "tree", "file", "tensor"),
    [
        ("text", TEXT, "text_encoder/model.safetensors", "text_model.encoder.layers.0.mlp.fc1.bias"),
        ("class", CLASSES, "class_encoder/diffusion_pytorch_model.safetensors", "embedding.weight"),
    ],
    ids=["text", "class"],
)
def test_tensors_of_the_condition_that_are_missing_or_of_no_use_are_named(
    pictures, models, tmp_path, name, tree, file, tensor
):
    shutil.copytree(models[name], tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / file)
    more = {"encoder.layers.7.bias": torch.zeros(3), "text_model.embeddings.position_ids": torch.arange(8)}
    for broken, said in (
        ({**weights, **more}, "have 1 tensors that the network has not: encoder.layers.7.bias$"),
        ({**more, **{key: value for key, value in weights.items() if key != tensor}}, "lack 1 tensors, .* and have 1"),
    ):
        save_file(broken, tmp_path / "broken" / file, metadata={"format": "pt"})
        with pytest.raises(UserError, match=said) as refused:
            opened(tree, pictures, tmp_path / "broken")
        assert "\n" not in str(refused.value)


def test_a_learned_variance_cannot_be_unlearned(pictures, tmp_path):
    write_model(tmp_path / "learned", unet_of(UNet2DModel, out_channels=6), variance="learned_range")
    with pytest.raises(UserError, match="learns its variance, but variance is small; expected learned_range"):
        opened(STAGE_2, pictures, tmp_path / "learned")


def test_two_starts_and_none_are_refused(pictures, models, tmp_path):
    with pytest.raises(UserError, match=r"init and guidance.base both name weights"):
        opened(CLASSES, pictures, models["class"], *SCALED, "guidance.base=somewhere")
    with pytest.raises(UserError, match="nowhere"):
        opened(CLASSES, pictures, tmp_path / "nowhere")


def test_no_start_means_random_weights_and_init_is_not_read(pictures, tmp_path):
    """As in a resumed run whose checkpoint holds no structure."""
    config = settings(CLASSES, pictures, tmp_path / "run", f"init={tmp_path / 'nowhere'}")
    assert open_method(config, start=None).start is None


def test_a_model_of_the_hub_is_pinned_by_its_commit(pictures, models, monkeypatch, tmp_path):
    copy, asked = tmp_path / ("0a" * 20), []
    shutil.copytree(models["class"], copy)

    def snapshot(name, files, complete, **more):
        asked.append((name, more["revision"]))
        assert complete(copy)
        assert not any(pattern.endswith((".bin", ".py", ".safetensors*")) or pattern == "*" for pattern in files)
        return copy

    monkeypatch.setattr(hub.sources, "snapshot", snapshot)
    method = opened(CLASSES, pictures, "owner/name@v2")
    assert {*asked} == {("owner/name", "v2")}
    assert method.notes[0].startswith(f"started from owner/name@{'0a' * 20}, sha256 ")


def test_a_checkpoint_gives_its_averaged_weights(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    play(
        settings(CLASSES, pictures, tmp_path / "run", "train.steps=2", "train.checkpoint_every=2", "ema.kind=constant")
    )
    checkpoint = tmp_path / "run" / "checkpoint-00000002"
    averages = load_file(checkpoint / "ema" / "unet.safetensors")
    trained = load_file(checkpoint / "model" / "denoiser.safetensors")
    assert not torch.equal(trained["unet.conv_in.weight"], averages["conv_in.weight"])
    weights = opened(CLASSES, pictures, checkpoint).module.unet.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in averages.items())


@pytest.mark.parametrize(("name", "tree", "more"), [("text", TEXT, ()), ("half", TEXT, ()), ("class", CLASSES, SCALED)])
def test_it_resumes_bit_for_bit_without_the_model_that_it_started_from(pictures, models, tmp_path, name, tree, more):
    shutil.copytree(models[name], tmp_path / "model")

    def config(run):
        every = ("train.steps=2", "train.checkpoint_every=1")
        return settings(tree, pictures, tmp_path / run, f"init={tmp_path / 'model'}", *every, *more)

    whole = play(config("whole"))
    part = play(config("run"), until=1)
    shutil.rmtree(tmp_path / "model")
    rest = play(config("run"), "latest")
    assert part.lines + rest.lines == whole.lines
    assert rest.weights == whole.weights
    assert dtypes_of(export(tmp_path / "run", out=tmp_path / "exported")) == {torch.float32}
    assert whole.weights["denoiser"] != play_nothing(config("none"), models[name])


def test_a_resumed_run_must_name_the_init_that_it_began_with(pictures, models, tmp_path):
    """Another one would never be read, but the run's config.yaml would name it."""

    def config(init):
        return settings(
            CLASSES, pictures, tmp_path / "run", f"init={init}", "train.steps=2", "train.checkpoint_every=1"
        )

    play(config(models["class"]), until=1)
    before = (tmp_path / "run" / "config.yaml").read_text()
    for other in (tmp_path / "elsewhere", models["text"]):
        with pytest.raises(UserError, match=r"cannot resume \S+: init differs from the config it was trained with$"):
            play(config(other), "latest")
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def test_the_model_that_a_run_started_from_is_not_kept_while_it_trains(pictures, models, monkeypatch, tmp_path):
    opened_networks, alive = [], []

    def open_start(*args):
        start = training.find_method("latent").open_start(*args)
        opened_networks.append(weakref.ref(start.unet))
        return start

    def train(method, *rest):
        gc.collect()
        alive.extend(network() is not None for network in opened_networks)
        raise UserError("enough")

    monkeypatch.setattr(training, "open_start", open_start)
    monkeypatch.setattr(training, "_train", train)
    reset()
    with pytest.raises(UserError, match="enough"):
        training.train(settings(TEXT, pictures, tmp_path / "run", f"init={models['text']}"))
    assert alive == [False]


def dtypes_of(model: Path) -> set[torch.dtype]:
    """The dtypes of all weights in a saved model."""
    return {value.dtype for path in model.rglob("*.safetensors") for value in load_file(path).values()}


def play_nothing(config, model) -> str:
    """The weights that the run begins with."""
    method = open_method(config.model_copy(update={"init": str(model)}))
    assert isinstance(method.modules["denoiser"], nn.Module)
    return digest(method.modules["denoiser"].state_dict())
