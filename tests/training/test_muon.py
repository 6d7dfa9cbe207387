"""Muon: which weights it takes, that it moves the real ones, and that a resumed run goes on bit for bit."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim._muon import _zeropower_via_newtonschulz as zeropower

from ldm_kit.training import muon, optim
from ldm_kit.training.config import TrainConfig
from ldm_kit.training.ema import EmaConfig
from ldm_kit.training.loop import Trainer
from ldm_kit.training.muon import CUBIC, LINEAR, QUINTIC, Muon, MuonConfig, as_matrix, blocks, matrices, orthogonal
from ldm_kit.training.optim import OptimConfig
from tests.training.helpers import reset
from tests.training.toy import Numbers, Toy


def net(channels_last: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Embedding(80, 64), nn.Linear(64, 96), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 4, 3), nn.LayerNorm(64)
    )
    return made.to(memory_format=torch.channels_last) if channels_last else made


@pytest.mark.parametrize("channels_last", [False, True])
def test_it_takes_wide_matrices_and_convolutions_only(channels_last):
    made = net(channels_last)
    assert [w.shape for w in matrices(made)] == [made[1].weight.shape, made[2].weight.shape]
    both = optim.build("net", made, OptimConfig(muon=MuonConfig()))
    moved = [id(w) for optimiser in both.values() for w in optim.weights_of(optimiser)]
    assert sorted(moved) == sorted(id(w) for w in made.parameters())  # each weight by exactly one of the two


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_step_moves_the_weight_itself_along_an_orthogonal_matrix(channels_last):
    conv = net(channels_last)[2]
    before = conv.weight.detach().clone()
    optimiser = Muon([conv.weight], MuonConfig(lr=0.1), weight_decay=0.0)
    conv.weight.grad = torch.randn_like(conv.weight).contiguous()  # not the weight's layout: must be paired by element
    push = as_matrix(conv.weight.grad, conv.weight)
    optimiser.step()
    change = as_matrix((conv.weight - before).detach(), conv.weight)
    assert torch.linalg.svdvals(change / (0.1 * 0.2 * 576**0.5)).sub(1).abs().max() < 0.4  # Newton-Schulz is not exact
    assert torch.nn.functional.cosine_similarity(change.flatten(), -push.flatten(), dim=0) > 0.5


def test_it_moves_a_weight_whose_memory_was_changed_after_it_was_built():
    """Accelerate moves a module to cpu:0 on several processes, which copies the weights."""
    layer = nn.Linear(64, 96)
    optimiser = Muon([layer.weight], MuonConfig(), weight_decay=0.0)
    layer.weight.data = layer.weight.data.clone()
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.randn_like(layer.weight)
    optimiser.step()
    assert (layer.weight != before).float().mean() > 0.99


def train(made: nn.Sequential, optimisers: dict[str, torch.optim.Optimizer], steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 64, 5, 5, generator=torch.Generator().manual_seed(step))
        made[3](made[2](x)).square().mean().backward()
        for optimiser in optimisers.values():
            optimiser.step()
            optimiser.zero_grad()


@pytest.mark.parametrize("channels_last", [False, True])
def test_state_goes_through_dump_and_restore_bit_for_bit(channels_last):
    config = OptimConfig(muon=MuonConfig())
    whole = net(channels_last)
    train(whole, first := optim.build("net", whole, config), range(3))
    resumed = net(channels_last)
    resumed.load_state_dict(whole.state_dict())
    second = optim.build("net", resumed, config)
    for name, optimiser in second.items():
        optim.restore(optimiser, *optim.dump(first[name]))
    train(whole, first, range(3, 6))
    train(resumed, second, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_net_without_matrices_is_left_to_adamw():
    assert list(optim.build("net", nn.Conv2d(3, 8, 3), OptimConfig(muon=MuonConfig()))) == ["net"]


def test_a_net_of_matrices_alone_is_left_to_muon():
    """AdamW takes no empty list of weights."""
    net = nn.Sequential(nn.Linear(64, 80, bias=False), nn.Linear(80, 64, bias=False))
    optimisers = optim.build("net", net, OptimConfig(muon=MuonConfig()))
    assert list(optimisers) == ["net.muon"]
    assert optim.weights_of(optimisers["net.muon"]) == [*net.parameters()]


def test_a_net_of_matrices_alone_is_trained_by_muon_alone(monkeypatch):
    """The learning rate that is logged is then Muon's."""
    toy = Toy()
    toy.net = toy.modules["net"] = nn.Sequential(nn.Linear(4, 80, bias=False), nn.Linear(80, 4, bias=False))
    monkeypatch.setattr(muon, "MIN_SIDE", 4)
    config = OptimConfig(lr=0.1, warmup=0, muon=MuonConfig(lr=0.02))
    reset()
    steps = TrainConfig(steps=2, batch_size=4)
    running = Trainer(Accelerator(cpu=True), toy, {"net": config}, steps, EmaConfig(kind="none"), seed=1)
    before = [weight.clone() for weight in toy.net.parameters()]
    assert [step.lr for step in running.train(Numbers())] == [0.02, 0.02]
    assert not any(torch.equal(one, two) for one, two in zip(before, toy.net.parameters(), strict=True))


@pytest.mark.parametrize(("rows", "most", "count"), [(256, 64, 4), (96, 64, 2), (64, 64, 1), (130, 64, 5), (67, 64, 1)])
def test_blocks_are_equal(rows, most, count):
    assert blocks(rows, most) == count
    assert blocks(rows, None) == 1


