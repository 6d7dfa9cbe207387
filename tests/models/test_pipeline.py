"""What sampling options mean to a model: the order of guidance and clipping, what is resolved, and who may guide."""

from dataclasses import replace

import pytest
import torch

from conditioning.base import Condition
from ldm_kit.config import UserError
from ldm_kit.diffusion.denoiser import times_like
from ldm_kit.diffusion.rng import initial_noise
from ldm_kit.models import pipeline as pipelines
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.nets.apply import apply_unet

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
NAMES, SEEDS, T = ["red", "blue"], [3, 4], 400


@pytest.fixture(scope="module")
def classes(world) -> Pipeline:
    """A class-conditional model of pixels."""
    return Pipeline.load(world.model("class_pixels") / "model")


@pytest.fixture(scope="module")
def judge(world) -> NoisyClassifier:
    """A noisy classifier of pixels."""
    return NoisyClassifier.load(world.model("pixel_classifier"))


@pytest.fixture(scope="module")
def latents(world) -> Pipeline:
    """An unconditional model of latents."""
    return Pipeline.load(world.model("plain") / "model")


@pytest.fixture(scope="module")
def learned(world) -> Pipeline:
    """An unconditional model of pixels that learned its variance."""
    return Pipeline.load(world.model("learned") / "model")


@pytest.fixture
def given(monkeypatch):
    """What `sample` is called with, in place of sampling."""
    calls = []

    def note(name, denoiser, noise, times, cond=None, **more):
        calls.append({"name": name, "denoiser": denoiser, "noise": noise, "times": times, "cond": cond, **more})
        return iter(())

    monkeypatch.setattr(pipelines, "sample", note)

    def ask(pipeline, prompts, options):
        assert list(pipeline.states(prompts, SEEDS[: len(prompts)], options.resolve(pipeline))) == []
        return calls[-1]

    return ask


def said(pipeline, x, t, prompts):
    """The plain network's x_0 and eps."""
    with torch.no_grad():
        return pipeline.denoiser()(x, t, pipeline.condition(prompts))


def far(pipeline):
    """x_t of whose x_0 a good part lies outside [-1, 1]."""
    return 2 * initial_noise(SEEDS, pipeline.latent_shape), times_like(torch.zeros(2), T)


def slope(judge, x, t, labels):
    x = x.clone().requires_grad_()
    chosen = judge.log_probs(x, t)[range(len(x)), labels].sum()
    return torch.autograd.grad(chosen, x)[0]


@pytest.mark.parametrize("clip", ["published", "auto"])
def test_guidance_then_clipping_then_the_classifier(classes, judge, given, clip):
    """Algorithm 2 with all else: x_0 is clipped after guidance, eps follows from it, and the classifier shifts that.

    By default what was shifted is clipped again, and eps follows once more.
    """
    options = SamplingOptions(solver="ddim", guidance_scale=4.0, classifier_scale=30.0, clip=clip)
    call = given(classes.with_guides(judge), NAMES, options)
    (x, t), a_s = far(classes), classes.schedule.alpha_sigma(torch.tensor(T))
    a, s = (float(c) for c in a_s)
    yes, no = said(classes, x, t, NAMES), said(classes, x, t, ["", ""])
    guided = no.x_0 + 4 * (yes.x_0 - no.x_0)
    assert (guided.abs() > 1).float().mean() > 0.05, "nothing would be clipped"
    clipped = guided.clamp(-1, 1)
    labels = [judge.classes.index(name) for name in NAMES]
    eps = (x - a * clipped) / s - s * 30 * slope(judge, x, t, labels)
    with torch.no_grad():
        found = call["denoiser"](x, t, call["cond"])
    x_0 = (x - s * eps) / a
    assert x_0.abs().max() > 1.01, "nothing would be clipped again"
    x_0 = x_0 if clip == "published" else x_0.clamp(-1, 1)
    assert torch.allclose(found.x_0, x_0, atol=1e-4)
    assert torch.allclose(found.eps, (x - a * x_0) / s, atol=1e-4)
    assert (found.x_0 - clipped).abs().max() > 0.01, "the classifier must matter"
    assert call["gradient"] is None


def test_algorithm_1_leaves_eps_alone(classes, judge, given):
    options = SamplingOptions(solver="ddpm", guidance_scale=1.0, classifier_scale=2.0, clip="none")
    call = given(classes.with_guides(judge), NAMES, options)
    x, t = far(classes)
    with torch.no_grad():
        assert torch.equal(call["denoiser"](x, t, call["cond"]).eps, said(classes, x, t, NAMES).eps)
    labels = [judge.classes.index(name) for name in NAMES]
    assert torch.allclose(call["gradient"](x, t), 2 * slope(judge, x, t, labels), atol=1e-6)


@pytest.mark.parametrize(("solver", "algorithm", "found"), [("ddpm", None, 1), ("ddpm", 2, 2), ("ddim", None, 2)])
def test_which_algorithm(classes, judge, given, solver, algorithm, found):
    steered = classes.with_guides(judge)
    options = SamplingOptions(solver=solver, algorithm=algorithm)
    assert options.resolve(steered).algorithm == found
    assert (given(steered, NAMES, options)["gradient"] is not None) == (found == 1)


