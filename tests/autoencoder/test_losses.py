import math

import pytest
import torch
from pydantic import ValidationError
from torch.distributions import Laplace, Normal, kl_divergence

from autoencoder import loss_terms
from autoencoder.base import AutoencoderError, Moments, Reconstruction
from autoencoder.loss import AdversarialConfig, AutoencoderLoss, LossConfig


def made(b=3, s=None):
    torch.manual_seed(0)
    moments = Moments(torch.randn(b, 4, 2, 2), torch.randn(b, 4, 2, 2))
    return Reconstruction(torch.randn(b, 3, 8, 8), moments, torch.zeros(()), None, s)


def test_kl_equals_torch_distributions():
    moments = made().moments
    posterior = Normal(moments.mean, torch.exp(moments.logvar / 2))
    torch.testing.assert_close(
        loss_terms.kl_divergence(moments), kl_divergence(posterior, Normal(0, 1)).sum((1, 2, 3)), rtol=1e-4, atol=1e-4
    )


def test_our_units_are_ldm_s_sum_convention_over_the_number_of_pixels():
    x, got = torch.randn(3, 3, 8, 8), made()
    ldm = ((x - got.picture).abs().sum() + 1e-6 * loss_terms.kl_divergence(got.moments).sum()) / len(x)
    ours = AutoencoderLoss(LossConfig(balance="ldm"))(x, got).total
    torch.testing.assert_close(ours, ldm / x[0].numel())


def test_the_kl_weight_is_that_of_means_times_the_ratio_of_sizes():
    x, got = torch.randn(3, 3, 8, 8), made()
    terms = AutoencoderLoss(LossConfig(balance="ldm"))(x, got)
    mean_kl = loss_terms.kl_divergence(got.moments).mean() / got.moments.mean[0].numel()
    torch.testing.assert_close(terms.kl, got.moments.mean[0].numel() / x[0].numel() * mean_kl)


def test_the_learned_scale_is_a_laplace_likelihood():
    x, y, s = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8), torch.tensor(0.7)
    exact = -Laplace(y, s.exp()).log_prob(x).mean() - math.log(2)
    torch.testing.assert_close(loss_terms.nll(loss_terms.pixel_error(x, y), s)[0], exact)


def test_the_best_scale_is_the_mean_error():
    error, s = torch.tensor([0.3]), torch.tensor(math.log(0.3), requires_grad=True)
    loss_terms.nll(error, s).sum().backward()
    assert s.grad == pytest.approx(0, abs=1e-6)


def test_elbo_refuses_an_autoencoder_without_a_scale_and_the_reverse():
    x = torch.randn(3, 3, 8, 8)
    for balance, s in (("elbo", None), ("ldm", torch.zeros(()))):
        with pytest.raises(AutoencoderError, match="learned_scale"):
            AutoencoderLoss(LossConfig(balance=balance))(x, made(s=s))


def test_balances_are_not_mixed_unknowingly():
    assert LossConfig(balance="elbo").kl_weight == 1.0
    assert LossConfig(balance="elbo").perceptual_weight == 0.25
    assert LossConfig(balance="ldm", perceptual_weight=0.1).kl_weight == 1e-6
    with pytest.raises(ValidationError, match="means kl_weight"):
        LossConfig(balance="elbo", kl_weight=1e-6)
    with pytest.raises(ValidationError, match="needs perceptual_weight, learned_scale too"):
        LossConfig(balance="custom", kl_weight=1e-3)
    config = LossConfig(balance="custom", kl_weight="1e-3", perceptual_weight=0.5, learned_scale=False)
    assert LossConfig(**config.model_dump()) == config


def test_discriminator_losses():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.5])
    assert loss_terms.hinge_loss(real, fake) == pytest.approx(0.5 * (0.5 + 0.75))
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    expected = 0.5 * (bce(real, torch.ones(2)) + bce(fake, torch.zeros(2)))
    torch.testing.assert_close(loss_terms.vanilla_loss(real, fake), expected)
    assert loss_terms.generator_loss(fake) == pytest.approx(0.75)


def test_the_game_starts_and_ramps():
    game = AdversarialConfig(start=10, discriminator_start=5, ramp=4)
    assert [game.factor(s) for s in (9, 10, 11, 13, 99)] == [0.0, 0.25, 0.5, 1.0, 1.0]
    assert [game.discriminates(s) for s in (4, 5, 10)] == [False, True, True]
    assert AdversarialConfig(start=10).factor(10) == 1.0
    with pytest.raises(ValidationError, match="untrained discriminator"):
        AdversarialConfig(start=10, discriminator_start=11)
