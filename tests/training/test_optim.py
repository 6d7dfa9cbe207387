import math

import pytest
import torch
from torch import nn

from ldm_kit.training.optim import OptimConfig, adamw, clip, dump, grad_norm, lr_factor, restore

TOTAL = 10


def curve(decay, warmup=4, total=TOTAL):
    return [lr_factor(OptimConfig(lr_schedule=decay, warmup=warmup), step, total) for step in range(1, total + 1)]


def test_the_planned_curves():
    assert curve("constant") == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1])
    assert curve("linear") == pytest.approx([0.25, 0.5, 0.75, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    cosine = [0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    assert curve("cosine") == pytest.approx([0.25, 0.5, 0.75, 1, *cosine])


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_no_step_is_without_a_rate(decay):
    for warmup in (0, 1, 4, TOTAL, 3 * TOTAL):
        assert all(0 < factor <= 1 for factor in curve(decay, warmup))
    assert curve(decay, warmup=0)[0] == 1


def test_vectors_are_not_decayed():
    groups = adamw(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), OptimConfig(weight_decay=0.1)).param_groups
    assert [(g["weight_decay"], len(g["params"])) for g in groups] == [(0.1, 1), (0.0, 3)]


def test_a_long_gradient_is_cut_to_the_limit():
    net = nn.Linear(4, 4)
    assert grad_norm(net).item() == 0  # no gradient yet
    clip(net, 1.0, grad_norm(net))
    net(torch.ones(1, 4)).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item()
    assert grad_norm(net).item() == pytest.approx(expected)
    for limit, left in [(None, expected), (2 * expected, expected), (0.5, 0.5)]:
        clip(net, limit, grad_norm(net))
        assert grad_norm(net).item() == pytest.approx(left, rel=1e-5)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_restored_optimiser_goes_on_as_if_nothing_had_been(layout):
    """Fused AdamW reads raw memory: a contiguous moment beside a channels-last weight silently pairs wrong elements."""

    def weights(stop):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 2, 1)).to(memory_format=layout)
        net.register_parameter("scale", nn.Parameter(torch.zeros(())))
        optimiser = adamw(net, OptimConfig(lr=1e-2))
        for step in range(6):
            if step == stop:
                tensors, groups = dump(optimiser)
                stored = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
                optimiser = adamw(net, OptimConfig(lr=1e-2))
                restore(optimiser, stored, groups)
            x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(step)).to(memory_format=layout)
            (net(x).square().mean() + net.scale.sin()).backward()
            optimiser.step()
            optimiser.zero_grad()
        return [p.detach().clone() for p in net.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(weights(None), weights(3), strict=True))
