"""Vector quantisation: nearest codes, straight-through gradients, and losses (van den Oord et al. 2017)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2**24  # most distances in memory at once: 64 MiB in float32


class Quantised(NamedTuple):
    """Quantised latents, the indices of their codes, and the quantisation loss."""

    latents: Tensor  # [B, d, h, w], codes; gradients pass straight through to the latents before quantisation
    indices: Tensor  # [B, h, w] int64
    loss: Tensor  # scalar


def nearest(vectors: Tensor, codes: Tensor, chunk: int = CHUNK) -> Tensor:
    """Return for each of `vectors` [N, d] the index of the nearest of `codes` [K, d]: int64 [N].

    Computes in float32, also under autocast. Works through blocks of vectors, so that at most `chunk` distances are in
    memory at once (at least K): all distances between 8 latents of 64x64 and 8192 codes would need 1 GiB.
    """
    with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
        vectors, codes = vectors.float(), codes.float()
        half = codes.square().sum(1) / 2  # |z - e|^2 / 2 less the part that all codes share
        rows = max(1, chunk // len(codes))
        return torch.cat([torch.addmm(half, block, codes.T, alpha=-1).argmin(1) for block in vectors.split(rows)])


def flatten(z: Tensor) -> Tensor:
    """Flatten latents [B, d, h, w] to one vector per position, [B*h*w, d]."""
    return z.movedim(1, -1).flatten(0, -2)


def quantise(z: Tensor, codes: Tensor, beta: float = 0.25) -> Quantised:
    """Replace the vector at each position of the latents `z` [B, d, h, w] by the nearest of `codes` [K, d].

    loss = beta * |sg(e) - z|^2 + |e - sg(z)|^2, means over elements, where e is the nearest code and sg stops the
    gradient (van den Oord et al. 2017, eq. 3). The first term, the commitment loss, moves the encoder. The second moves
    the codes; it is left out if `codes` require no gradient, as in a codebook that moving averages train. The published
    LDM models had beta on the second term, by accident.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        indices = nearest(flatten(z), codes).view(z.shape[0], *z.shape[2:])
        chosen = F.embedding(indices, codes).movedim(-1, 1).to(z.dtype)
        loss = beta * F.mse_loss(z, chosen.detach())
        if codes.requires_grad:
            loss = loss + F.mse_loss(chosen, z.detach())
        return Quantised(z + (chosen - z).detach(), indices, loss)
