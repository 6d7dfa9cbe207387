"""A latent model with the guidance scale as input: its loss, its start from a trained model, and its sampling."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ldm_kit.config import UserError
from ldm_kit.diffusion import rng
from ldm_kit.methods.inputs import noise_batch
from ldm_kit.methods.latent import Latent, LatentRun
from ldm_kit.methods.latent_network import GuidedTraining, draw_scales
from ldm_kit.methods.train import open_method
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.nets.unet import UNet2DConditionModel
from tests.training.helpers import CLASSES, STAGE_2, TEXT, picture_folder, play, settings

SCALED = ("guidance.max_scale=6", "guidance.width=16", "sample.guidance_scale=2")
CALM = ("unet.dropout=0", "condition_dropout=0.3")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("pictures") / "set")


def opened(pictures, *overrides, tree=CLASSES) -> Latent:
    return open_method(settings(tree, pictures, pictures.parent / "run", *overrides))  # type: ignore[return-value]


def randomise(method: Latent) -> Latent:
    """Give the weights of the scale values, as training would."""
    unet: UNet2DConditionModel = method.module.unet  # type: ignore[assignment]
    nn.init.normal_(unet.time_embedding.cond_proj.weight, generator=torch.Generator().manual_seed(3))
    return method


@pytest.fixture(scope="module")
def method(pictures):
    return randomise(opened(pictures, *SCALED, *CALM))


def batch_of(method: Latent):
    return method.batches.__getitems__([(i, i) for i in range(8)])


def loss_of(method: Latent) -> torch.Tensor:
    ((_, loss, _),) = method.losses(batch_of(method), 0)
    return loss


@pytest.mark.parametrize(
    ("tree", "overrides", "said"),
    [
        (STAGE_2, (), "expected a condition, and a condition_dropout above 0"),
        (CLASSES, ("condition_dropout=0",), "expected a condition, and a condition_dropout above 0"),
        (CLASSES, ("variance=learned_range", "prediction_type=eps"), "loss is hybrid; expected simple"),
        (CLASSES, ("guidance.max_scale=1",), "max_scale"),
        (CLASSES, ("guidance.target=base",), "guidance.base names no trained model"),
        (CLASSES, ("guidance.interval=[0.5, 0.2]",), "LOW < HIGH"),
        (CLASSES, ("guidance.width=15",), "width"),
        (CLASSES, ("sample.guidance_scale=7",), "sample.guidance_scale is 7, .* scales of 1 to 6"),
        (CLASSES, ("sample.guidance_scale=0.5",), "sample.guidance_scale is 0.5"),
        (CLASSES, ("sample.guidance_rescale=0.5",), "sample.guidance_rescale is for classifier-free guidance"),
        (CLASSES, ("guidance.interval=[0.2, 0.8]", "sample.guidance_interval=[0.1, 0.8]"), "between 0.2 and 0.8"),
    ],
    ids=str,
)
def test_settings_that_contradict_guidance_are_refused_in_a_sentence(tree, overrides, said):
    with pytest.raises(UserError, match=said) as refused:
        settings(tree, "pictures", "run", *SCALED, *overrides)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_a_network_without_tokens_is_refused_before_training(pictures):
    with pytest.raises(UserError, match="a U-Net with tokens"):
        opened(pictures, *SCALED, "condition.form=vector", "condition.width=null")


def test_scales_are_drawn_by_position(method):
    guidance = method.config.guidance
    assert guidance is not None
    position = torch.arange(4000)
    scales = draw_scales(guidance, 0, position)
    assert torch.equal(scales[7:9], draw_scales(guidance, 0, position[7:9]))
    logs = scales.log() / torch.log(torch.tensor(6.0))
    assert 0 <= logs.min() < 0.01 < 0.99 < logs.max() < 1
    assert abs(logs.mean() - 0.5) < 0.02
    assert not torch.equal(scales, draw_scales(guidance, 1, position))


@torch.no_grad()
def test_the_loss_is_the_squared_error_of_the_guided_target(method):
    batch, seed = batch_of(method), method.config.seed
    position = batch["position"]
    t, _ = method.times.draw(position)
    dropped = rng.uniform(seed, "drop", position) < 0.3
    labels = torch.where(dropped, 3, batch["inputs"]["labels"])
    x_0 = batch["mean"] + torch.exp(batch["logvar"] / 2) * rng.normal(seed, "posterior", position, (3, 16, 16))
    eps = rng.normal(seed, "noise", position, (3, 16, 16))
    a, s = (c.float().view(-1, 1, 1, 1) for c in method.schedule.alpha_sigma(t))
    x_t, v = a * x_0 + s * eps, a * eps - s * x_0
    w = draw_scales(method.config.guidance, seed, position)  # type: ignore[arg-type]
    out, null = (method.module(x_t, t, {"labels": label}, w) for label in (labels, torch.full_like(labels, 3)))
    share = (1 - 1 / w).float().view(-1, 1, 1, 1)
    expected = (out - (v + share * (out - null))).square().mean()
    torch.testing.assert_close(loss_of(method), expected)
    assert abs((out - v).square().mean() / expected - 1) > 1e-5, "unguided would be the same"


def test_the_gradient_is_that_against_a_constant_target(method):
    batch = batch_of(method)
    scale = torch.full((8,), 3.0)
    guided = GuidedTraining(method.module, method.module, method.null, scale, (0.0, 1.0), 50)
    x, t = batch["mean"], torch.full((8,), 20)
    with torch.no_grad():
        out, null = (method.module(x, t, inputs, scale) for inputs in (batch["inputs"], method.null))
        target = 2 / 3 * (out - null)
    weight = method.module.unet.conv_in.weight
    (one,) = torch.autograd.grad(guided(x, t, batch["inputs"]).square().mean(), weight)
    (other,) = torch.autograd.grad((method.module(x, t, batch["inputs"], scale) - target).square().mean(), weight)
    torch.testing.assert_close(one, other)


def test_training_finds_guidance_at_the_scale():
    """A table of outputs under classes 0 and 1 and under none (2), where v* is 1, -1 and, over both, 0.5."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.outputs = nn.Parameter(torch.zeros(3))

        def forward(self, x, t, inputs, scale):
            return self.outputs[inputs["label"].expand(len(x))][:, None]

    table, scale, t = Table(), torch.full((8,), 4.0), torch.zeros(8)
    network = GuidedTraining(table, table, {"label": torch.tensor([2])}, scale, (0.0, 1.0), 50)
    labels, target = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2]), torch.tensor([1.0, 1, 1, -1, 1, 1, 1, -1])[:, None]
    for _ in range(600):
        (network(target, t, {"label": labels}) - target).square().sum().backward()
        with torch.no_grad():
            table.outputs -= 0.1 * table.outputs.grad
            table.outputs.grad = None
    expected = [0.5 + 4 * 0.5, 0.5 + 4 * -1.5, 0.5]
    torch.testing.assert_close(table.outputs.detach(), torch.tensor(expected), rtol=1e-3, atol=1e-3)


