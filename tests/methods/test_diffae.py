import pytest
import torch
from torch import nn

from ldm_kit.config import UserError
from ldm_kit.data.images import to_unit
from ldm_kit.data.sources import load
from ldm_kit.diffusion import rng
from ldm_kit.diffusion.finite import NonFiniteError
from ldm_kit.diffusion.timesteps import sample_timesteps
from ldm_kit.methods.networks import eval_mode
from ldm_kit.models.codes import encode_set
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.semantic import SemanticModel
from tests.methods.semantic_toys import DIFFAE, STEPS, base, checked, opened, probed, swapped, trained, two_factors
from tests.nets.originals import perturbed

LATE = {"density": "logit_normal", "mean": 1.0}
PLACES = [(16 + i, 2 * i) for i in range(12)]


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return two_factors(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    base(folder, "latents")
    return str(folder)


def method_of(pictures, tmp_path, **more):
    return opened(checked(DIFFAE, pictures, tmp_path / "run", **more))


def test_it_learns_codes_that_the_decoder_listens_to(pictures, tmp_path):
    method = method_of(pictures, tmp_path, prediction_type="v", timestep_sampling=LATE)
    before, own, others = method.heldout_loss(), *swapped(method)
    assert own == others
    trained(method, 60, 3e-3)
    assert method.heldout_loss() < 0.6 * before
    own, others = swapped(method)
    assert own < 0.75 * others
    records, z = method.data.train.records, encode_set(method.module.encoder, method.data.train)
    assert probed(z, torch.tensor([record.label for record in records])) > 0.9
    assert probed(z, torch.tensor([record.text == "right" for record in records])) > 0.9


def test_no_gradient_reaches_the_encoder_for_two_steps_and_then_it_does(pictures, tmp_path):
    method = method_of(pictures, tmp_path)
    norms = []
    optimiser = torch.optim.Adam(method.module.parameters(), 1e-3)
    for number in range(3):
        ((_, loss, _),) = method.losses(method.batches.__getitems__(PLACES), number)
        optimiser.zero_grad()
        loss.backward()
        norms.append(sum(p.grad.abs().sum().item() for p in method.module.encoder.parameters() if p.grad is not None))
        optimiser.step()
    assert norms[:2] == [0, 0]
    assert norms[2] > 0


class Spy(torch.nn.Module):
    """In the module's place: remembers what it is given, and answers with zeros."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(())), []

    def forward(self, x, t, picture):
        self.seen.append((x, t, picture))
        return torch.zeros_like(x)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("latents", [False, True])
def test_the_encoder_sees_the_picture_in_the_view_of_the_latent(pictures, autoencoder, tmp_path, latents, flip):
    method = method_of(pictures, tmp_path, flip=flip, autoencoder=autoencoder if latents else None)
    batch = method.batches.__getitems__(PLACES)
    plain = to_unit(method.data.train.pictures([index for _, index in PLACES]))
    mirrored = rng.uniform(0, "flip", batch["position"]) < 0.5
    for i, (_, index) in enumerate(PLACES):
        turned = flip and bool(mirrored[i])
        assert torch.equal(batch["picture"][i], plain[i].flip(2) if turned else plain[i])
        assert torch.equal(batch["mean"][i], method.batches.latents.mean[index, int(turned)].float())
    assert 0 < mirrored.sum() < len(PLACES)
    assert batch["mean"].shape[1:] == ((4, 4, 4) if latents else (3, 8, 8))
    spy = Spy()
    method.ddp_modules = {"semantic": spy}
    list(method.losses(batch, 0))
    ((x, t, seen),) = spy.seen
    assert torch.equal(seen, batch["picture"])
    x_0 = batch["mean"] + (batch["logvar"] / 2).exp() * rng.normal(0, "posterior", batch["position"], x.shape[1:])
    eps = rng.normal(0, "noise", batch["position"], x.shape[1:])
    assert torch.equal(t, sample_timesteps(method.config.timestep_sampling, 0, batch["position"], 16, STEPS))
    torch.testing.assert_close(x, method.schedule.add_noise(x_0, eps, t).float())


@pytest.mark.parametrize("target", ["eps", "v"])
def test_the_loss_is_that_of_the_target(pictures, tmp_path, target):
    method = method_of(pictures, tmp_path, prediction_type=target)
    method.ddp_modules = {"semantic": Spy()}
    batch = method.batches.__getitems__(PLACES)
    ((player, loss, logs),) = method.losses(batch, 0)
    t = sample_timesteps(method.config.timestep_sampling, 0, batch["position"], 16, STEPS)
    a, s = (c.view(-1, 1, 1, 1) for c in method.schedule.alpha_sigma(t))
    eps = rng.normal(0, "noise", batch["position"], (3, 8, 8))
    truth = eps if target == "eps" else a * eps - s * batch["mean"]
    assert loss.item() == pytest.approx(truth.square().mean().item(), rel=1e-5)
    assert (player, logs) == ("semantic", {})


def test_encoder_and_decoder_are_one_player_and_both_are_averaged(pictures, tmp_path):
    method = method_of(pictures, tmp_path)
    (module,) = method.modules.values()
    assert set(method.ema_modules) == {"encoder", "unet"}
    owned = {id(p) for p in module.parameters()}
    assert owned == {id(p) for part in method.ema_modules.values() for p in part.parameters()}


def test_heldout_losses_do_not_depend_on_the_batch_or_on_the_run_seed(pictures, tmp_path):
    one, other = (method_of(pictures, tmp_path, seed=seed) for seed in (0, 3))
    perturbed(one.module)
    perturbed(other.module).train()
    found = one.heldout_loss(batch_size=64)
    assert other.heldout_loss(batch_size=5) == pytest.approx(found)
    assert other.module.training


def test_other_pictures_are_other_data(pictures, tmp_path):
    fingerprint = method_of(pictures, tmp_path).batches.fingerprint
    other = two_factors(tmp_path / "other", 50)
    assert method_of(other, tmp_path).batches.fingerprint != fingerprint
    assert method_of(pictures, tmp_path).batches.fingerprint == fingerprint


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"schedule": {"kind": "flow"}}, "flow goes with prediction_type flow"),
        ({"schedule": {"kind": "linear", "zero_terminal": True}}, "prediction_type 'eps' is undefined"),
        ({"prediction_type": "x0"}, "prediction_type"),
        ({"sample": {"encode_steps": 300}}, "sample asks for 300 steps"),
        ({"timestep_sampling": {"density": "loss_second_moment"}}, "is for a bound"),
        ({"encoder": {"kind": "third"}}, "encoder.kind"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(more, said):
    with pytest.raises(UserError, match=said) as refused:
        checked(DIFFAE, "pictures", "run", **more)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("latents", [False, True])
def test_a_finished_run_leaves_a_whole_model_with_statistics_of_plain_pictures(
    pictures, autoencoder, tmp_path, latents
):
    method = method_of(pictures, tmp_path, flip=True, autoencoder=autoencoder if latents else None)
    perturbed(method.module)
    method.module.train()
    run = tmp_path / "run"
    run.mkdir()
    assert set(method.evaluate(8, run)) == {"heldout_loss", "heldout_mse_inferred", "heldout_mse_random"}
    assert (run / "pictures" / "decoded-00000008.png").exists()
    assert method.module.training
    line = '{"step": 8, "semantic_loss": 1.0, "heldout_loss": 1, "heldout_mse_inferred": 1, "heldout_mse_random": 1}'
    (run / "metrics.jsonl").write_text(line)
    method.finish(run)
    model = SemanticModel.load(run)
    whole = load(method.config.data).train
    z = model.encode(whole.pictures(range(len(whole))))
    torch.testing.assert_close(model.mean, z.mean(0))
    torch.testing.assert_close(model.std, z.std(0, correction=0))
    both = model.encode(torch.cat([whole.pictures(range(len(whole))), whole.pictures(range(len(whole))).flip(3)]))
    assert not torch.allclose(model.mean, both.mean(0), atol=1e-4)
    shown = method.data.heldout.pictures(range(2))
    assert torch.equal(model.encode(shown), method.model().encode(shown))
    assert (model.resolution, model.channels, model.z_width) == (8, 3, 8)
    with pytest.raises(UserError, match="holds a semantic model, which samples from codes"):
        Pipeline.load(run / "model")


def test_reconstructions_that_are_not_finite_cost_their_grid_alone(pictures, tmp_path, monkeypatch, caplog):
    method = method_of(pictures, tmp_path)

    def fail(*arguments):
        raise NonFiniteError("the U-Net gives numbers that are not finite")

    monkeypatch.setattr(SemanticModel, "decode", fail)
    metrics = method.evaluate(3, tmp_path / "run")
    assert set(metrics) == {"heldout_loss"}
    assert "no sample pictures of step 3: the U-Net gives" in caplog.text
    assert not [*(tmp_path / "run").rglob("*.png")]


def test_evaluation_mode_is_left_as_it_was_in_every_part():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    net[1].eval()
    with eval_mode(net):
        assert not any(part.training for part in net.modules())
    assert [part.training for part in net.modules()] == [True, True, False, False]
