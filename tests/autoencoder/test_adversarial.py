import pytest
import torch
from pydantic import ValidationError

from autoencoder.adversarial import adaptive_weight, frozen, two_player
from autoencoder.base import Autoencode, AutoencoderError
from autoencoder.discriminator import Discriminator, DiscriminatorConfig
from autoencoder.kl import KLConfig, build_kl
from autoencoder.loss import AdversarialConfig, AutoencoderLoss, LossConfig

X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
NOISE = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def modules():
    torch.manual_seed(0)
    config = KLConfig(resolution=16, widths=(8, 16), norm_num_groups=4, latent_channels=2)
    return Autoencode(build_kl(config)), Discriminator(DiscriminatorConfig(width=8, layers=1, groups=4))


def play(modules, step=0, balance="ldm", **game):
    wrapped, judge = modules
    loss = AutoencoderLoss(LossConfig(balance=balance, adversarial=AdversarialConfig(**{"start": 0, **game})))
    return two_player(
        X,
        wrapped(X, NOISE),
        step,
        loss=loss,
        last_layer=wrapped.last_layer,
        discriminate=judge,
        raw_discriminator=judge,
    )


def test_each_player_moves_only_itself(modules):
    wrapped, judge = modules
    turns = []
    for player, loss, _ in play(modules):
        loss.backward()
        turns.append(player)
        moved = [any(p.grad is not None for p in m.parameters()) for m in modules]
        assert moved == [player == "autoencoder", player == "discriminator"]
        wrapped.zero_grad(), judge.zero_grad()
        assert all(p.requires_grad for p in judge.parameters()) == (player == "discriminator")
    assert turns == ["autoencoder", "discriminator"]
    assert all(p.requires_grad for p in judge.parameters())


def test_the_autoencoder_runs_once_and_the_discriminator_once_for_each_player(modules):
    calls = []
    for module in modules:
        module.register_forward_hook(lambda m, _, __: calls.append(type(m).__name__))
    for _, loss, _ in play(modules):
        loss.backward()
    assert calls == ["Autoencode", "Discriminator", "Discriminator"]


def test_the_game_reaches_the_decoder(modules):
    grads = []
    for start in (0, 9):
        modules[0].zero_grad()
        _, loss, logs = next(play(modules, start=start))
        loss.backward()
        grads.append(modules[0].last_layer.grad.clone())
        assert (logs["lambda"] > 0) == (start == 0)
    assert (grads[0] - grads[1]).norm() > 0.1 * grads[1].norm()


def test_before_the_start_nobody_asks_the_discriminator(modules):
    modules[1].register_forward_hook(lambda *_: pytest.fail("the discriminator was asked"))
    assert [turn[0] for turn in play(modules, step=4, start=5)] == ["autoencoder"]


def test_the_discriminator_may_learn_first(modules):
    turns = list(play(modules, step=4, start=5, discriminator_start=2))
    assert [t[0] for t in turns] == ["autoencoder", "discriminator"]
    assert turns[0][2]["lambda"] == 0
    assert set(turns[0][2]) >= {"loss", "pixel", "perceptual", "kl", "nll", "codebook", "g", "lambda"}
    assert set(turns[1][2]) == {"d_loss", "d_accuracy"}
    assert not any(v.requires_grad for t in turns for v in t[2].values())


def test_lambda_is_the_ratio_of_norms_by_hand():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    nll, g = 3 * w[0] + 4 * w[1], w[1] / 2
    assert adaptive_weight(nll, g, w, 1e3) == pytest.approx(5 / (0.5 + 1e-4))
    assert adaptive_weight(nll, g, w, 7.0) == 7
    assert not adaptive_weight(nll, g, w, 1e3).requires_grad


@pytest.mark.parametrize("pixel", ["l1", "l2"])
def test_lambda_weighs_the_whole_likelihood_against_the_generator_s_loss(modules, pixel):
    """Pixels, perceptual distance and learned scale together over -mean(D(fake)), by the formulas of the papers."""
    wrapped, judge = Autoencode(modules[0].vae, learned_scale=True), modules[1]
    with torch.no_grad():
        wrapped.log_scale.fill_(-1.5)
    settings = {"balance": "custom", "kl_weight": 0.1, "perceptual_weight": 3.0, "learned_scale": True, "pixel": pixel}
    loss = AutoencoderLoss(LossConfig(**settings, adversarial=AdversarialConfig(start=0, weight=0.5)), Corner())
    made = wrapped(X, NOISE)
    error = (made.picture - X).abs() if pixel == "l1" else (made.picture - X).square()
    error = error.mean((1, 2, 3)) + 3.0 * made.picture[:, :, 0, 0].square().sum(1)
    nll = (error / torch.exp(torch.tensor(-1.5)) - 1.5).mean()
    norms = [
        torch.autograd.grad(f, wrapped.last_layer, retain_graph=True)[0].norm()
        for f in (nll, -judge(made.picture).mean())
    ]
    game = two_player(X, made, 0, loss=loss, last_layer=wrapped.last_layer, discriminate=judge, raw_discriminator=judge)
    torch.testing.assert_close(next(game)[2]["lambda"], 0.5 * norms[0] / (norms[1] + 1e-4))


