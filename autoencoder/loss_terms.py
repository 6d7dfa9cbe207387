"""The terms of an autoencoder's loss as pure functions: [B] or scalars out, weights and reductions left to the caller.

Units. LDM sums its terms over all elements of a picture; we divide that objective by the number of picture elements:

    sum convention:  sum(r + w_p p) + w KL            KL a sum over the latent, in nats
    ours:            mean(r + w_p p) + w KL / N_pixel = mean nll + w (N_latent / N_pixel) mean KL

so w keeps its value (1e-6 in LDM, 1.0 when s is learned) and means the same at every resolution.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from autoencoder.base import Moments


def pixel_error(x: Tensor, y: Tensor, kind: str = "l1") -> Tensor:
    """Return the mean absolute (`l1`) or squared (`l2`) difference [B] of pictures [B, C, H, W]."""
    error = (x - y).abs() if kind == "l1" else (x - y).square()
    return error.flatten(1).mean(1)


def kl_divergence(moments: Moments) -> Tensor:
    """Return the KL [B] from the posterior to N(0, 1), in nats per latent (Kingma and Welling 2014, eq. 10)."""
    mean, logvar = moments
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def kl_per_pixel(moments: Moments, picture: Tensor) -> Tensor:
    """Return the KL [B] in nats per picture element, (N_latent / N_pixel) * mean KL, as `nll` is."""
    return kl_divergence(moments) / picture[0].numel()


def nll(error: Tensor, log_scale: Tensor | None = None) -> Tensor:
    """Return the negative log-likelihood [B] per picture element, up to a constant: error / exp(s) + s.

    `error` [B] is a mean per element, perceptual part included; s is 0 when it is not learned, else exp(s)
    tends to the mean error.
    """
    return error if log_scale is None else error * torch.exp(-log_scale) + log_scale


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's hinge loss of two sets of logits, a scalar (Lim and Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def vanilla_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's cross-entropy of two sets of logits, a scalar (Goodfellow et al. 2014)."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """Return -mean(D(fake)), the generator's side of either discriminator loss as LDM uses it; a scalar."""
    return -fake.mean()