def test_a_block_has_at_most_so_many_rows_or_all():
    for rows in range(64, 600):
        count = blocks(rows, 128)
        divisors = [n for n in range(1, rows + 1) if rows % n == 0 and rows / n <= 128]
        assert rows % count == 0
        assert count == divisors[0] if divisors[0] < 2 * -(-rows // 128) else count == 1


@pytest.mark.parametrize(("m", "n"), [(64, 64), (64, 576), (576, 64), (128, 200)])
@pytest.mark.parametrize("kind", ["random", "condition 1e6", "rank 1", "zero", "tiny"])
def test_orthogonal_agrees_with_torch(m, n, kind):
    torch.manual_seed(0)
    x = {
        "random": torch.randn(m, n),
        "condition 1e6": torch.randn(m, m) @ torch.diag(torch.logspace(0, -6, m)) @ torch.randn(m, n),
        "rank 1": torch.randn(m, 1) @ torch.randn(1, n),
        "zero": torch.zeros(m, n),
        "tiny": 1e-12 * torch.randn(m, n),
    }[kind]
    found = orthogonal(x[None])[0].float()
    expected = zeropower(x, (LINEAR, CUBIC, QUINTIC), 5, 1e-30).float()
    assert torch.linalg.svdvals(found)[0] < 1.5  # and not blown up by eigenvalues that rounding made negative
    if kind in ("random", "tiny") and m != n:  # where no singular value is lost in rounding
        assert (found - expected).norm() < 0.06 * expected.norm()
    alignment = (found * x).sum() / (expected * x).sum().clamp_min(1e-30)
    assert kind == "zero" or abs(alignment - 1) < 0.05  # it goes downhill as far


@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 7])
def test_so_many_iterations(iterations):
    x = torch.randn(1, 64, 300, generator=torch.Generator().manual_seed(0))
    expected = zeropower(x[0], (LINEAR, CUBIC, QUINTIC), iterations, 1e-30).float()
    assert (orthogonal(x, iterations)[0].float() - expected).norm() < 0.06 * expected.norm()


def test_weights_decay_by_the_rate_of_their_optimiser():
    layer = nn.Linear(64, 96)
    before = layer.weight.detach().clone()
    muon_optimiser = optim.build("net", layer, OptimConfig(weight_decay=0.25, muon=MuonConfig(lr=0.1)))["net.muon"]
    layer.weight.grad = torch.zeros_like(layer.weight)  # so that nothing but decay moves it
    muon_optimiser.step()
    torch.testing.assert_close(layer.weight.detach(), before * (1 - 0.1 * 0.25), rtol=1e-6, atol=0)


def test_a_module_that_a_checkpoint_moved_by_muon_goes_on_so():
    configs = {"autoencoder": OptimConfig(lr=1e-3, muon=MuonConfig(lr=0.5)), "discriminator": OptimConfig(lr=2e-3)}
    assert optim.as_saved(configs, ["autoencoder", "autoencoder.muon", "discriminator"]) == configs
    old = optim.as_saved(configs, ["autoencoder", "autoencoder.muon", "discriminator", "discriminator.muon"])
    assert old == {**configs, "discriminator": OptimConfig(lr=2e-3, muon=MuonConfig(lr=0.5))}


@pytest.mark.parametrize("channels_last", [False, True])
def test_whole_matrices_move_as_torchs_muon_moves_them(channels_last):
    ours, theirs = net(channels_last), net(channels_last)
    weights = list(matrices(ours))
    optimiser = Muon(weights, MuonConfig(lr=0.1, block=None), weight_decay=0.1)
    views = [nn.Parameter(as_matrix(weight.detach().clone(), weight)) for weight in matrices(theirs)]
    torchs = torch.optim.Muon(views, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = [view.detach().clone() for view in views]
    for _ in range(3):
        for weight, view in zip(weights, views, strict=True):
            weight.grad = torch.randn_like(weight)
            view.grad = as_matrix(weight.grad, weight).clone()
        optimiser.step()
        torchs.step()
    for weight, view, start in zip(weights, views, before, strict=True):
        moved = as_matrix(weight.detach(), weight) - start
        assert (moved - (view - start)).norm() < 0.1 * moved.norm()


def test_each_block_of_rows_moves_by_itself_and_weights_without_gradient_stay():
    torch.manual_seed(0)
    weights = [
        nn.Parameter(torch.randn(128, 256)),
        nn.Parameter(torch.randn(64, 256)),
        nn.Parameter(torch.ones(64, 64)),
    ]
    before = [weight.detach().clone() for weight in weights]
    optimiser = Muon(weights, MuonConfig(lr=1.0, block=64), weight_decay=0.0)
    weights[0].grad = torch.randn(128, 256)
    weights[0].grad[64:] *= 1e-3  # alone in its block, it moves as far
    weights[1].grad = torch.randn(64, 256)
    optimiser.step()
    change = (weights[0] - before[0]).detach() / (0.2 * 256**0.5)
    for block in (change[:64], change[64:], (weights[1] - before[1]).detach() / (0.2 * 256**0.5)):
        assert torch.linalg.svdvals(block).sub(1).abs().max() < 0.4
    assert torch.equal(weights[2], before[2])


def test_what_is_worked_on_together_changes_nothing_else(monkeypatch):
    changes = []
    for most in (1, 2**22):
        monkeypatch.setattr(muon, "MAX_NUMEL", (most, most))
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.zeros(64, 128)) for _ in range(3)]
        optimiser = Muon(weights, MuonConfig(lr=1.0), weight_decay=0.0)
        for weight in weights:
            weight.grad = torch.randn(64, 128)
        optimiser.step()
        changes.append(torch.stack([weight.detach() for weight in weights]))
    torch.testing.assert_close(changes[0], changes[1], rtol=0.02, atol=0.02)