class Corner(torch.nn.Module):
    """A perceptual distance: how far the first pixel is from grey."""

    def forward(self, x, y):
        return x[:, :, 0, 0].square().sum(1)


def test_lambda_survives_gradients_that_float16_cannot_hold():
    layer, x = torch.nn.Conv2d(3, 3, 3, padding=1), torch.rand(4, 3, 128, 128)

    def ratio():
        y = layer(x).float()
        return adaptive_weight(y.square().mean(), 3 * y.mean(), layer.weight, 1e3)

    expected = ratio()
    with torch.autocast("cpu", torch.float16):
        found = ratio()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


def test_lambda_is_the_same_on_two_ranks():
    """Two ranks with half a batch each: averaging gradients before the norms gives the whole batch's lambda."""
    w, data = (
        torch.tensor([1.0, -2.0], requires_grad=True),
        torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(3)),
    )

    def terms(part):
        return (part @ w).square().mean(), (part @ w).sin().mean()

    grads = [[torch.autograd.grad(f, w)[0] for f in terms(part)] for part in data]
    means = iter((a + b) / 2 for a, b in zip(*grads, strict=True))
    on_a_rank = adaptive_weight(*terms(data[0]), w, 1e3, average=lambda _: next(means))
    torch.testing.assert_close(on_a_rank, adaptive_weight(*terms(data.flatten(0, 1)), w, 1e3))


def test_the_weight_scales_the_game_s_share_of_the_gradient(modules):
    _, _, half = next(play(modules, weight=0.5))
    _, _, ramped = next(play(modules, weight=0.5, ramp=2))
    _, _, fixed = next(play(modules, weight=0.5, adaptive=False))
    torch.testing.assert_close(ramped["lambda"], half["lambda"] / 2)
    assert fixed["lambda"] == 0.5


def test_a_learned_scale_gets_a_gradient(modules):
    wrapped = Autoencode(modules[0].vae, learned_scale=True)
    _, loss, logs = next(play((wrapped, modules[1]), balance="elbo"))
    loss.backward()
    assert wrapped.log_scale.grad != 0
    assert logs["log_scale"] == 0


def test_without_a_game_there_is_one_player(modules):
    loss = AutoencoderLoss(LossConfig())
    turns = two_player(X, modules[0](X, NOISE), 0, loss=loss, last_layer=modules[0].last_layer)
    assert [turn[0] for turn in turns] == ["autoencoder"]
    loss = AutoencoderLoss(LossConfig(adversarial=AdversarialConfig()))
    with pytest.raises(AutoencoderError, match="pass discriminate"):
        next(two_player(X, modules[0](X, NOISE), 0, loss=loss, last_layer=modules[0].last_layer))


def test_freezing_ends_even_when_the_loop_breaks_off(modules):
    turns = play(modules)
    next(turns)
    assert not any(p.requires_grad for p in modules[1].parameters())
    turns.close()
    assert all(p.requires_grad for p in modules[1].parameters())
    modules[1].body[0].bias.requires_grad_(False)
    with frozen(modules[1]):
        pass
    assert not modules[1].body[0].bias.requires_grad


def test_a_few_steps_teach_the_discriminator(modules):
    optimiser = torch.optim.Adam(modules[1].parameters(), lr=5e-3)
    accuracy = []
    for step in range(12):
        for player, loss, logs in play(modules, step=step, start=1000, discriminator_start=0):
            if player == "discriminator":
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                accuracy.append(logs["d_accuracy"].item())
    assert accuracy[-1] > 0.9


@pytest.mark.parametrize("norm", ["group", "batch", "spectral", "none"])
def test_patch_logits_have_the_known_sizes(norm):
    with torch.device("meta"):
        judge = Discriminator(DiscriminatorConfig(norm=norm))
        if norm != "spectral":
            assert judge(torch.empty(1, 3, 256, 256)).shape == (1, 1, 30, 30)
            assert judge(torch.empty(1, 3, 64, 64)).shape == (1, 1, 6, 6)
    small = Discriminator(DiscriminatorConfig(norm=norm, width=4, groups=2))
    assert small(torch.rand(2, 3, 32, 32)).shape == (2, 1, 2, 2)


def test_a_discriminator_complains_of_small_pictures_and_odd_groups():
    with pytest.raises(AutoencoderError, match="at least 24 px, got 16x16"):
        Discriminator(DiscriminatorConfig(width=8, groups=4))(X)
    with pytest.raises(ValidationError, match="does not divide 20"):
        DiscriminatorConfig(width=10)
