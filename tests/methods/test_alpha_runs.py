"""A loss mask from alpha: what is transparent changes no loss, whatever pixels lie there."""

import pytest
import torch
from torch import nn

from autoencoder.adversarial import two_player
from autoencoder.base import Moments, Reconstruction
from autoencoder.equivariance import Move, moved_weights
from autoencoder.loss import AutoencoderLoss, LossConfig
from autoencoder.loss_terms import laid_over, pixel_error
from ldm_kit.config import UserError
from ldm_kit.diffusion import schedule
from ldm_kit.diffusion.loss import Objective, weighted_mean
from ldm_kit.methods.train import open_method
from tests.data.test_alpha import folder, rgba
from tests.training.helpers import CLASSIFIER, DIFFAE, KL, TEXT, VQ, play, settings

MASK = ("data.alpha=mask", "data.heldout=0.2", "train.steps=4")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


def test_a_weighted_mean_in_closed_form():
    values = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]] * 2)
    weight = torch.tensor([[[[1.0, 0.5], [0.0, 0.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    expected = torch.tensor([(1 + 1 + 5 + 3) / 3.0, 0.0])
    torch.testing.assert_close(weighted_mean(values, weight), expected)
    torch.testing.assert_close(weighted_mean(values), values.mean((1, 2, 3)))
    torch.testing.assert_close(weighted_mean(values, torch.full((2, 1, 2, 2), 0.3)), values.mean((1, 2, 3)))
    torch.testing.assert_close(pixel_error(values, torch.zeros_like(values), "l1", weight), expected)
    squares = torch.tensor([(1 + 2 + 25 + 18) / 3.0, 0.0])
    torch.testing.assert_close(pixel_error(values, torch.zeros_like(values), "l2", weight), squares)


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_outputs_where_the_weight_is_0_change_no_loss(target):
    table = schedule.build(schedule.ScheduleConfig(num_train_timesteps=10))
    x_0, eps, out = (random(3, 2, 4, 4, seed=seed) for seed in range(3))
    t = torch.tensor([1, 5, 9])
    weight = torch.rand(3, 1, 4, 4, generator=generator())
    weight[:, :, :2] = 0
    objective = Objective(target)
    out.requires_grad_()
    loss = objective.errors(out, x_0, eps, t, table, weight=weight).simple
    (gradient,) = torch.autograd.grad(loss.sum(), out)
    assert gradient[:, :, :2].abs().max() == 0
    assert gradient[:, :, 2:].abs().min() > 0
    other = x_0.clone()
    other[:, :, :2] += 7
    assert torch.equal(objective.errors(out, other, eps, t, table, weight=weight).simple, loss)
    part = objective.errors(out[:, :, 2:], x_0[:, :, 2:], eps[:, :, 2:], t, table, weight=weight[:, :, 2:]).simple
    torch.testing.assert_close(part, loss)


class Distance(nn.Module):
    """A perceptual distance of toy features."""

    def forward(self, x, y):
        return (x.roll(1, 3) * x - y.roll(1, 3) * y).abs().flatten(1).mean(1)


GAME = {"start": 0, "discriminator_start": 0, "adaptive": False}
CONFIG = {"balance": "custom", "kl_weight": 0.1, "perceptual_weight": 0.5, "learned_scale": False, "adversarial": GAME}


def sides(picture, x, weight, pixel):
    """All losses of a stage-1 step for given reconstructions."""
    moments = Moments(random(2, 1, 2, 2, seed=5), random(2, 1, 2, 2, seed=6))
    made = Reconstruction(picture, moments, torch.zeros(()))
    torch.manual_seed(0)
    judge = nn.Conv2d(3, 1, 3)
    last = nn.Parameter(torch.ones(()))
    loss = AutoencoderLoss(LossConfig(**CONFIG, pixel=pixel), Distance())
    game = {"discriminate": judge, "raw_discriminator": judge, "weight": weight}
    terms = two_player(x, made, 0, loss=loss, last_layer=last, **game)
    return {f"{name}.{key}": value for name, total, logs in terms for key, value in {**logs, "total": total}.items()}


@pytest.mark.parametrize("pixel", ["l1", "l2"])
def test_reconstructions_where_the_weight_is_0_change_no_loss_of_stage_1(pixel):
    x, picture = random(2, 3, 8, 8), random(2, 3, 8, 8, seed=1).requires_grad_()
    weight = torch.rand(2, 1, 8, 8, generator=generator())
    weight[:, :, :4] = 0
    first = sides(picture, x, weight, pixel)
    assert {"autoencoder.perceptual", "autoencoder.g", "discriminator.total"} <= first.keys()
    other = picture.detach().clone()
    other[:, :, :4] += 3
    second = sides(other.requires_grad_(), x, weight, pixel)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    (gradient,) = torch.autograd.grad(first["autoencoder.total"], picture)
    assert gradient[:, :, :4].abs().max() == 0
    assert gradient[:, :, 4:].abs().max() > 0
    opaque, plain = (sides(picture, x, w, pixel) for w in (torch.ones(2, 1, 8, 8), None))
    for name, value in plain.items():
        torch.testing.assert_close(opaque[name], value, msg=name)
    for name in ("autoencoder.pixel", "autoencoder.perceptual", "autoencoder.g", "discriminator.total"):
        assert not torch.equal(plain[name], first[name]), name


def test_a_reconstruction_is_laid_over_the_picture():
    x, made, weight = torch.zeros(1, 1, 1, 3), torch.ones(1, 1, 1, 3), torch.tensor([[[[0.0, 0.25, 1.0]]]])
    assert laid_over(made, x, weight).tolist() == [[[[0.0, 0.25, 1.0]]]]
    assert laid_over(made, x, None) is made


def test_weights_move_with_their_pictures():
    weight = torch.zeros(1, 1, 16, 16)
    weight[..., :8] = 1
    move = Move(4, 8, 1)
    moved = moved_weights(weight, None, move)
    torch.testing.assert_close(moved, move(weight).clamp(0, 1))
    assert moved.shape == (1, 1, 8, 8)
    assert moved[0, 0, -1, 3] == 1, "left is below after a quarter turn"


@pytest.mark.parametrize("tree", [KL, VQ, TEXT], ids=["kl", "vq", "text"])
def test_pixels_under_alpha_0_change_no_training(tree, tmp_path):
    """Two sets of files, which differ where they are transparent: the same losses and weights, bit for bit."""
    runs = {}
    for name, pixels in {"a": rgba(16), "b": rgba(16, hidden=1), "c": rgba(16, seed=2)}.items():
        root = folder(tmp_path / name / "in", pixels)
        runs[name] = play(settings(tree, root, tmp_path / name / "run", *MASK))
    assert runs["a"].lines == runs["b"].lines
    assert runs["a"].weights == runs["b"].weights
    assert runs["a"].lines != runs["c"].lines


def test_losses_of_both_sets_are_weighted(tmp_path):
    """The network is in evaluation mode: dropout would tell two passes apart."""
    root = folder(tmp_path / "in", rgba(16))
    method = open_method(settings(TEXT, root, tmp_path / "run", *MASK))
    batch = method.heldout.__getitems__([(0, 0), (1, 1)])
    weight = batch["weight"]
    assert weight.shape == (2, 1, 16, 16)
    t = torch.tensor([10, 40])
    method.set_ddp_modules(method.modules)
    method.module.eval()
    first = method.heldout_losses(batch, t, 0)
    plain = method.heldout_losses({name: value for name, value in batch.items() if name != "weight"}, t, 0)
    opaque = method.heldout_losses({**batch, "weight": torch.ones_like(weight)}, t, 0)
    torch.testing.assert_close(plain, opaque)
    assert not torch.allclose(first, plain)
    trained = [next(method.losses(some, 0))[1] for some in (batch, {**batch, "weight": torch.ones_like(weight)})]
    assert not torch.allclose(*trained)


def test_latents_have_weights_by_area(tmp_path):
    root = folder(tmp_path / "in", rgba(16))
    method = open_method(settings(KL, root, tmp_path / "ae", *MASK))
    method.save_model(tmp_path / "model")
    tuned = settings(TEXT, root, tmp_path / "run", *MASK, f"autoencoder={tmp_path / 'model'}")
    batch = open_method(tuned).batches.__getitems__([(0, 3)])
    assert batch["weight"].shape == (1, 1, *batch["mean"].shape[-2:])
    assert batch["weight"].shape[-1] < 16
    assert batch["weight"].min() == 0
    assert batch["weight"].max() == 1


@pytest.mark.parametrize(
    ("tree", "override", "sentence"),
    [
        (CLASSIFIER, "data.alpha=mask", "weighs the loss of methods autoencoder and latent, not that of classifier"),
        (DIFFAE, "data.alpha=mask", "weighs the loss of methods autoencoder and latent, not that of diffae"),
        ({**TEXT, "variance": "learned_range"}, "data.alpha=mask", "not the bound in loss hybrid; expected simple"),
    ],
)
def test_losses_without_weights_are_refused(tree, override, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        settings(tree, tmp_path, tmp_path / "run", override)


def test_stage_1_counts_pixels_by_alpha(tmp_path):
    method = open_method(settings(KL, folder(tmp_path / "in", rgba(16)), tmp_path / "run", *MASK))
    method.set_ddp_modules(method.modules)
    batch = method.batches.__getitems__([(i, i) for i in range(4)])
    plain = {name: value for name, value in batch.items() if name != "weight"}
    terms = [next(method.losses(some, 9))[2] for some in (batch, plain, {**batch, "weight": torch.ones(4, 1, 16, 16)})]
    assert not torch.allclose(terms[0]["pixel"], terms[1]["pixel"])
    assert not torch.allclose(terms[0]["g"], terms[1]["g"])
    torch.testing.assert_close(terms[1]["pixel"], terms[2]["pixel"])


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_equivariance_moves_the_weights_with_the_pictures(share, tmp_path):
    """Pictures are scaled before they are encoded, or with their latents: weights of another size would not fit."""
    more = f"equivariance={{share: {share}, small: 1.0, least: 0.5}}"
    root = folder(tmp_path / "in", rgba(16))
    losses = play(settings(KL, root, tmp_path / "run", *MASK, more)).numbers("autoencoder_loss")
    assert losses.isfinite().all()
    assert len(losses) == 4
