import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from conditioning import build as build_conditioner
from conditioning.bpe import save_tokenizer, train_tokenizer
from conditioning.pretrained import PretrainedTextConfig
from conditioning.semantic import condition_of
from ldm_kit.config import UserError
from ldm_kit.data.images import to_bytes, to_unit
from ldm_kit.data.latents import weights_digest
from ldm_kit.diffusion import rng
from ldm_kit.diffusion.denoiser import Clipped
from ldm_kit.diffusion.pdae import (
    NetworkEstimator,
    ShiftedDenoiser,
    pdae_coefficient,
    pdae_decode,
    pdae_encode,
    pdae_grid,
    pdae_weight,
)
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.diffusion.timesteps import sample_timesteps
from ldm_kit.models import base_model
from ldm_kit.models.base_model import BaseModel, reopen_base
from ldm_kit.models.decoders import TrajectoryTarget
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.apply import apply_unet
from ldm_kit.nets.unet import UNetConfig, build_unet
from tests.conditioning.test_pretrained import clip_folder
from tests.methods.semantic_toys import LINEAR, PDAE, SIDE, STEPS, base, checked, opened, swapped, trained, two_factors
from tests.nets.originals import perturbed
from tests.training.helpers import play, tensors_of

KINDS = ("plain", "classes", "learned", "latents")
WEIGHTS = "diffusion_pytorch_model.safetensors"


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return two_factors(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {kind: base(root / kind, kind) for kind in KINDS}


def method_of(pictures, tmp_path, folder, **more):
    return opened(checked(PDAE, pictures, tmp_path / "run", base=str(folder), **more))


def finished(method, run):
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text('{"step": 8, "semantic_loss": 1.0}')
    method.finish(run)
    return run / "model"


def test_a_run_depends_on_its_base(pictures, bases, tmp_path):
    plain, learned = (method_of(pictures, tmp_path, bases[kind]).dependencies for kind in ("plain", "learned"))
    assert plain == dict.fromkeys(("base", "base_revision"), BaseModel.open(bases["plain"]).sha256)
    assert plain != learned


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_keeps_its_bits_and_its_rest(pictures, bases, tmp_path, kind):
    method = method_of(pictures, tmp_path, bases[kind])
    frozen = method.base.unet
    before = weights_digest(frozen)
    method.module.train()
    trained(method, 3)
    assert weights_digest(frozen) == before
    assert not any(module.training for module in frozen.modules())
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    (module,) = method.modules.values()
    assert not any(value.data_ptr() == p.data_ptr() for p in frozen.parameters() for value in module.parameters())
    assert set(method.ema_modules) == {"encoder", "shift"}
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in method.module.encoder.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_weighted_gap(pictures, bases, tmp_path, kind):
    method = method_of(pictures, tmp_path, bases[kind], gamma=0.3)
    perturbed(method.module)
    batch = method.batches.__getitems__([(i, i) for i in range(16)])
    ((player, loss, logs),) = method.losses(batch, 0)
    position, shape = batch["position"], batch["mean"].shape[1:]
    t, table = sample_timesteps(method.config.timestep_sampling, 0, position, 16, STEPS), method.schedule
    eps = rng.normal(0, "noise", position, shape)
    x_0 = batch["mean"] + (batch["logvar"] / 2).exp() * rng.normal(0, "posterior", position, shape)
    x_t = table.add_noise(x_0, eps, t).float()
    with torch.no_grad():
        z = method.module.encoder(batch["picture"])
        out, gap = method.module.shift(x_t, t, z, method.base.null)
        plain = apply_unet(method.base.unet, x_t, t, method.base.null)
    assert torch.equal(out, plain)
    c = pdae_coefficient(t, table).view(-1, 1, 1, 1)
    errors = (out[:, : shape[0]] + c * gap - eps).square().flatten(1).mean(1)
    assert loss.item() == pytest.approx((errors * pdae_weight(t, table, 0.3)).mean().item(), rel=1e-4)
    assert player == "semantic"
    assert logs["error"].item() == pytest.approx(errors.mean().item(), rel=1e-4)
    assert gap.shape[1] == shape[0]


def test_it_learns_what_the_frozen_model_does_not_know(pictures, bases, tmp_path):
    method = method_of(pictures, tmp_path, bases["plain"], timestep_sampling={"density": "logit_normal", "mean": 1.0})
    frozen = method.heldout_loss()  # the gradient starts at zero
    assert swapped(method)[0] == swapped(method)[1]
    trained(method, 300, 3e-3)
    assert method.heldout_loss() < 0.5 * frozen
    own, others = (sum(errors) for errors in zip(*(swapped(method, seed) for seed in range(8)), strict=True))
    assert own < 0.995 * others  # over one draw of the noise the ratio varies by 1.5 %


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_holds_the_new_parts_and_a_reference(pictures, bases, tmp_path, kind):
    method = method_of(pictures, tmp_path, bases[kind])
    perturbed(method.module)
    folder = finished(method, tmp_path / "run")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    nets = {f"{part}/{name}" for part in ("encoder", "shift") for name in ("config.json", WEIGHTS)}
    assert files - {"manifest.json"} == nets | {"model_index.json", "sampling.json", "statistics.safetensors"}
    model, ours = SemanticModel.load(tmp_path / "run"), method.model()
    shown = method.data.train.pictures(range(3))
    z = ours.encode(shown)
    assert torch.equal(model.encode(shown), z)
    assert torch.equal(model.invert(shown, z, 5), ours.invert(shown, z, 5))
    assert torch.equal(model.decode(z, None, 5), ours.decode(z, None, 5))
    assert (model.resolution, model.channels, model.z_width) == (8, 3, 8)
    model.save(tmp_path / "elsewhere" / "deeper")
    again = SemanticModel.load(tmp_path / "elsewhere" / "deeper")
    assert torch.equal(again.decode(z, None, 5), ours.decode(z, None, 5))


def test_it_walks_pdaes_grid_clipped_in_pixels(pictures, bases, tmp_path):
    method = method_of(pictures, tmp_path, bases["plain"])
    perturbed(method.module)
    model, shown = method.model(), method.data.train.pictures(range(2))
    z, table = model.encode(shown), method.schedule

    def network(x, t, cond):
        return method.module.shift(x, t, cond.vector, method.base.null)

    denoiser = Clipped(ShiftedDenoiser(NetworkEstimator(network, table, "eps"), table))
    grid = pdae_grid(STEPS, 8)
    *_, up = pdae_encode(denoiser, to_unit(shown), grid, condition_of(z))
    *_, down = pdae_decode(denoiser, model.noise([0, 1]), grid, condition_of(z))
    assert torch.equal(model.invert(shown, z, 8), up.x)
    assert torch.equal(model.decode(z, None, 8), to_bytes(down.x))
    with pytest.raises(UserError, match="steps: cannot walk 200 training times in 200"):
        model.decode(z, None, 200)


def test_stop_leaves_the_last_steps_to_the_frozen_model(pictures, bases, tmp_path):
    method = method_of(pictures, tmp_path, bases["classes"])
    perturbed(method.module)
    model = method.model()
    z = model.encode(method.data.train.pictures(range(2)))
    pictures = {stop: model.decode(z, None, 10, stop=stop) for stop in (0.0, 0.3, 1.0)}
    assert not torch.equal(pictures[0.0], pictures[0.3])
    assert torch.equal(pictures[1.0], model.decode(-z, None, 10, stop=1.0))
    assert not torch.equal(pictures[0.3], model.decode(-z, None, 10, stop=0.3))


def test_trajectories_mix_the_gradients_of_two_codes_at_every_step(pictures, bases, tmp_path):
    method = method_of(pictures, tmp_path, bases["plain"])
    perturbed(method.module)
    model, table = method.model(), method.schedule
    one, two = model.encode(method.data.train.pictures([0, 1, 2])), model.encode(method.data.train.pictures([3, 4, 6]))
    weight, null = torch.tensor([0.0, 0.4, 1.0]), method.base.null

    def network(x, t, z):
        (out, first), (_, second) = method.module.shift(x, t, z, null), method.module.shift(x, t, two, null)
        return out, torch.lerp(first, second, weight.view(-1, 1, 1, 1))

    denoiser = Clipped(ShiftedDenoiser(NetworkEstimator(network, table, "eps"), table))
    with torch.no_grad():
        *_, down = pdae_decode(denoiser, model.noise([0, 1, 2]), pdae_grid(STEPS, 8), one)
    drawn = model.decode(one, None, 8, trajectory=TrajectoryTarget(two, weight))
    assert (drawn.int() - to_bytes(down.x).int()).abs().max() <= 1
    assert torch.equal(drawn[[0]], model.decode(one, None, 8)[[0]])
    assert (drawn[2].int() - model.decode(two, None, 8)[2].int()).abs().max() <= 1
    assert not torch.equal(drawn[1], model.decode(torch.lerp(one, two, weight[:, None]), None, 8)[1]), "codes, not G"
    batches = model.decode(one, None, 8, batch=2, trajectory=TrajectoryTarget(two, weight))
    assert (drawn.int() - batches.int()).abs().max() <= 1
    with pytest.raises(UserError, match="expected 3 codes of 8 numbers"):
        model.decode(one, None, 8, trajectory=TrajectoryTarget(two[:2], weight))


def test_a_changed_base_is_refused(pictures, bases, tmp_path):
    moved = shutil.copytree(bases["classes"], tmp_path / "base")
    folder = finished(method_of(pictures, tmp_path, moved), tmp_path / "run")
    SemanticModel.load(folder)
    for name in (f"unet/{WEIGHTS}", f"class_encoder/{WEIGHTS}"):
        weights = load_file(moved / name)
        first = sorted(weights)[0]
        save_file({**weights, first: weights[first] + 1e-5}, moved / name)
        with pytest.raises(UserError, match=r"is not the frozen model that .* was trained on: its weights") as refused:
            SemanticModel.load(folder)
        assert "\n" not in str(refused.value)
        save_file(weights, moved / name)
        SemanticModel.load(folder)
    path = moved / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("0.08", "0.07"))
    with pytest.raises(UserError, match="or its noise schedule have changed"):
        SemanticModel.load(folder)
    shutil.rmtree(moved)
    with pytest.raises(UserError, match="base, which is not there"):
        SemanticModel.load(folder)
    (folder / "manifest.json").unlink()
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "base": "somewhere"}))
    with pytest.raises(UserError, match="base is 'somewhere'; expected a path and a sha256"):
        SemanticModel.load(folder)


