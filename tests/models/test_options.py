"""Sampling options: what excludes what, what a model decides, and that a model refuses what it cannot follow."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from ldm_kit.config import UserError
from ldm_kit.models import folder as folders
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.options import FAST_STEPS, ResolvedOptions, SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.saved_sampling import SavedSampling
from ldm_kit.models.semantic import SemanticModel

RUNS = Path(__file__).parent.parent / "fixtures" / "v0_1"


@pytest.fixture(scope="module")
def pixels() -> Pipeline:
    """A model of pixels under classes."""
    return Pipeline.load(RUNS / "pixels")


@pytest.fixture(scope="module")
def latents() -> Pipeline:
    """A model of latents under captions."""
    return Pipeline.load(RUNS / "latent")


@pytest.fixture(scope="module")
def unconditional() -> Pipeline:
    """A model of pixels without a condition."""
    return Pipeline.load(RUNS / "base")


@pytest.fixture(scope="module")
def guided(pixels: Pipeline) -> Pipeline:
    """The model of pixels with both kinds of guides."""
    return replace(pixels, classifier=NoisyClassifier.load(RUNS / "classifier"), autoguidance_model=pixels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"guidance_scale": -0.1}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
        ({"guidance_rescale": 1.1}, "guidance_rescale"),
        ({"guidance_rescale": -0.1}, "guidance_rescale"),
        ({"eta": 1.1, "solver": "ddim"}, "eta"),
        ({"eta": -0.1, "solver": "ddim"}, "eta"),
        ({"classifier_scale": -0.1}, "classifier_scale"),
        ({"autoguidance_scale": -0.1}, "autoguidance_scale"),
        ({"algorithm": 3}, "algorithm"),
        ({"clip": "soft"}, "clip"),
        ({"solver": "rk4"}, "expected one of ddpm"),
        ({"guidance_interval": (0.5, 0.5)}, "LOW < HIGH"),
        ({"guidance_interval": (-0.1, 0.5)}, "LOW < HIGH"),
        ({"guidance_interval": (0.5, 1.1)}, "LOW < HIGH"),
        ({"spacing": "leading", "solver": "diffusers:DDIMScheduler"}, "--spacing is for our own solvers"),
        ({"eta": 0.5}, r"--eta 0.5 is for ddim alone, but --solver is dpm\+\+"),
        ({"eta": 0.5, "solver": "diffusers:PNDMScheduler"}, "--eta 0.5 is for ddim alone"),
        ({"algorithm": 1}, r"--algorithm 1 shifts the mean of ddpm and ddpm-large, and dpm\+\+ has none"),
        ({"algorithm": 1, "solver": "diffusers:DDPMScheduler"}, "--algorithm 1 shifts the mean"),
        ({"guidance_scale": 1, "negative_prompt": "x"}, "--negative_prompt has no effect at --guidance_scale 1"),
        ({"guidance_scale": 1, "guidance_rescale": 0.5}, "--guidance_rescale has no effect"),
        ({"guidance_scale": 1, "guidance_interval": (0, 0.5)}, "--guidance_interval has no effect"),
        ({"wish": 1}, "wish"),
    ],
    ids=str,
)
def test_what_no_model_can_follow_is_refused_at_once(options, message):
    with pytest.raises(ValidationError, match=message):
        SamplingOptions(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 1, "guidance_scale": 0, "guidance_rescale": 1, "guidance_interval": (0, 1)},
        {"eta": 1, "solver": "ddim"},
        {"eta": 1, "solver": "diffusers:DDIMScheduler"},
        {"algorithm": 1, "solver": "ddpm-large"},
        {"algorithm": 2, "solver": "dpm++"},
        {"guidance_scale": 1, "guidance_interval": (0.0, 1.0), "guidance_rescale": 0.0},
        {"spacing": "leading"},
    ],
    ids=str,
)
def test_what_is_at_the_edge_is_taken(options):
    assert SamplingOptions(**options).model_dump().items() >= options.items()


def test_what_is_left_to_the_model_is_decided_once(pixels, latents, guided):
    plain = SamplingOptions(steps=4).resolve(pixels)
    assert isinstance(plain, ResolvedOptions)
    assert (plain.clip, plain.classifier_scale, plain.algorithm, plain.autoguidance_scale) == ("clip", None, None, None)
    assert plain.timesteps[-1] == -1
    assert list(plain.timesteps) == sorted(plain.timesteps, reverse=True)
    assert len(plain.timesteps) == 5
    assert SamplingOptions().resolve(latents).clip == "none"
    both = SamplingOptions(steps=4).resolve(guided)
    assert (both.classifier_scale, both.algorithm, both.autoguidance_scale) == (1.0, 2, 2.0)
    assert SamplingOptions(steps=4, solver="ddpm").resolve(guided).algorithm == 1
    given = SamplingOptions(steps=4, solver="ddpm", algorithm=2, classifier_scale=0.0, autoguidance_scale=1.0)
    kept = given.resolve(guided)
    assert (kept.classifier_scale, kept.algorithm, kept.autoguidance_scale) == (0.0, 2, 1.0)
    assert both.resolve(pixels) is both


def test_resolved_options_say_what_was_decided_and_no_times(pixels):
    resolved = SamplingOptions(spacing="2,1", negative_prompt="red").resolve(pixels)
    assert resolved.settings() == {
        **SamplingOptions(spacing="2,1", negative_prompt="red").model_dump(mode="json"),
        "steps": 3,
        "clip": "clip",
    }


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("pixels", {"classifier_scale": 1.0}, "--classifier_scale needs --classifier DIR"),
        ("pixels", {"classifier_class": "red"}, "--classifier_class needs --classifier DIR"),
        ("pixels", {"algorithm": 2}, "--algorithm needs --classifier DIR"),
        ("pixels", {"autoguidance_scale": 1.0}, "--autoguidance_scale needs --autoguidance_model DIR"),
        ("unconditional", {"guidance_scale": 2.0}, "--guidance_scale is for models with a condition"),
        ("unconditional", {"negative_prompt": "x"}, "--negative_prompt is for models with a condition"),
        ("unconditional", {"guidance_rescale": 0.5}, "--guidance_rescale is for models with a condition"),
        ("unconditional", {"guidance_interval": (0, 0.5)}, "--guidance_interval is for models with a condition"),
        ("latents", {"clip": "clip"}, "--clip clip is for pixels"),
        ("latents", {"clip": "published"}, "--clip published is for pixels"),
        ("guided", {"solver": "ddpm", "steps": 1}, "--algorithm 1 shifts by a step's variance"),
        ("pixels", {"steps": 5000}, "--steps 5000: "),
        ("pixels", {"spacing": "even"}, "--spacing even: unknown spacing"),
        ("pixels", {"solver": "diffusers:Nothing"}, "--solver diffusers:Nothing: diffusers has no scheduler Nothing"),
    ],
    ids=str,
)
def test_a_model_refuses_what_it_cannot_follow(request, model, options, message):
    pipeline = request.getfixturevalue(model)
    with pytest.raises(UserError, match=message):
        SamplingOptions(**options).resolve(pipeline)
    with pytest.raises(UserError, match=message):
        next(pipeline.generate(["red"], [0], SamplingOptions(**options)))


def saved(pipeline: Pipeline, **sampling: object) -> Pipeline:
    """The model with options of its run."""
    return replace(pipeline, saved=SavedSampling({"sampling": sampling}))


def test_what_is_not_given_is_the_models_own(pixels):
    own = {"steps": 7, "solver": "ddim", "eta": 0.5, "guidance_scale": 2.0, "guidance_rescale": 0.5, "clip": "none"}
    model = saved(pixels, **own, condition_dropout=0.1)
    resolved = SamplingOptions().resolve(model)
    assert {name: getattr(resolved, name) for name in own} == own
    assert set(resolved.own) == set(own)
    assert resolved.note.endswith("steps 7, solver ddim, eta 0.5, guidance_scale 2, guidance_rescale 0.5, clip none")
    given = SamplingOptions(steps=3, guidance_scale=4.0).resolve(model)
    assert (given.steps, given.guidance_scale, given.eta) == (3, 4.0, 0.5)
    assert set(given.own) == set(own) - {"steps", "guidance_scale"}
    fallback = SamplingOptions().resolve(saved(pixels, steps=9), {"steps": 50, "solver": "heun"})
    assert (fallback.steps, fallback.solver, fallback.own) == (9, "heun", ("steps",))


@pytest.mark.parametrize(
    ("own", "given", "result"),
    [
        ({"solver": "ddim", "eta": 1.0}, {"solver": "heun"}, {"solver": "heun", "eta": 0.0}),
        ({"guidance_interval": [0, 0.5]}, {"guidance_scale": 1}, {"guidance_interval": (0.0, 1.0)}),
        ({"guidance_scale": 1.0, "guidance_rescale": 0.0}, {}, {"guidance_scale": 1.0}),
        ({"spacing": "2,1"}, {"steps": 5}, {"spacing": "trailing", "steps": 5}),
        ({"spacing": "2,1"}, {}, {"spacing": "2,1", "steps": 3}),
        ({"spacing": "leading"}, {"steps": 5}, {"spacing": "leading", "steps": 5}),
        ({"spacing": "leading"}, {"solver": "diffusers:DDIMScheduler"}, {"spacing": "trailing"}),
        ({"steps": 5000}, {}, {"steps": 100}),  # as many as there are training times
    ],
    ids=str,
)
def test_the_models_own_options_give_way_to_what_is_given(pixels, own, given, result):
    resolved = SamplingOptions(**given).resolve(saved(pixels, **own))
    assert {name: getattr(resolved, name) for name in result} == result


def test_a_guide_model_guides_alone_unless_guidance_is_asked_for_too(pixels, guided):
    for model in (guided, saved(guided, guidance_scale=2.0)):
        assert SamplingOptions().resolve(replace(model, classifier=None)).guidance_scale == 1
        assert SamplingOptions(guidance_scale=4.0).resolve(model).guidance_scale == 4
        assert SamplingOptions(negative_prompt="red").resolve(model).guidance_scale > 1
    assert SamplingOptions().resolve(pixels).guidance_scale == 3


def test_what_no_guidance_can_be_for_is_not_guided(pixels, unconditional):
    assert SamplingOptions().resolve(saved(unconditional, guidance_scale=3.0)).guidance_scale == 1
    untrained = saved(pixels, guidance_scale=3.0, guidance_rescale=0.5, condition_dropout=0.0)
    assert SamplingOptions().resolve(untrained).guidance_scale == 1
    assert SamplingOptions(guidance_scale=1).resolve(untrained).guidance_scale == 1
    for options in ({"guidance_scale": 2}, {"negative_prompt": "red"}, {"guidance_rescale": 0.5}):
        with pytest.raises(UserError, match=r"null condition, which this model was never trained on"):
            SamplingOptions(**options).resolve(untrained)


def test_fast_leaves_what_was_given():
    assert SamplingOptions().fast() == SamplingOptions(steps=FAST_STEPS)
    assert SamplingOptions(steps=20).fast().steps == 20


def test_generation_takes_either_kind_of_options(pixels):
    options = SamplingOptions(steps=2, solver="ddim")
    once, again = (next(pixels.generate(["red"], [0], given)) for given in (options, options.resolve(pixels)))
    assert once.equal(again)


@pytest.mark.parametrize("load", [Pipeline.load, SemanticModel.load, NoisyClassifier.load])
def test_an_index_is_read_once(load, monkeypatch):
    name = {Pipeline.load: "latent", SemanticModel.load: "prior", NoisyClassifier.load: "classifier"}[load]
    read: list[Path] = []

    def note(path: Path, subject: str, read_json=folders.read_json) -> dict:
        read.append(path)
        return read_json(path, subject)

    monkeypatch.setattr(folders, "read_json", note)
    load(RUNS / name)
    assert [path.name for path in read].count("model_index.json") == 1