def steps_of(method: Latent, scale: torch.Tensor | None, monkeypatch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradients of a step in training mode, with dropout from a fixed seed."""
    if scale is not None:
        monkeypatch.setattr("ldm_kit.methods.latent.draw_scales", lambda *_: scale)
    torch.manual_seed(5)
    method.module.train().zero_grad()
    loss = loss_of(method)
    loss.backward()
    return loss.detach(), [p.grad for n, p in method.module.named_parameters() if "cond_proj" not in n]  # type: ignore[misc]


@pytest.mark.parametrize("how", ["scale 1", "outside the interval"])
def test_scale_1_is_the_plain_loss_bit_for_bit(pictures, monkeypatch, how):
    """Dropout included: the evaluation under the null condition draws no random numbers."""
    interval = () if how == "scale 1" else ("guidance.interval=[0.99, 1]",)  # the last of 50 times is 0.98
    plain, guided = opened(pictures), opened(pictures, *SCALED, *interval)
    guided.module.load_state_dict(plain.module.state_dict(), strict=False)
    expected, gradients = steps_of(plain, None, monkeypatch)
    drawn = torch.get_rng_state()
    loss, others = steps_of(guided, torch.ones(8) if how == "scale 1" else None, monkeypatch)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(loss, expected)
    assert all(torch.equal(one, other) for one, other in zip(gradients, others, strict=True))
    if how == "scale 1":
        assert not torch.equal(steps_of(guided, torch.full((8,), 3.0), monkeypatch)[0], expected)


def test_every_weight_learns_under_autocast(method):
    """Autocast keeps casts of weights; those made without gradients would cut the weights off."""
    method.module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(method)
    loss.backward()
    assert [name for name, p in method.module.named_parameters() if p.grad is None] == []
    assert method.module.unet.conv_in.weight.grad.abs().sum() > 0


def test_the_held_out_loss_is_that_without_guidance(pictures):
    plain, guided = (opened(pictures, *more, *CALM, "data.heldout=0.3") for more in ((), SCALED))
    guided.module.load_state_dict(plain.module.state_dict(), strict=False)
    assert plain.heldout_loss() == guided.heldout_loss()
    plain_after = randomise(guided).heldout_loss()
    assert plain_after != plain.heldout_loss()


@pytest.fixture(scope="module")
def base(pictures, tmp_path_factory):
    """A saved model without the input, and its method."""
    method, folder = opened(pictures), tmp_path_factory.mktemp("base") / "model"
    folder.mkdir()
    method.save_model(folder)
    return method, folder


@torch.no_grad()
def test_a_start_from_a_trained_model_computes_what_it_does_at_any_scale(pictures, base):
    trained, folder = base
    method = opened(pictures, *SCALED, f"guidance.base={folder}")
    batch, t = batch_of(method), torch.arange(8) * 6
    expected = trained.module.eval()(batch["mean"], t, batch["inputs"])
    for scale in (None, torch.full((8,), 2.0), torch.linspace(1, 6, 8)):
        assert torch.equal(method.module.eval()(batch["mean"], t, batch["inputs"], scale), expected)
    assert (
        method.dependencies["guidance.base"]
        == opened(pictures, *SCALED, f"guidance.base={folder}").dependencies["guidance.base"]
    )


@pytest.mark.parametrize(
    ("tree", "overrides", "said"),
    [
        (CLASSES, ("unet.widths=[8, 24]",), "does not fit this run's unet: .* expected"),
        (CLASSES, ("prediction_type=eps",), "predicts v with variance small, but this run's network eps"),
        (CLASSES, ("schedule.num_train_timesteps=40",), "was trained under the noise schedule"),
        (CLASSES, ("condition.width=8",), "does not fit this run's unet"),
        (TEXT, (), "other tokens, classes or another text encoder"),
    ],
    ids=str,
)
def test_a_start_from_another_kind_of_model_is_refused_in_a_sentence(pictures, base, tree, overrides, said):
    with pytest.raises(UserError, match=said) as refused:
        opened(pictures, *SCALED, f"guidance.base={base[1]}", *overrides, tree=tree)
    assert "\n" not in str(refused.value)


def test_a_start_from_nothing_is_refused(pictures, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        opened(pictures, *SCALED, f"guidance.base={tmp_path / 'nowhere'}")


@torch.no_grad()
@pytest.mark.parametrize("prediction_type", ["v", "eps"])
def test_the_target_is_the_guided_output_of_the_frozen_base(pictures, tmp_path, prediction_type):
    """In and outside the interval; for dropped conditions it is the null output at every scale. Errors are over w^2."""
    kind = f"prediction_type={prediction_type}"
    trained, folder = opened(pictures, kind), tmp_path / "model"
    folder.mkdir()
    trained.save_model(folder)
    distilled = ("guidance.target=base", "guidance.interval=[0.2, 0.7]", f"guidance.base={folder}", kind)
    method = randomise(opened(pictures, *SCALED, *distilled, "unet.dropout=0", "condition_dropout=0.5"))
    batch, seed = batch_of(method), method.config.seed
    position = batch["position"]
    t, _ = method.times.draw(position)
    labels = torch.where(rng.uniform(seed, "drop", position) < 0.5, 3, batch["inputs"]["labels"])
    assert 0 < (labels == 3).sum() < 8
    x_t = noise_batch(batch, t, seed, method.schedule).x_t
    w = draw_scales(method.config.guidance, seed, position)  # type: ignore[arg-type]
    inside = ((t / 50 >= 0.2) & (t / 50 <= 0.7)).float()
    assert 0 < inside.sum() < 8
    teacher = trained.module.eval()
    given, null = (teacher(x_t, t, {"labels": label}) for label in (labels, torch.full_like(labels, 3)))
    target = null + (1 + inside * (w - 1)).float().view(-1, 1, 1, 1) * (given - null)
    out = method.module(x_t, t, {"labels": labels}, w)
    expected = ((out - target) / w.float().view(-1, 1, 1, 1)).square().mean()
    torch.testing.assert_close(loss_of(method), expected, rtol=1e-4, atol=0, check_dtype=False)


def test_the_teacher_is_not_trained_saved_or_averaged(pictures, base, tmp_path):
    before = {name: value.clone() for name, value in base[0].module.state_dict().items()}
    method = opened(pictures, *SCALED, "guidance.target=base", f"guidance.base={base[1]}")
    assert method.teacher is not None
    loss_of(method).backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    method.module.unet.conv_in.weight.data.zero_()
    assert all(torch.equal(value, before[name]) for name, value in method.teacher.state_dict().items())
    assert method.state() == {}
    folder = tmp_path / "model"
    folder.mkdir()
    method.save_model(folder)
    assert Pipeline.load(folder).takes_scale


def test_a_base_that_cannot_be_guided_is_refused_as_teacher(pictures, base, tmp_path):
    def saved(name: str, *overrides: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        opened(pictures, *overrides).save_model(folder)
        return f"guidance.base={folder}"

    for where, said in (
        (saved("scaled", *SCALED), "takes the guidance scale as input; expected a model with classifier-free guidance"),
        (saved("no_null", "condition_dropout=0", "sample.guidance_scale=1"), "was never trained"),
    ):
        with pytest.raises(UserError, match=said) as refused:
            opened(pictures, *SCALED, "guidance.target=base", where)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("target", ["model", "base"])
def test_it_resumes_bit_for_bit(pictures, base, tmp_path, target):
    def config(run: str) -> LatentRun:
        more = (f"guidance.base={base[1]}", f"guidance.target={target}", "train.steps=2", "train.checkpoint_every=1")
        return settings(CLASSES, pictures, tmp_path / run, *SCALED, *more)  # type: ignore[return-value]

    whole = play(config("whole"))
    part, rest = play(config("run"), until=1), play(config("run"), "latest")
    assert part.lines + rest.lines == whole.lines
    assert rest.weights == whole.weights


class Counted:
    """A forward hook that counts evaluations and their samples."""

    def __init__(self) -> None:
        self.samples: list[int] = []

    def __call__(self, module, args, output) -> None:
        self.samples.append(len(args[0]))


def test_sampling_evaluates_once_a_step_at_the_scale(method, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    method.save_model(folder)
    pipeline, count = Pipeline.load(folder), Counted()
    assert pipeline.takes_scale
    assert pipeline.saved.guidance_range == (6.0, (0.0, 1.0), 1.0)
    handle = pipeline.unet.register_forward_hook(count)
    pictures = {
        scale: next(
            pipeline.generate(["a", "b"], [1, 2], SamplingOptions(steps=4, solver="ddim", guidance_scale=scale))
        )
        for scale in (1.0, 2.0, 6.0)
    }
    handle.remove()
    assert count.samples == [2] * 12
    assert not torch.equal(pictures[1.0], pictures[6.0])
    assert torch.equal(
        pictures[2.0], next(pipeline.generate(["a", "b"], [1, 2], SamplingOptions(steps=4, solver="ddim")))
    )


@torch.no_grad()
def test_outside_the_interval_of_sampling_the_scale_is_1(method):
    pipeline = method.pipeline
    options = SamplingOptions(guidance_scale=6.0, guidance_interval=(0.2, 0.8), clip="none").resolve(pipeline)
    x, t = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 25, 45])
    condition = pipeline.condition(["a"] * 3)
    x_0 = pipeline.guided_denoiser(["a"] * 3, options)(x, t, condition).x_0
    full = SamplingOptions(guidance_scale=6.0, clip="none").resolve(pipeline)
    for denoiser, rows in ((pipeline.denoiser(), [0, 2]), (pipeline.denoiser(full), [1])):
        torch.testing.assert_close(x_0[rows], denoiser(x, t, condition).x_0[rows])
    assert (pipeline.denoiser(full)(x, t, condition).x_0 - pipeline.denoiser()(x, t, condition).x_0).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"guidance_scale": 6.5}, "--guidance_scale is 6.5, but this model's network takes scales of 1 to 6"),
        ({"guidance_scale": 0.5}, "--guidance_scale is 0.5"),
        ({"negative_prompt": "b"}, "--negative_prompt is for classifier-free guidance"),
        ({"guidance_rescale": 0.5}, "--guidance_rescale is for classifier-free guidance"),
    ],
)
def test_what_the_input_cannot_do_is_refused_in_a_sentence(method, options, said):
    with pytest.raises(UserError, match=said) as refused:
        SamplingOptions(**options).resolve(method.pipeline)
    assert "\n" not in str(refused.value)


def test_an_interval_beyond_that_of_the_training_is_refused(method):
    narrow = method.config.guidance.model_copy(update={"interval": (0.2, 0.8)})
    pipeline = replace(method.pipeline, saved=narrow.saved)
    with pytest.raises(UserError, match=r"--guidance_interval is 0\.1 0\.5, but .* between 0\.2 and 0\.8"):
        SamplingOptions(guidance_scale=2.0, guidance_interval=(0.1, 0.5)).resolve(pipeline)
    taken = SamplingOptions(guidance_scale=2.0, guidance_interval=(0.3, 0.5)).resolve(pipeline)
    assert taken.guidance_interval == (0.3, 0.5)
