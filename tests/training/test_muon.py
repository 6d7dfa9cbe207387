"""Muon: which weights it takes, that it moves the real ones, and that a resumed run goes on bit for bit."""

import pytest
import torch
from torch import nn

from ldm_kit.training import optim
from ldm_kit.training.muon import Muon, MuonConfig, as_matrix, matrices
from ldm_kit.training.optim import OptimConfig


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
    moved = [id(w) for optimiser in both.values() for w in optim.moved(optimiser)]
    assert sorted(moved) == sorted(id(w) for w in made.parameters())  # each weight by exactly one of the two


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_step_moves_the_weight_itself_along_an_orthogonal_matrix(channels_last):
    conv = net(channels_last)[2]
    before = conv.weight.detach().clone()
    muon = Muon([conv.weight], MuonConfig(lr=0.1), weight_decay=0.0)
    conv.weight.grad = torch.randn_like(conv.weight).contiguous()  # not the weight's layout: must be paired by element
    push = as_matrix(conv.weight.grad, conv.weight)
    muon.step()
    change = as_matrix((conv.weight - before).detach(), conv.weight)
    assert torch.linalg.svdvals(change / (0.1 * 0.2 * 576**0.5)).sub(1).abs().max() < 0.4  # Newton-Schulz is not exact
    assert torch.nn.functional.cosine_similarity(change.flatten(), -push.flatten(), dim=0) > 0.5


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
