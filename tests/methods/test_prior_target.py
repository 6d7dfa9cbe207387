"""What a prior's network predicts: against a distribution of codes whose conditional mean and covariance are known."""

from typing import cast

import pytest
import torch

from conditioning.labels import ClassConditioner, ClassConfig
from ldm_kit.config import UserError, check
from ldm_kit.data.code_batches import CodeBatches
from ldm_kit.diffusion import rng
from ldm_kit.diffusion.schedule import build
from ldm_kit.methods.inputs import drop_conditions
from ldm_kit.methods.prior import Prior
from ldm_kit.methods.prior_config import PriorRun
from ldm_kit.methods.prior_source import SMALLEST_SHARE, ImageSource
from ldm_kit.models.codes import code_statistics
from ldm_kit.models.prior import CodePrior
from ldm_kit.nets.mlp_skip import SkipMLP
from tests.methods.semantic_toys import trained

WIDTH, HIDDEN, RANK, SCALE = 96, 48, 4, 3.0
CLASSES = ("red", "blue")


def method_of(**more) -> Prior:
    tree = {
        "run": "run",
        "method": "prior",
        "model": "decoder",
        "data": {"source": "openmoji", "resolution": 16},
        "condition": {"kind": "class", "form": "vector"},
        "condition_dropout": 0.1,
        "train": {"steps": 1, "batch_size": 64},
        **more,
    }
    torch.manual_seed(0)
    conditioner = ClassConditioner.build(ClassConfig(kind="class", form="vector", width=WIDTH), classes=CLASSES)
    mlp = SkipMLP(z_width=WIDTH, condition_width=conditioner.pooled_width, hidden=HIDDEN, layers=3)
    return Prior(check(PriorRun, tree, "the test's config"), mlp, conditioner.train())


def distribution(count: int = 512):
    """Codes that a class determines but for a Gaussian in a subspace.

    Return the means by class [2, D], the subspace's basis [D, R], codes [N, D] and classes [N]. As embeddings are, the
    codes are of low rank, in more dimensions than the network has channels.
    """
    draw = torch.Generator().manual_seed(1)
    mean = torch.where(torch.rand(WIDTH, generator=draw) < 0.5, -0.9, 0.9)
    basis = torch.linalg.qr(torch.randn(WIDTH, RANK, generator=draw))[0]
    which = torch.arange(count) % 2
    noise = SCALE * torch.randn(count, RANK, generator=draw) @ basis.T
    return torch.stack([mean, -mean]), basis, torch.stack([mean, -mean])[which] + noise, which


@pytest.fixture(scope="module")
def learnt():
    method, (means, basis, z, which) = method_of(prediction_type="x0", condition_dropout=0.3), distribution()
    inputs = method.module.conditioner.prepare([CLASSES[k] for k in which.tolist()])
    method.batches = CodeBatches(z, inputs, "toy")
    for steps, lr in ((700, 3e-3), (500, 4e-4)):
        trained(method, steps, lr)
    return method, means, basis, which


@torch.no_grad()
def test_samples_have_the_mean_and_covariance_of_their_class(learnt):
    method, means, basis, _ = learnt
    prior = CodePrior(method.module.mlp.eval(), method.module.conditioner.eval(), method.config.schedule,
                      method.prediction_type)  # fmt: skip
    for k, words in enumerate(CLASSES):
        z = prior.sample(range(200), 50, [words] * 200)
        error = z.mean(0) - means[k]
        assert error.square().mean() < 0.08 * means[k].square().mean(), "the conditional mean"
        assert (z @ basis).std(0).mean().item() == pytest.approx(SCALE, rel=0.25), "the deviation in the subspace"
        outside = (z - z @ basis @ basis.T) - (means[k] - means[k] @ basis @ basis.T)
        assert outside.square().mean() < 0.1, "and none outside of it"
        assert z.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.2), "no growth, which normalising would hide"
    null = prior.sample(range(200), 50)
    assert (null @ means[0]).abs().mean() > 0.5 * means[0].square().sum(), "without a class one of both"
    assert 0.2 < (null @ means[0] > 0).float().mean() < 0.8


@torch.no_grad()
def test_the_condition_lowers_the_error_below_that_of_the_mean(learnt):
    """At much noise only the class tells x_0: the right one beats the null, that a wrong one, and all the mean."""
    method, means, _, which = learnt
    seen = {"z": method.batches.codes, "position": torch.arange(len(which)), "inputs": method.batches.inputs}
    t = torch.full((len(which),), 950)

    def error(inputs):
        return method.errors(seen, t, 1, inputs, method.module.eval()).mean().item()

    power, noise = means[0].square().mean().item(), RANK * SCALE**2 / WIDTH
    other = method.module.conditioner.prepare([CLASSES[1 - k] for k in which.tolist()])
    null = {name: value.expand(len(which), *value.shape[1:]) for name, value in method.null.items()}
    assert noise < error(method.batches.inputs) < min(0.6 * error(null), noise + power)
    assert error(null) + 0.1 * power < error(other)


@torch.no_grad()
@pytest.mark.parametrize(("target", "square"), [("eps", False), ("x0", True), ("v", True)])
def test_the_error_is_of_the_target(target, square):
    method = method_of(prediction_type=target, condition_dropout=0.5)
    _, _, z, which = distribution(16)
    for parameter in method.module.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    inputs = method.module.conditioner.prepare([CLASSES[k] for k in which.tolist()])
    batch = {"z": z, "inputs": inputs, "position": torch.arange(16)}
    t = torch.arange(16) * 60
    a, s = (c.view(-1, 1).float() for c in build(method.config.schedule).alpha_sigma(t))
    eps = rng.normal(7, "noise", batch["position"], (WIDTH,))
    dropped = drop_conditions(batch, method.null, method.config.seed, 0.5)
    out = method.module.mlp(a * z + s * eps, t, method.module.conditioner(**dropped).vector)
    error = out - {"eps": eps, "x0": z, "v": a * eps - s * z}[target]
    expected = error.square().mean(1) if square else error.abs().mean(1)
    torch.testing.assert_close(method.errors(batch, t, 7, dropped, method.module), expected, rtol=1e-4, atol=1e-4)


def test_embeddings_are_predicted_as_x_0_unless_the_run_says_otherwise():
    assert ImageSource.prediction_type == "x0"
    assert method_of().prediction_type == "eps", "of the codes of a DiffAE"
    with pytest.raises(UserError, match="prediction_type"):
        method_of(prediction_type="flow")


def test_a_dimension_that_hardly_varies_is_not_blown_up():
    """Held-out embeddings in a dimension that was constant in training, as pooled features after a ReLU are."""
    z = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    z[:, 3] = 0.25
    statistics = ImageSource.statistics(cast("ImageSource", None), z)
    plain = code_statistics(z)
    held = torch.full((1, 8), 0.5)
    assert statistics.normalise(held)[0, 3] < 6 < plain.normalise(held)[0, 3]
    rest = [i for i in range(8) if i != 3]
    torch.testing.assert_close(statistics.std[rest], plain.std[rest])
    torch.testing.assert_close(statistics.mean, plain.mean)
    assert statistics.std[3].item() == pytest.approx(SMALLEST_SHARE * plain.std.square().mean().sqrt().item())
    torch.testing.assert_close(statistics.denormalise(statistics.normalise(z)), z)
