"""Losses of the latent method: configs, what trains, and that a loss-aware density is exact under any split."""

import warnings

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.diffusion.timesteps import HISTORY
from ldm_kit.methods.inputs import noise_batch
from ldm_kit.methods.latent import Latent, LatentRun
from ldm_kit.methods.train import open_method, train
from ldm_kit.training import checkpoint
from ldm_kit.training.checkpoint import load_tensors
from tests.training.helpers import STAGE_2, picture_folder, play, ranks, reset, settings, tensors_of

HYBRID = ("variance=learned_range", "prediction_type=eps")
AWARE = (
    *HYBRID,
    "loss=vlb",
    "timestep_sampling.density=loss_second_moment",
    "schedule.num_train_timesteps=2",
    "sample.steps=2",
)
EXACT = ("unet.dropout=0", "train.steps=8")
STATE = "model/state.safetensors"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture(scope="module")
def aware(pictures, tmp_path_factory):
    """An uninterrupted run of a loss-aware density, whose history is full after a few steps."""
    run = tmp_path_factory.mktemp("aware") / "run"
    return play(settings(STAGE_2, pictures, run, *AWARE, *EXACT)), run


def checked(*overrides):
    return settings(STAGE_2, "pictures", "run", *overrides)


def test_a_learned_variance_is_trained_by_the_hybrid_loss():
    assert checked(*HYBRID).loss == "hybrid"
    assert checked(*HYBRID, "loss=vlb").loss == "vlb"
    assert checked().loss == "simple"
    config = checked(*HYBRID)
    assert LatentRun.model_validate(config.model_dump()) == config


