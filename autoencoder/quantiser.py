"""Vector quantisation: nearest codes, straight-through gradients, the two losses (van den Oord 2017)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2**24  # distances held at once: 64 MiB in float32


class Quantised(NamedTuple):
    """Result of quantising latents."""

    latents: Tensor  # [B, d, h, w]; its gradient goes straight through to the encoder
    indices: Tensor  # [B, h, w] int64
    loss: Tensor  # scalar


def nearest(vectors: Tensor, codes: Tensor, chunk: int = CHUNK) -> Tensor:
    """Return the index [N] of the nearest of `codes` [K, d] to `vectors` [N, d], in float32 also under autocast.

    Works through rows so that at most `chunk` distances exist at once: 8 pictures of 64x64 latents against 8192 codes
    would need 1 GiB.
    """
    with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
        vectors, codes = vectors.float(), codes.float()
        half = codes.square().sum(1) / 2  # |z - e|^2 / 2 less the part that all codes share
        rows = max(1, chunk // len(codes))
        return torch.cat([torch.addmm(half, block, codes.T, alpha=-1).argmin(1) for block in vectors.split(rows)])


def flatten(z: Tensor) -> Tensor:
    """Flatten latents [B, d, h, w] to vectors [B*h*w, d]."""
    return z.movedim(1, -1).flatten(0, -2)


def quantise(z: Tensor, codes: Tensor, beta: float = 0.25) -> Quantised:
    """Replace each latent of `z` [B, d, h, w] by its nearest code of `codes` [K, d].

    loss = beta * |sg(e) - z|^2 + |e - sg(z)|^2, means over elements (van den Oord et al. 2017, eq. 3): beta weighs the
    commitment, which moves the encoder. The second term moves the codes and is left out when they are not trained by
    gradients (an EMA codebook). The published LDM models had beta on the other term, by accident.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        indices = nearest(flatten(z), codes).view(z.shape[0], *z.shape[2:])
        chosen = F.embedding(indices, codes).movedim(-1, 1).to(z.dtype)
        loss = beta * F.mse_loss(z, chosen.detach())
        if codes.requires_grad:
            loss = loss + F.mse_loss(chosen, z.detach())
        return Quantised(z + (chosen - z).detach(), indices, loss)