def test_a_base_is_known_by_its_table_however_that_is_written(bases, tmp_path):
    """And by the sha256 of releases 0.1 and 0.2, which was over the text of the schedule's config."""
    before = BaseModel.open(bases["plain"])
    copy = Path(shutil.copytree(bases["plain"], tmp_path / "copy"))
    path = next(copy.rglob("scheduler_config.json"))
    scheduler = json.loads(path.read_text())
    betas = torch.linspace(scheduler["beta_start"], scheduler["beta_end"], STEPS, dtype=torch.float64).tolist()
    path.write_text(json.dumps({**scheduler, "trained_betas": betas}))
    after = BaseModel.open(copy)
    assert before.schedule_config.kind != after.schedule_config.kind
    assert before.sha256 == after.sha256
    assert before.former_sha256[0] == after.former_sha256[0] == before.sha256, "without a text encoder"
    assert before.former_sha256[1] != after.former_sha256[1]
    for sha256 in before.former_sha256:
        assert reopen_base(tmp_path, {"path": str(bases["plain"]), "sha256": sha256}).sha256 == before.sha256
    with pytest.raises(UserError, match="is not the frozen model"):
        reopen_base(tmp_path, {"path": str(copy), "sha256": before.former_sha256[1]})


def test_a_base_on_another_text_encoder_is_another(tmp_path):
    """The frozen encoder is no part of the base's folder: it is changed, and a base of before is still opened."""
    clip_folder(tmp_path / "encoder", whole=False)
    conditioner = build_conditioner(PretrainedTextConfig(model=str(tmp_path / "encoder"), length=4))
    config = UNetConfig(widths=(16, 32), attention_levels=(False, True), heads=2, norm_num_groups=8, layers_per_block=1)
    unet = build_unet(config, sample_size=SIDE, channels=3, cross_width=conditioner.width)
    Pipeline(None, unet, conditioner, LINEAR, "eps").save(tmp_path / "base")
    before = BaseModel.open(tmp_path / "base")
    assert before.sha256 not in before.former_sha256
    save_tokenizer(train_tokenizer(["another set"] * 3, 516, 16), tmp_path / "encoder")
    after = BaseModel.open(tmp_path / "base")
    assert before.sha256 != after.sha256
    with pytest.raises(UserError, match="its condition"):
        reopen_base(tmp_path, {"path": "base", "sha256": before.sha256})
    assert reopen_base(tmp_path, {"path": "base", "sha256": before.former_sha256[0]}).sha256 == after.sha256


