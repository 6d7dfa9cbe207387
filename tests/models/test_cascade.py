"""Cascades: each model upscales what the one before it sampled; what fits together, options, seeds, folders."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

import ldm_kit
from conditioning import ImageConfig, build
from conditioning.derived import Grey, SuperResolution
from conditioning.none import NoCondition
from ldm_kit.config import UserError
from ldm_kit.diffusion.rng import SeedDraws
from ldm_kit.inference.build_cascade import build_cascade
from ldm_kit.models.cascade import Cascade, check_stages, stage_seed
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.pretrained_images import open_image_encoder
from ldm_kit.models.stage_options import shared_options, values_by_stage, with_values
from tests.conditioning.image_toys import clip_weights
from tests.models.cascades import classes, model, saved, stages, text

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
PROMPTS, SEEDS = ["a red square", "a blue circle", "a red circle"], [4, 5, 2**63]
SMALL = SuperResolution(factor=2)


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return Cascade(tuple(stages()))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models"), *stages())


@pytest.fixture(scope="module")
def folder(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("cascades") / "three"
    return build_cascade(folders, out, ["steps=3/2/1", "noise_level=/90/"])


def final(cascade, prompts=PROMPTS, seeds=SEEDS, options=None, batch=8):
    return torch.cat(list(cascade.generate(prompts, seeds, options, batch)))


def test_each_model_upscales_what_the_one_before_it_sampled(cascade, layout):
    first, second, third = cascade.stages
    small = torch.cat(list(first.generate(PROMPTS, SEEDS)))
    seeds = [[stage_seed(seed, index) for seed in SEEDS] for index in (1, 2)]
    middle = torch.cat(list(second.generate(PROMPTS, seeds[0], pictures={"image": small})))
    large = torch.cat(list(third.generate([""] * 3, seeds[1], pictures={"image": middle})))
    assert (small.shape, middle.shape, large.shape) == ((3, 3, 8, 8), (3, 3, 16, 16), (3, 3, 32, 32))
    batches = list(cascade.batches(PROMPTS, SEEDS))
    assert [batch.stage for batch in batches] == [0, 1, 2]
    for batch, pictures in zip(batches, (small, middle, large), strict=True):
        assert (batch.pictures.int() - pictures.int()).abs().max() <= 1
    assert torch.equal(final(cascade), batches[-1].pictures)
    assert (cascade.resolution, cascade.channels) == (32, 3)


def test_a_picture_depends_on_its_own_prompt_and_seed_alone(cascade):
    whole = final(cascade)
    for index in range(3):
        (alone,) = final(cascade, PROMPTS[index : index + 1], SEEDS[index : index + 1])
        assert (whole[index].int() - alone.int()).abs().max() <= 1
    assert (whole.int() - final(cascade, batch=2).int()).abs().max() <= 1
    assert len(list(cascade.generate(PROMPTS, SEEDS, None, 2))) == 2
    assert (whole[0].int() - final(cascade, PROMPTS[:1], [6])[0].int()).abs().max() > 5


def test_seeds_of_stages_are_different_addresses():
    seeds = {stage_seed(seed, stage) for seed in (0, 1, 2**64 - 1) for stage in range(4)}
    assert len(seeds) == 12
    assert stage_seed(7, 0) == 7


@pytest.mark.parametrize("level", [0, 100, 400])
def test_the_noised_picture_and_its_level_reach_the_network(cascade, level):
    """x = sqrt(alpha_bar_s) y + sqrt(1 - alpha_bar_s) eps at the size of y, then bilinear; s is embedded as t is."""
    seen = []
    hook = cascade.stages[1].unet.register_forward_hook(
        lambda _, arguments, keywords, out: seen.append((arguments, keywords)), with_kwargs=True
    )
    options = with_values([SamplingOptions()] * 3, values_by_stage([f"noise_level=/{level}/"], 3))
    small = next(iter(cascade.batches(PROMPTS[:1], [3], options))).pictures
    final(cascade, PROMPTS[:1], [3], options)
    hook.remove()
    arguments, keywords = seen[-1]
    x = arguments[0] if arguments else keywords["sample"]
    eps = SeedDraws([stage_seed(3, 1)]).normal("picture noise", (3, 8, 8))
    alphas = DDPMScheduler(1000, beta_start=1e-4, beta_end=2e-2, beta_schedule="scaled_linear").alphas_cumprod
    noised = alphas[level].sqrt() * (small.float() / 127.5 - 1) + (1 - alphas[level]).sqrt() * eps
    expected = F.interpolate(noised, size=(16, 16), mode="bilinear", antialias=True)
    assert torch.allclose(x[:, 3:], expected, atol=1e-5)
    assert keywords["class_labels"].tolist() == [level]
    unet = cascade.stages[1].unet
    assert unet.config["class_embed_type"] == "timestep"


def test_the_noise_level_changes_what_is_sampled(cascade):
    def sampled(*levels):
        values = values_by_stage([f"noise_level=/{levels[0]}/{levels[1]}"], 3)
        return final(cascade, options=with_values([SamplingOptions()] * 3, values)).int()

    plain = sampled(20, 20)
    assert torch.equal(plain, final(cascade).int())
    assert (plain - sampled(300, 20)).abs().max() > 3
    assert (plain - sampled(20, 300)).abs().max() > 3


def test_options_for_all_go_to_those_that_have_a_use_for_them(cascade):
    options = SamplingOptions(steps=4, guidance_scale=3.0, negative_prompt="x", clip="dynamic", noise_level=50)
    first, second, third = cascade.resolve(options)
    assert [each.steps for each in (first, second, third)] == [4, 4, 4]
    assert [each.guidance_scale for each in (first, second, third)] == [3, 3, 1]
    assert [each.negative_prompt for each in (first, second, third)] == ["x", "x", None]
    assert [each.clip for each in (first, second, third)] == ["dynamic", "dynamic", "none"]
    assert [each.noise_level for each in (first, second, third)] == [None, 50, 50]
    own = cascade.resolve()
    assert [each.guidance_scale for each in own] == [2, 1, 1]
    assert [each.noise_level for each in own] == [None, 20, 20]


def test_an_option_of_use_to_no_model_is_an_error():
    plain = Cascade((model(NoCondition(), 8), model(NoCondition(), 16, SMALL)))
    with pytest.raises(UserError, match="--guidance_scale is for models with a condition"):
        plain.resolve(SamplingOptions(guidance_scale=3.0))
    latents = [model(NoCondition(), 16, latents=True), model(NoCondition(), 32, SMALL, latents=True)]
    with pytest.raises(UserError, match="--clip dynamic is for pixels"):
        shared_options(SamplingOptions(clip="dynamic"), latents)
    assert final(plain, ["", ""], [0, 1]).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("by_stage", "message"),
    [
        (["steps"], "--by_stage is 'steps'; expected OPTION=A/B/..."),
        (["colour=1/2/3"], "--by_stage is 'colour=1/2/3'; expected OPTION=A/B/..."),
        (["steps=1/2"], "--by_stage steps=1/2 has 2 values, but the cascade has 3 models"),
        (["steps=1/2/3", "steps=3/2/1"], "--by_stage names steps 2 times"),
        (["steps=1/0/3"], "stage 2: steps: expected greater than or equal to 1"),
        (["steps=1/[/3"], "cannot read the value '['"),
        (["noise_level=5/5/5"], "stage 1: --noise_level is for models that upscale a picture"),
        (["noise_level=/401/5"], "stage 2: --noise_level is 401, but this model was trained on levels of 0 to 400"),
        (["guidance_scale=1/1/2"], "stage 3: --guidance_scale is for models with a condition"),
        (["clip=dynamic/dynamic/dynamic"], "stage 3: --clip dynamic is for pixels"),
    ],
    ids=str,
)
def test_wrong_options_of_single_models(cascade, by_stage, message):
    with pytest.raises(UserError) as error:
        cascade.resolve(with_values([SamplingOptions()] * 3, values_by_stage(by_stage, 3)))
    assert message in str(error.value)


def test_options_of_single_models_take_the_place_of_those_for_all(cascade):
    shared = shared_options(SamplingOptions(steps=9, guidance_scale=4.0, negative_prompt="x"), cascade.stages)
    values = values_by_stage(["steps=/5/", "guidance_interval=[0.1, 0.9]//", "solver=ddpm//dpm++"], 3)
    first, second, third = cascade.resolve(with_values(shared, values))
    assert [each.steps for each in (first, second, third)] == [9, 5, 9]
    assert [each.solver for each in (first, second, third)] == ["ddpm", "ddim", "dpm++"]
    assert [each.guidance_interval for each in (first, second)] == [(0.1, 0.9), (0, 1)]
    with pytest.raises(UserError, match="got options for 2 models, but the cascade has 3"):
        cascade.resolve([SamplingOptions(), SamplingOptions()])


MISFITS = {
    "one": (lambda: [model(text(), 8)], "a cascade of 1 models"),
    "a base with a picture": (
        lambda: [model(text(), 16, SMALL), model(text(), 32, SMALL)],
        "stage 1 is conditioned on a picture (super_resolution)",
    ),
    "no upscaling": (lambda: [model(text(), 8), model(text(), 16)], "stage 2 is conditioned on no picture"),
    "colourisation": (
        lambda: [model(text(), 8), model(text(), 8, Grey())],
        "stage 2 is conditioned on a picture of kind grey; expected a model that upscales",
    ),
    "size": (
        lambda: [model(text(), 8), model(text(), 32, SMALL)],
        "stage 2 upscales pictures of 16 px and 3 channels, but stage 1 samples pictures of 8 px and 3 channels",
    ),
    "order": (
        lambda: [model(text(), 8), model(text(), 32, SMALL), model(text(), 16, SMALL)],
        "stage 2 upscales pictures of 16 px",
    ),
    "channels": (
        lambda: [model(text(), 8, channels=1), model(text(), 16, SMALL)],
        "stage 1 samples pictures of 8 px and 1 channels",
    ),
    "modality": (
        lambda: [model(text(), 8), model(classes("a", "b"), 16, SMALL)],
        "stage 2 samples from classes, but stage 1 from text",
    ),
    "captions unknown to the base": (
        lambda: [model(NoCondition(), 8), model(text(), 16, SMALL)],
        "stage 2 samples from text, but stage 1 from no condition",
    ),
    "classes": (
        lambda: [model(classes("a", "b"), 8), model(classes("b", "a"), 16, SMALL)],
        "stage 2 has the classes ('b', 'a'), but stage 1 has ('a', 'b')",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_models_that_do_not_fit_together(name):
    build, message = MISFITS[name]
    with pytest.raises(UserError) as error:
        Cascade(tuple(build()))
    assert message in str(error.value)


def test_messages_name_the_models_as_the_user_did():
    with pytest.raises(UserError, match="runs/large upscales pictures of 16 px"):
        check_stages([model(text(), 8), model(text(), 32, SMALL)], ["runs/small", "runs/large"])


def test_classes_name_one_thing_in_all_models():
    names = ("a", "b")
    cascade = Cascade((model(classes(*names), 8), model(classes(*names), 16, SMALL)))
    assert final(cascade, ["a", 1], [0, 1]).shape == (2, 3, 16, 16)


def test_a_folder_holds_the_models_as_they_were(folder, folders):
    loaded = ldm_kit.load(folder)
    assert isinstance(loaded, Cascade)
    index = json.loads((folder / "model_index.json").read_text())
    assert index == {"_class_name": "ldm_kit.Cascade", "stages": ["stage_1", "stage_2", "stage_3"]}
    for number, source in enumerate(folders, 1):
        for path in source.rglob("*"):
            copy = folder / f"stage_{number}" / path.relative_to(source)
            assert path.is_dir() or path.name == "sampling.json" or path.read_bytes() == copy.read_bytes()
        Pipeline.load(folder / f"stage_{number}")
    assert [each.steps for each in loaded.resolve()] == [3, 2, 1]
    assert [each.noise_level for each in loaded.resolve()] == [None, 90, 20]
    assert [each.guidance_scale for each in loaded.resolve()] == [2, 1, 1]  # the models' own
    assert SamplingOptions().resolve(Pipeline.load(folders[0])).steps == 2, "the model that was copied is unchanged"
    options = [SamplingOptions(steps=3), SamplingOptions(steps=2, noise_level=90), SamplingOptions(steps=1)]
    plain = Cascade(tuple(Pipeline.load(path) for path in folders))
    assert torch.equal(final(loaded), final(plain, options=options))


def test_new_options_replace_those_they_exclude(tmp_path):
    paths = saved(tmp_path, model(text(), 8, eta=0.5), model(text(), 16, SMALL))
    out = build_cascade(paths, tmp_path / "out", ["solver=dpm++/"])
    first, second = Cascade.load(out).resolve()
    assert (first.solver, first.eta) == ("dpm++", 0.0)
    assert second.solver == "ddim"
    assert json.loads((out / "stage_1" / "sampling.json").read_text())["sampling"]["condition_dropout"] == 0.1


def test_a_changed_file_is_noticed(folders, tmp_path):
    out = build_cascade(folders, tmp_path / "out")
    (path,) = (out / "stage_2" / "unet").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"stage_2.*safetensors have changed since it was saved"):
        Cascade.load(out)


def test_what_a_model_without_a_manifest_brings_along(tmp_path):
    """As diffusers or the Hub have it: pickles and code stay behind."""
    paths = saved(tmp_path, *(model(text(), 8), model(text(), 16, SMALL)))
    for path in paths:
        (path / "manifest.json").unlink(missing_ok=True)
    for name in ("unet/diffusion_pytorch_model.bin", "pipeline.py", ".cache/x.json"):
        (paths[0] / name).parent.mkdir(exist_ok=True)
        (paths[0] / name).write_bytes(b"x")
    out = build_cascade(paths, tmp_path / "out")
    files = {path.relative_to(out / "stage_1").as_posix() for path in (out / "stage_1").rglob("*") if path.is_file()}
    assert not files & {"unet/diffusion_pytorch_model.bin", "pipeline.py", ".cache/x.json"}
    assert {"model_index.json", "unet/config.json", "sampling.json"} <= files
    assert len(list(itertools.islice(Cascade.load(out).generate(["a red square"], [0]), 2))) == 1


def test_nothing_is_written_where_something_is_wrong(folders, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there exists already; name a new folder for the cascade"):
        build_cascade(folders, tmp_path / "there")
    with pytest.raises(
        UserError, match=r"m3 upscales pictures of 16 px and 3 channels, but .*m1 samples pictures of 8"
    ):
        build_cascade([folders[0], folders[2]], tmp_path / "new")
    with pytest.raises(UserError, match="stage 2: --noise_level is 999"):
        build_cascade(folders, tmp_path / "new", ["noise_level=/999/"])
    with pytest.raises(UserError, match="is no saved model"):
        build_cascade([folders[0], tmp_path / "nowhere"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("names", ["stage_1", [1], ["../m1", "stage_2"], None])
def test_an_index_that_names_no_sub_folders(folder, tmp_path, names):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "ldm_kit.Cascade", "stages": names}))
    with pytest.raises(UserError, match="expected a list of sub-folders"):
        Cascade.load(tmp_path)


def test_a_cascade_is_no_single_model(folder, folders):
    with pytest.raises(UserError, match="holds a cascade of models; expected one model"):
        Pipeline.load(folder)
    with pytest.raises(UserError, match="expected a cascade, which `ldm-kit cascade` makes"):
        Cascade.load(folders[0])
    with pytest.raises(UserError, match=r"is a ldm_kit\.Cascade, which takes no LoRA"):
        ldm_kit.load(folder, lora=["x.safetensors"])


def test_models_under_an_images_embedding_are_refused(tmp_path):
    """No picture could be given to them: neither as the base model, with a prior or without, nor further on."""
    image = build(ImageConfig(model=clip_weights(tmp_path)[1]), time_width=32, open_encoder=open_image_encoder)
    under_image = replace(model(text(), 8), conditioner=image)
    with pytest.raises(UserError, match="stage 1 is conditioned on an image, which a cascade does not take"):
        check_stages([under_image, model(text(), 16, SMALL)])
    further = replace(model(text(), 16, SMALL), conditioner=image)
    with pytest.raises(UserError, match="upscaler is conditioned on an image, which a cascade"):
        check_stages([model(text(), 8), further], ["base", "upscaler"])
