"""Codes with two planted factors among nuisance, and the labels that go with them."""

import torch

D = 24
FIRST, SECOND = torch.eye(D)[0], (torch.eye(D)[1] + torch.eye(D)[2]) / 2**0.5


def planted(count: int, seed: int = 0, together: float = 0.5, spread: float = 0.2):
    """(z [N, D], first, second [N] bool); the second is the first with a share `together`; `spread` is within."""
    draw = torch.Generator().manual_seed(seed)
    first = torch.rand(count, generator=draw) < 0.5
    second = torch.where(torch.rand(count, generator=draw) < together, first, ~first)
    z = torch.randn(count, D, generator=draw)
    z = z - (z @ FIRST)[:, None] * FIRST * (1 - spread) - (z @ SECOND)[:, None] * SECOND * (1 - spread)
    for factor, vector in ((first, FIRST), (second, SECOND)):
        z = z + (factor.float()[:, None] * 2 - 1) * vector
    return z, first, second
