"""The terms of an autoencoder's loss as pure functions. Each returns [B] or a scalar; the caller weighs and averages.

Units. LDM sums its terms over all elements of a picture; here this objective is divided by N_pixel, the number of
picture elements. With pixel error r, perceptual distance p, their weight w_p, and KL weight w:

    LDM:   sum(r + w_p p) + w KL, where KL is a sum over the latent, in nats
    here:  mean(r + w_p p) + w KL / N_pixel = mean nll + w (N_latent / N_pixel) mean KL

So w keeps the value it has in LDM (1e-6, or 1.0 with a learned scale s) and means the same at every resolution.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from autoencoder.base import Moments


def pixel_error(x: Tensor, y: Tensor, kind: str = "l1", weight: Tensor | None = None) -> Tensor:
    """Return the mean absolute ("l1") or squared ("l2") differences [B] between pictures x and y [B, C, H, W].

    With a `weight` [B, 1, H, W] of each pixel the mean is sum(w d) / sum(w), and 0 where all weights are 0.
    """
    error = (x - y).abs() if kind == "l1" else (x - y).square()
    if weight is None:
        return error.flatten(1).mean(1)
    weight = weight.to(error).expand_as(error).flatten(1)
    return (error.flatten(1) * weight).sum(1) / weight.sum(1).clamp_min(1e-12)


def laid_over(made: Tensor, x: Tensor, weight: Tensor | None) -> Tensor:
    """Return `made` laid over x [B, C, H, W] by the weight [B, 1, H, W] of its pixels: w made + (1 - w) x.

    Where the weight is 0 the result equals x, whatever `made` shows. Without a weight (None) it is `made`.
    """
    return made if weight is None else weight.to(made) * made + (1 - weight.to(made)) * x.to(made)


def kl_divergence(moments: Moments) -> Tensor:
    """Return the KL divergence of each sample's posterior from N(0, I), [B], summed over a latent's elements, in nats.

    The formula is that of Kingma and Welling 2014, eq. 10.
    """
    mean, logvar = moments
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def kl_per_pixel(moments: Moments, picture: Tensor) -> Tensor:
    """Return each sample's KL divergence (`kl_divergence`) divided by the number of elements of a picture, [B].

    This is the unit of `nll`. Only the shape [B, C, H, W] of `picture` is used.
    """
    return kl_divergence(moments) / picture[0].numel()


def nll(error: Tensor, log_scale: Tensor | None = None) -> Tensor:
    """Return the negative log-likelihood [B] per picture element, up to a constant: error / exp(s) + s.

    Args:
        error: mean error [B] per element, including the perceptual distance.
        log_scale: s, the learned log scale of the likelihood: exp(s) tends to the mean error. None: s = 0.
    """
    return error if log_scale is None else error * torch.exp(-log_scale) + log_scale


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's hinge loss, a scalar (Lim and Ye 2017), from its logits for real and fake pictures."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def vanilla_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's cross-entropy, a scalar (Goodfellow et al. 2014), from logits for real and fake."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """Return LDM's adversarial loss of the autoencoder: minus the mean of the discriminator's logits `fake`."""
    return -fake.mean()