def test_the_former_sha256_does_not_see_a_new_field_of_the_config():
    class Wider(ScheduleConfig):
        shift: float | None = None

    text = (
        "{'kind': 'linear', 'steps': 200, 'start': None, 'end': 0.08, 'betas': None, 'scale_ends': False, "
        "'zero_terminal': False}"
    )
    assert base_model._config_text(Wider(**LINEAR.model_dump())) == text


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(bases, tmp_path, monkeypatch):
    """A cache of the Hub that holds the base of classes as a-person/a-model, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    place = tmp_path / "hub" / "models--a-person--a-model"
    shutil.copytree(bases["classes"], place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    return place


def test_a_base_on_the_hub_is_pinned_to_its_commit(pictures, bases, hub, tmp_path):
    method = method_of(pictures, tmp_path, "a-person/a-model")
    assert "a-person/a-model at 0123456789ab" in method.describe()
    perturbed(method.module)
    folder = finished(method, tmp_path / "run")
    base = json.loads((folder / "model_index.json").read_text())["base"]
    assert base == {"hub": "a-person/a-model", "revision": COMMIT, "sha256": BaseModel.open(bases["classes"]).sha256}
    (hub / "refs" / "main").write_text("f" * 40)  # the branch moves on; the model does not
    model = SemanticModel.load(folder)
    z = model.encode(method.data.train.pictures(range(2)))
    ours = method.model()
    assert torch.equal(model.decode(z, None, 5), ours.decode(z, None, 5))
    model.save(tmp_path / "deeper" / "again")
    assert json.loads((tmp_path / "deeper" / "again" / "model_index.json").read_text())["base"] == base
    weights = hub / "snapshots" / COMMIT / "unet" / WEIGHTS
    found = load_file(weights)
    save_file({name: value + 1e-5 for name, value in found.items()}, weights)
    with pytest.raises(UserError, match="a-person/a-model at 0123456789ab is not the frozen model"):
        SemanticModel.load(folder)
    weights.unlink()
    with pytest.raises(
        UserError, match=r"download a-person/a-model at revision 01.*, the frozen model: .* downloaded now"
    ):
        SemanticModel.load(folder)


def test_a_base_is_downloaded_as_data_alone(bases, hub, monkeypatch):
    asked = []

    def download(name, *, local_files_only, **wanted):
        if local_files_only:
            raise FileNotFoundError
        asked.append((name, wanted))
        return hub / "snapshots" / COMMIT

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = BaseModel.open("a-person/a-model", revision="v1")
    assert found.origin == ("a-person/a-model", COMMIT)
    ((name, wanted),) = asked
    assert (name, wanted["revision"], wanted["ignore_patterns"]) == ("a-person/a-model", "v1", None)
    files = ["model_index.json", "unet/config.json", f"unet/{WEIGHTS}", "scheduler/scheduler_config.json"]
    files += ["text_encoder/model.safetensors", "unet/diffusion_pytorch_model-00001-of-00002.safetensors"]
    others = ["pipeline.py", "unet/net.py", "unet/diffusion_pytorch_model.bin", "v1-5-pruned.safetensors", "a.ckpt"]
    others += ["safety_checker/model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"]
    patterns = wanted["allow_patterns"]
    assert [any(fnmatch(file, pattern) for pattern in patterns) for file in files] == [True] * len(files)
    assert not [file for file in others if any(fnmatch(file, pattern) for pattern in patterns)]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (
            {"hub": "../up", "revision": COMMIT, "sha256": "x"},
            "expected a path and a sha256, or the name of a model on",
        ),
        ({"hub": "a-person/a-model", "revision": "main", "sha256": "x"}, "expected a path and a sha256, or the name"),
    ],
)
def test_references_that_are_none(hub, reference, said, tmp_path):
    with pytest.raises(UserError, match=said):
        reopen_base(tmp_path, reference)


def test_bases_that_the_hub_has_not(hub, bases):
    with pytest.raises(UserError, match="download no-one/nothing, the frozen model: there is no such folder, and"):
        BaseModel.open("no-one/nothing")
    with pytest.raises(UserError, match="at revision v9"):
        BaseModel.open("a-person/a-model", revision="v9")
    with pytest.raises(UserError, match="is no model on the Hub, but a folder, which has no revision 'v9'"):
        BaseModel.open(bases["plain"], revision="v9")


def test_a_plain_diffusers_model_is_a_base(pictures, tmp_path):
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    shape = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    unet = UNet2DModel(**shape, **blocks)
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=STEPS)).save_pretrained(tmp_path / "theirs")
    method = method_of(pictures, tmp_path, tmp_path / "theirs")
    trained(method, 2)
    finished(method, tmp_path / "run")
    assert SemanticModel.load(tmp_path / "run").decoder.base.target == "eps"


def refused(pictures, tmp_path, folder, **more):
    with pytest.raises(UserError) as said:
        method_of(pictures, tmp_path, folder, **more)
    assert "\n" not in str(said.value)
    return str(said.value)


def test_what_cannot_be_a_base_is_refused_in_a_sentence(pictures, bases, tmp_path):
    assert "is no saved model" in refused(pictures, tmp_path, tmp_path / "nothing")
    method = method_of(pictures, tmp_path, bases["plain"])
    folder = finished(method, tmp_path / "run")
    assert "holds a semantic model" in refused(pictures, tmp_path, folder)
    other = two_factors(tmp_path / "set", 12)
    config = checked(PDAE, other, tmp_path / "x", base=str(bases["plain"]))
    data = {**config.data.model_dump(), "resolution": 16}
    with pytest.raises(UserError, match="samples pictures of 3x8x8, but those of data are of 3x16x16"):
        opened(checked({**PDAE, "data": data}, other, tmp_path / "x", base=str(bases["plain"])))
    assert "has 200 times" in refused(pictures, tmp_path, bases["plain"], sample={"encode_steps": 200})


@pytest.mark.parametrize("kind", ["zero", "flow"])
def test_schedules_without_a_formula_are_refused(tmp_path, kind):
    folder = base(tmp_path / "model")
    path = folder / "scheduler" / "scheduler_config.json"
    known = json.loads(path.read_text())
    if kind == "zero":
        known |= {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    else:
        del known["prediction_type"]
        index = json.loads((folder / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
        (folder / "model_index.json").write_text(json.dumps(index))
    path.write_text(json.dumps(known))
    with pytest.raises(
        UserError, match="cannot be a base: its schedule " + ("ends" if kind == "zero" else "is a flow")
    ):
        BaseModel.open(folder)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"autoencoder": "somewhere"}, "are those of the base"),
        ({"schedule": {"kind": "linear"}}, "are those of the base"),
        ({"base": ""}, "base"),
        ({"gamma": 2}, "gamma"),
    ],
)
def test_what_belongs_to_the_base_is_not_asked_for(more, said):
    with pytest.raises(UserError, match=said):
        checked(PDAE, "pictures", "run", **{"base": "x", **more})


def test_resumed_equals_uninterrupted(pictures, bases, tmp_path):
    def config(run, every):
        train = {"steps": 6, "batch_size": 8, "checkpoint_every": every}
        return checked(PDAE, pictures, tmp_path / run, base=str(bases["plain"]), train=train, flip=True)

    whole = play(config("whole", 100))
    part = play(config("part", 3), until=3)
    rest = play(config("part", 100), "latest")
    assert part.lines + rest.lines == whole.lines
    last = "checkpoint-00000006"
    assert tensors_of(tmp_path / "part" / last) == tensors_of(tmp_path / "whole" / last)
    assert "frozen" not in " ".join(tensors_of(tmp_path / "part" / last))