def test_no_scale_is_no_classifier(classes, judge, given):
    x, t = far(classes)
    call = given(
        classes.with_guides(judge), NAMES, SamplingOptions(classifier_scale=0.0, guidance_scale=1.0, clip="none")
    )
    assert call["gradient"] is None
    with torch.no_grad():
        assert torch.equal(call["denoiser"](x, t, call["cond"]).eps, said(classes, x, t, NAMES).eps)


def test_autoguidance_asks_the_guide_model_its_own_condition(classes, given):
    """D = worse + scale (better - worse), where the worse model looks its class up in its own table."""
    worse = replace(classes, conditioner=moved(classes.conditioner))
    call = given(
        classes.with_guides(autoguidance_model=worse),
        NAMES,
        SamplingOptions(guidance_scale=1.0, autoguidance_scale=3.0, clip="none"),
    )
    x, t = far(classes)
    better, bad = said(classes, x, t, NAMES), said(worse, x, t, NAMES)
    assert (better.eps - bad.eps).abs().max() > 1e-3
    with torch.no_grad():
        found = call["denoiser"](x, t, call["cond"])
    assert torch.allclose(found.eps, bad.eps + 3 * (better.eps - bad.eps), atol=1e-4)


def moved(conditioner):
    """A conditioner with another table."""
    import copy

    other = copy.deepcopy(conditioner)
    other.class_encoder.embedding.weight.data.mul_(-2)
    return other


@pytest.mark.parametrize("clip", ["auto", "none", "clip", "dynamic", "published"])
def test_clipping(classes, given, clip):
    x, t = far(classes)
    call = given(classes, NAMES, SamplingOptions(guidance_scale=1.0, clip=clip))
    with torch.no_grad():
        found = call["denoiser"](x, t, call["cond"])
    plain = said(classes, x, t, NAMES)
    assert plain.x_0.abs().max() > 1.05
    a, s = (float(c) for c in classes.schedule.alpha_sigma(torch.tensor(T)))
    assert torch.allclose(a * found.x_0 + s * found.eps, x, atol=1e-4), "both views say the same"
    match clip:
        case "none":
            assert torch.equal(found.x_0, plain.x_0)
        case "dynamic":
            assert found.x_0.abs().max() <= 1 + 1e-6
            assert not torch.allclose(found.x_0, plain.x_0.clamp(-1, 1), atol=1e-3)
        case _:
            assert torch.equal(found.x_0, plain.x_0.clamp(-1, 1))


def test_latents_are_not_clipped(latents, given):
    assert SamplingOptions().resolve(latents).clip == "none"
    x, t = far(latents)
    call = given(latents, ["", ""], SamplingOptions())
    with torch.no_grad():
        assert torch.equal(call["denoiser"](x, t, call["cond"]).x_0, said(latents, x, t, ["", ""]).x_0)


def test_interval_and_rescale_reach_guidance(classes, given):
    x, t = far(classes)
    base = SamplingOptions(guidance_scale=9.0, clip="none")
    changes = ({}, {"guidance_interval": (0.0, 0.3)}, {"guidance_interval": (0.3, 0.5)}, {"guidance_rescale": 0.7})
    views = [base.model_copy(update=change) for change in changes]
    with torch.no_grad():
        eps = [given(classes, NAMES, options)["denoiser"](x, t, classes.condition(NAMES)).eps for options in views]
    full, outside, inside, rescaled = eps
    assert torch.equal(outside, said(classes, x, t, NAMES).eps)
    assert torch.equal(inside, full)
    assert (full - outside).abs().max() > 1e-2
    assert (full - rescaled).abs().max() > 1e-3


def test_a_spacing_may_bring_its_own_steps(classes, given):
    call = given(classes, NAMES, SamplingOptions(spacing="ddim10", steps=77, eta=0.5, solver="ddim"))
    assert call["times"] == [*range(900, -1, -100), -1]
    assert call["eta"] == 0.5
    assert SamplingOptions(spacing="10,5").resolve(classes).steps == 15
    assert given(classes, NAMES, SamplingOptions(steps=4))["times"] == [999, 749, 499, 249, -1]


def test_classes_of_a_classifier(world, classes, judge):
    pixels = Pipeline.load(world.model("pixels") / "model").with_guides(judge)
    index = judge.classes.index
    assert pixels.labels(["blue", "red"], SamplingOptions()).tolist() == [index("blue"), index("red")]
    assert pixels.labels(["", ""], SamplingOptions(classifier_class="green")).tolist() == [index("green")] * 2
    by_number = classes.with_guides(judge).labels([0, 2], SamplingOptions())
    assert by_number.tolist() == [index(classes.conditioner.classes[0]), index(classes.conditioner.classes[2])]
    with pytest.raises(UserError, match="unknown class 'rad': the nearest of the classifier's 3 are red"):
        pixels.labels(["rad"], SamplingOptions())


