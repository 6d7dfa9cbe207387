"""On a device without float64 everything that is sampled and trained gives the numbers of the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

from autoencoder.base import affine
from autoencoder.statistics import measure
from ldm_kit.diffusion import float64, likelihood, rng
from ldm_kit.diffusion.analytic import Gaussian
from ldm_kit.diffusion.schedule import ScheduleConfig, build, linear
from ldm_kit.diffusion.timesteps import TimestepSampler, TimestepSamplingConfig
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.half_unet import HalfUNetConfig, build_half_unet
from ldm_kit.solvers.table import SAMPLERS
from ldm_kit.training.batches import to_device
from tests.editing.models import semantic, shifted
from tests.methods.semantic_toys import COMMON, DIFFAE, LINEAR, PDAE, PRIOR, base, checked, opened, two_factors
from tests.simulated import DEVICE, device_without_float64, move

pytestmark = [
    pytest.mark.usefixtures("own_cache"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers on numpy 2
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return two_factors(tmp_path_factory.mktemp("pictures") / "two")


def test_the_simulated_device_is_one():
    with device_without_float64() as device:
        with pytest.raises(TypeError, match="does not support it"):
            torch.zeros(2, dtype=torch.float64, device=device)
        with pytest.raises(TypeError, match="does not support it"):
            torch.zeros(2, device=device).double()
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            torch.zeros(2, device=device) + torch.ones(2)
        assert not float64.has_float64(device)
    assert float64.has_float64(torch.device("cpu"))


def test_tables_are_computed_in_float64_and_cast_last():
    """Betas and differences of tables would lose all digits in float32: 1 - a^2 at t = 0 is 1e-4."""
    schedule, t = linear(), torch.tensor([0, 1, 500, 999])
    with device_without_float64():
        for name in ("snr", "alpha_sigma", "beta"):
            arguments = (t, t - 1) if name == "beta" else (t,)
            expected = getattr(schedule, name)(*arguments)
            found = getattr(schedule.to(DEVICE), name)(*(move(argument) for argument in arguments))
            for one, other in zip(*((v if isinstance(v, tuple) else (v,)) for v in (found, expected)), strict=True):
                assert one.device == DEVICE
                assert torch.equal(one.cpu(), other.float())


def test_draws_have_the_same_bits_as_far_as_they_go():
    positions = torch.arange(1000)
    expected = rng.uniform(3, "x", positions)
    config = TimestepSamplingConfig(density="loss_second_moment")
    sampler = TimestepSampler(config, 0, 8, 10)
    with device_without_float64():
        found = rng.uniform(3, "x", move(positions)).cpu()
        assert torch.equal(found, (expected * 2**24).floor().float() / 2**24)
        assert torch.equal(rng.uniform(3, "x", float64.exact(move(positions))), expected)
        t, weight = sampler.draw(move(torch.arange(8)))
        assert torch.equal(t.cpu(), sampler.draw(torch.arange(8))[0])
        assert weight is not None
        assert torch.equal(weight, torch.ones(8).double())
        sampler.meet(move(torch.arange(8)), t, move(torch.full((8,), 0.1)))
        sampler.after_step(lambda value: value)
    assert sampler.history is not None
    assert sampler.history.losses.max() == torch.tensor(0.1).double()
    assert int(sampler.history.seen.sum()) == 8


@pytest.fixture
def guided(tmp_path) -> Pipeline:
    """A model of classes with a classifier and a guide model."""
    folder = base(tmp_path / "model", "classes")
    config = HalfUNetConfig(widths=(8,), attention_levels=(False,), head_size=None, norm_num_groups=4)
    net = build_half_unet(config, sample_size=8, channels=3, classes=["b", "t"]).eval()
    classifier = NoisyClassifier(net, ("b", "t"), LINEAR, None)
    return Pipeline.load(folder).with_guides(classifier, Pipeline.load(folder))


@pytest.mark.parametrize("solver", [*SAMPLERS, "diffusers:LMSDiscreteScheduler"])
def test_every_sampler(tmp_path, solver):
    model, options = Pipeline.load(base(tmp_path / "model", "learned")), SamplingOptions(steps=2, solver=solver)
    expected = next(model.generate([""], [0], options))
    with device_without_float64() as device:
        model.to(device)
        assert (next(model.generate([""], [0], options)).int() - expected.int()).abs().max() <= 1


def test_every_guidance(guided):
    options = SamplingOptions(
        steps=2,
        solver="ddim",
        guidance_rescale=0.5,
        guidance_interval=(0.1, 0.9),
        autoguidance_scale=1.5,
        clip="dynamic",
    )
    expected = next(guided.generate(["b", "t"], [0, 1], options))
    with device_without_float64() as device:
        guided.to(device)
        assert guided.autoguidance_model is not None
        found = next(guided.generate(["b", "t"], [0, 1], options))
    assert (found.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("kind", ["diffae", "pdae", "latents"])
def test_models_of_codes_and_of_latents(tmp_path, kind):
    makers = {"diffae": semantic, "pdae": lambda folder: shifted(folder, base(tmp_path / "base"))}
    if kind == "latents":
        model: Any = Pipeline.load(base(tmp_path / "model", "latents"))
        run = lambda: next(model.generate([""], [0], SamplingOptions(steps=2)))  # noqa: E731
    else:
        model = SemanticModel.load(makers[kind](tmp_path / "model"))
        shown = torch.full((1, 3, model.resolution, model.resolution), 90, dtype=torch.uint8)
        run = lambda: model.decode(z := model.encode(shown), model.invert(shown, z, 2), 2)  # noqa: E731
    expected = run()
    with device_without_float64() as device:
        model.to(device)
        assert (run().int() - expected.int()).abs().max() <= 1


UNET = {"widths": [8, 16], "attention_levels": [False, True], "heads": 2, "norm_num_groups": 4}
LATENT = {**COMMON, "method": "latent", "unet": UNET}
CLASSIFIER = {
    **COMMON,
    "method": "classifier",
    "net": {"widths": [8], "attention_levels": [False], "head_size": None, "norm_num_groups": 4},
    "shift": 1,
}
KL = {"kind": "kl", "resolution": 8, "widths": [8, 16], "latent_channels": 4, "norm_num_groups": 4}
CRITERION = {"balance": "custom", "perceptual_weight": 0.0, "kl_weight": 1e-6, "learned_scale": False}
AUTOENCODER = {**COMMON, "perceptual": {"spec": "none"}, "loss": CRITERION}
TRAININGS: dict[str, dict[str, Any]] = {
    "latent": {**LATENT, "min_snr": 5, "condition": {"kind": "class", "width": 16}, "condition_dropout": 0.5},
    "learned": {**LATENT, "variance": "learned_range"},
    "vlb": {**LATENT, "loss": "vlb", "timestep_sampling": {"density": "loss_second_moment"}},
    "flow": {
        **LATENT,
        "schedule": {"kind": "flow"},
        "prediction_type": "flow",
        "timestep_sampling": {"density": "logit_normal"},
    },
    "classifier": CLASSIFIER,
    "diffae": DIFFAE,
    "pdae": PDAE,
    "prior": PRIOR,
    "kl": {**AUTOENCODER, "autoencoder": KL},
    "vq": {**AUTOENCODER, "autoencoder": {**KL, "kind": "vq", "codes": 16}},
}


@pytest.mark.parametrize("name", TRAININGS)
def test_the_losses_of_every_method(pictures, tmp_path, name):
    more: dict[str, Any] = {}
    if name == "pdae":
        more["base"] = str(base(tmp_path / "base"))
    if name == "prior":
        more["model"] = str(shifted(tmp_path / "model", base(tmp_path / "base")))
    method = opened(checked(TRAININGS[name], pictures, tmp_path / "run", **more))
    for module in method.modules.values():
        module.eval()
    batch = method.batches.__getitems__([(i, i) for i in range(16)])
    with torch.no_grad():
        expected = [float(loss) for _, loss, _ in method.losses(batch, 0)]
        with device_without_float64() as device:
            for module in method.modules.values():
                module.to(device)
            if name == "pdae":
                method.base.to(device)
            method.set_ddp_modules(method.modules)
            found = [float(loss.cpu()) for _, loss, _ in method.losses(to_device(batch, device), 0)]
    assert found == pytest.approx(expected, rel=2e-4)


def test_statistics_and_the_normalisation_of_latents(tmp_path):
    vae = Pipeline.load(base(tmp_path / "model", "latents")).vae
    x = torch.rand(4, 3, 8, 8) * 2 - 1
    expected = measure(vae, [x])
    with device_without_float64() as device:
        vae.to(device)
        found = measure(vae, [move(x)])
        assert affine(vae).scale.dtype == torch.float64
    torch.testing.assert_close(found.std, expected.std, rtol=1e-5, atol=0)


def test_the_terms_of_the_bound():
    schedule = build(ScheduleConfig(kind="linear", num_train_timesteps=20))
    x_0 = torch.linspace(-1, 1, 256).view(1, 1, 16, 16)
    noise = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    denoiser = Gaussian(schedule, m=0.0, s=0.5)
    expected = [term.bits for term in likelihood.nll(denoiser, x_0, lambda _: noise)]
    with device_without_float64():
        terms = likelihood.nll(denoiser, move(x_0), lambda _: move(noise))
        found = [term.bits.cpu() for term in terms]
        assert torch.equal(likelihood.prior(move(x_0), schedule).cpu(), likelihood.prior(x_0, schedule))
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=1e-5, atol=1e-7)