PURE_NOISE = "schedule={kind: given, num_train_timesteps: 2, betas: [0.5, 1]}"
FLOW = ("prediction_type=flow", "schedule.kind=flow")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((*FLOW, "variance=learned_range"), "variance learned_range needs the variational bound"),
        ((*FLOW, "loss=vlb"), "loss vlb needs the variational bound"),
        (("variance=learned_range", "loss=simple"), "loss simple never trains the variance"),
        (("loss=hybrid",), "variance is small, which is fixed"),
        (("loss=hybrid", "variance=large"), "variance is large, which is fixed"),
        (("loss=vlb", "min_snr=5"), "min_snr weighs the squared error"),
        (("vb_weight=0",), "vb_weight"),
        ((PURE_NOISE, "prediction_type=eps"), "ends in pure noise"),
        (("variance=learned",), "variance"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(overrides, said):
    with pytest.raises(UserError, match=said) as refused:
        checked(*overrides)
    assert "\n" not in str(refused.value)


def test_the_network_says_a_variance_for_every_channel(pictures, tmp_path):
    config = settings(STAGE_2, pictures, tmp_path / "run", *HYBRID, "data.heldout=0.3")
    method = open_method(config)
    unet = method.module.unet
    assert (unet.config["in_channels"], unet.config["out_channels"]) == (3, 6)
    assert method.objective.levels
    batch = method.batches.__getitems__([(i, i) for i in range(8)])
    ((player, loss, logs),) = method.losses(batch, 0)
    assert player == "denoiser"
    assert loss.isfinite()
    assert logs.keys() == {"vb"}
    assert method.heldout is not None
    assert method.heldout_loss() > 0


def test_a_latent_models_bound_has_no_levels(pictures):
    from conditioning.none import NoCondition
    from ldm_kit.methods.latent import Latent

    config = settings(STAGE_2, pictures, "run", *HYBRID, "autoencoder=somewhere")
    assert not Latent(config, torch.nn.Conv2d(1, 1, 1), NoCondition()).objective.levels


def test_hybrid_training_logs_the_bound(pictures, tmp_path):
    played = play(settings(STAGE_2, pictures, tmp_path / "run", *HYBRID, "train.steps=3"))
    assert len(played.numbers("vb")) == 3
    assert (played.numbers("denoiser_loss") > 0.001 * 50 * played.numbers("vb")).all()
    plain = play(settings(STAGE_2, pictures, tmp_path / "plain", "train.steps=1"))
    assert "vb" not in plain.lines[0]


def errors_of(method, batch, t):
    return method.errors(noise_batch(batch, t, method.config.seed, method.schedule), batch["inputs"], method.module)


def test_min_snr_weighs_the_loss_that_trains_and_not_the_one_held_out(pictures, tmp_path):
    exact = ("unet.dropout=0", "condition_dropout=0", "data.heldout=0.3")
    method, plain = (
        open_method(settings(STAGE_2, pictures, tmp_path / "run", *exact, *more)) for more in (["min_snr=0.5"], [])
    )
    plain.module.load_state_dict(method.module.state_dict())
    batch = method.batches.__getitems__([(i, i) for i in range(8)])
    t, _ = method.times.draw(batch["position"])
    errors = errors_of(method, batch, t).simple
    a, s = method.schedule.alpha_sigma(t)
    weights = torch.minimum(a.square(), 0.5 * s.square())  # of v, whose squared error times s^2 is that of x_0
    ((_, loss, _),) = method.losses(batch, 0)
    assert loss.item() == pytest.approx((weights * errors).mean().item(), rel=1e-5)
    ((_, loss, _),) = plain.losses(batch, 0)
    assert loss.item() == pytest.approx(errors.mean().item(), rel=1e-5)
    assert method.heldout_loss() == pytest.approx(plain.heldout_loss())


def test_importance_weights_undo_a_loss_aware_density(pictures, tmp_path):
    method = open_method(settings(STAGE_2, pictures, tmp_path / "run", *AWARE, "unet.dropout=0", "condition_dropout=0"))
    method.times.history.losses[:] = torch.tensor([[1.0], [3.0]])
    method.times.history.seen[:] = HISTORY
    batch = method.batches.__getitems__([(i, i) for i in range(8)])
    t, weight = method.times.draw(batch["position"])
    assert weight.unique().numel() == 2
    bits = errors_of(method, batch, t).bits
    ((_, loss, logs),) = method.losses(batch, 0)
    assert loss.item() == pytest.approx((bits * weight).mean().item(), rel=1e-5)
    assert logs["vb"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert abs(loss.item() / bits.mean().item() - 1) > 0.01


def test_evaluations_and_the_finished_model_have_the_averages(pictures, tmp_path, monkeypatch):
    seen = {}

    def evaluate(self, step, folder):
        seen[step] = self.module.unet.conv_in.weight.detach().clone()
        return {}

    monkeypatch.setattr(Latent, "evaluate", evaluate)
    more = ("train.steps=2", "train.checkpoint_every=1", "train.keep_last=9", "log.evaluate_every=1", "optim.lr=1e-2")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        model = train(settings(STAGE_2, pictures, tmp_path / "run", *more))
    reset()
    for step, path in checkpoint.steps(tmp_path / "run").items():
        average = load_tensors(path / "ema" / "unet.safetensors")["conv_in.weight"]
        last = load_tensors(path / "model" / "denoiser.safetensors")["unet.conv_in.weight"]
        assert torch.equal(seen[step], average)
        assert step == 1 or not torch.equal(average, last)
    assert torch.equal(load_tensors(model / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"], seen[2])


def test_held_out_losses_are_without_dropout(pictures, tmp_path):
    method = open_method(settings(STAGE_2, pictures, tmp_path / "run", "unet.dropout=0.5", "data.heldout=0.3"))
    losses = []
    for training in (True, True, False):
        method.module.train(training)
        losses.append(method.heldout_loss())
        assert method.module.unet.training == training, "as it was before"
    assert losses[0] == losses[1] == losses[2]


def history(run):
    return load_tensors(next(iter(checkpoint.steps(run).values())) / STATE)


def test_a_loss_aware_density_is_learned(aware):
    _, run = aware
    state = history(run)
    assert int(state["times.seen"].sum()) == 64  # once per picture of every step
    assert (state["times.seen"] >= 10).all()
    assert (state["times.losses"] > 0).all()


@pytest.mark.parametrize("at", [2, 6])  # before the history is full, and after
def test_it_resumes_bit_for_bit(at, aware, pictures, tmp_path):
    whole, run = aware
    part = play(settings(STAGE_2, pictures, tmp_path / "run", *AWARE, *EXACT, f"train.checkpoint_every={at}"), until=at)
    rest = play(settings(STAGE_2, pictures, tmp_path / "run", *AWARE, *EXACT, "train.checkpoint_every=100"), "latest")
    assert part.lines + rest.lines == whole.lines
    assert rest.weights == whole.weights
    assert tensors_of(tmp_path / "run" / "checkpoint-00000008") == tensors_of(run / "checkpoint-00000008")


def close_to(whole, run, played, other):
    """Whether a run drew the same times and learned the same, but for rounding."""
    expected, found = history(run), history(other)
    assert torch.equal(found["times.seen"], expected["times.seen"])
    torch.testing.assert_close(found["times.losses"], expected["times.losses"], rtol=1e-4, atol=0)
    torch.testing.assert_close(played.numbers("vb"), whole.numbers("vb"), rtol=1e-4, atol=0)


def test_accumulation_changes_nothing(aware, pictures, tmp_path):
    whole, run = aware
    played = play(settings(STAGE_2, pictures, tmp_path / "run", *AWARE, *EXACT, "train.micro_batch=2"))
    close_to(whole, run, played, tmp_path / "run")


@pytest.mark.slow
def test_two_processes_learn_what_one_does(aware, pictures, tmp_path):
    whole, run = aware
    config = settings(STAGE_2, pictures, tmp_path / "run", *AWARE, *EXACT, "train.micro_batch=2")
    first, second = ranks(2, play, config, folder=tmp_path / "said")
    assert first.weights == second.weights
    assert first.lines == second.lines
    close_to(whole, run, first, tmp_path / "run")