def test_a_text_prompt_is_no_class(world):
    text = Pipeline.load(world.model("text") / "model")
    text = text.with_guides(NoisyClassifier.load(world.model("classifier")))
    with pytest.raises(UserError, match="give --classifier_class"):
        text.labels(["red"], SamplingOptions())
    assert len(text.labels(["a", "b"], SamplingOptions(classifier_class="red"))) == 2


def test_a_guide_has_to_fit_the_model(classes, judge):
    """The same schedule, said in two ways, is the same; another last beta is another."""
    alike = classes.schedule_config.model_copy(update={"start": 0.00085, "end": 0.012})
    assert classes.with_guides(replace(judge, schedule_config=alike)).classifier is not None
    other = alike.model_copy(update={"end": 0.013})
    with pytest.raises(UserError, match=r"the classifier was trained under .*end 0\.013.*but the model .*end 0\.012"):
        classes.with_guides(replace(judge, schedule_config=other))
    few = replace(judge, schedule_config=alike.model_copy(update={"num_train_timesteps": 500}))
    with pytest.raises(UserError, match=r"num_train_timesteps 500.*num_train_timesteps 1000"):
        classes.with_guides(few)
    with pytest.raises(UserError, match=r"takes latents of the autoencoder abcdef.*samples pixels"):
        classes.with_guides(replace(judge, first_stage="abcdef"))


def test_a_learned_variance(learned, given):
    assert learned.variance == "learned_range"
    assert learned.latent_shape == (3, 16, 16)
    x, t = far(learned)
    with torch.no_grad():
        fraction = given(learned, ["", ""], SamplingOptions(solver="ddpm"))["denoiser"](x, t, None).fraction
    assert fraction.shape == x.shape
    *_, last = learned.denoiser()(x, t, None)
    assert last is not None


def test_which_variance(classes, given):
    """That of the model, unless the solver names one."""
    assert given(classes, NAMES, SamplingOptions(solver="ddpm"))["variance"] == "auto"
    assert given(replace(classes, variance="large"), NAMES, SamplingOptions(solver="ddpm"))["variance"] == "large"


def test_guides_move_along(classes, judge):
    moves = []

    class Noted(NoisyClassifier):
        def to(self, device):
            moves.append(device)
            return self

    steered = classes.with_guides(Noted(judge.net, judge.classes, judge.schedule_config, judge.first_stage), classes)
    steered.to("cpu")
    assert moves == ["cpu"]


@pytest.mark.parametrize("name", ["text", "pixels"])
def test_rounding_weights_once_draws_what_autocast_draws(world, name, tmp_path):
    folder = world.model(name) / "model"
    once = Pipeline.load(folder, precision=torch.bfloat16)
    each = replace(Pipeline.load(folder), precision=torch.bfloat16)
    assert once.unet.conv_in.weight.dtype == torch.bfloat16
    options, prompts = SamplingOptions(steps=3), ["red", "blue"]
    assert torch.equal(next(once.generate(prompts, [0, 1], options)), next(each.generate(prompts, [0, 1], options)))
    each.save(tmp_path / "whole")
    with pytest.raises(UserError, match="not saved: the U-Net's weights were cast"):
        once.save(tmp_path / "rounded")
    assert not (tmp_path / "rounded").exists()


@pytest.mark.parametrize("name", ["text", "class_pixels"])
def test_guidance_asks_the_network_once_a_step(world, name, monkeypatch):
    model, options, asked = Pipeline.load(world.model(name) / "model"), SamplingOptions(steps=3, guidance_scale=2.0), []

    def counted(unet, x, t, cond):
        asked.append(len(x))
        return apply_unet(unet, x, t, cond)

    monkeypatch.setattr(pipelines, "apply_unet", counted)
    *_, joined = model.states(NAMES, SEEDS, options.resolve(model))
    monkeypatch.setattr(Condition, "before", lambda self, other: None)
    *_, apart = model.states(NAMES, SEEDS, options.resolve(model))
    assert asked == [4, 4, 4, *[2] * 6]
    torch.testing.assert_close(joined.x, apart.x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["text", "class_pixels"])
def test_a_network_cast_as_a_whole_samples_without_autocast(name, world, monkeypatch):
    """So it is cast on an accelerator."""
    exact, cast = (Pipeline.load(world.model(name) / "model") for _ in range(2))
    cast = replace(cast, precision=torch.bfloat16)
    torch.nn.Module.to(cast.unet, torch.bfloat16)
    options = SamplingOptions(steps=3, solver="dpm++", guidance_scale=2.0)
    *_, expected = exact.states(NAMES, SEEDS, options.resolve(exact))
    monkeypatch.setattr(torch, "autocast", None)  # is not called
    *_, found = cast.states(NAMES, SEEDS, options.resolve(cast))
    error = (found.x - expected.x).norm() / expected.x.norm()
    assert 0 < error < 0.1
