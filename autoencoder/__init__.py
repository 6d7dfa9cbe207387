"""Stage 1 of latent diffusion: autoencoders of pictures (Rombach et al. 2022, section 3.1).

Usage:
    vae = build(KLConfig(preset="tiny32-f2"))        # a plain diffusers AutoencoderKL or VQModel
    moments = encode(vae, pictures)                  # mean and log-variance of the normalised latents
    pictures = decode(vae, sample(moments, noise))
    vae = load("runs/ae")                            # what train_ae.py or diffusers saved

`two_player` with an `AutoencoderLoss` is one training step; `measure` and `fold` normalise the latents of a trained
autoencoder. Names are imported when first used, so that `import autoencoder` itself needs neither torch nor diffusers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoencoder.adversarial import two_player
    from autoencoder.base import (
        Autoencode,
        AutoencoderError,
        Moments,
        Reconstruction,
        decode,
        encode,
        latent_shape,
        posterior,
        reconstruct,
        reduction,
        sample,
    )
    from autoencoder.codebook import Codebook, CodeUsage
    from autoencoder.config import AutoencoderConfig, build
    from autoencoder.discriminator import Discriminator, DiscriminatorConfig
    from autoencoder.equivariance import EquivarianceConfig
    from autoencoder.kl import KL_PRESETS, KLConfig
    from autoencoder.loss import AdversarialConfig, AutoencoderLoss, LossConfig, LossTerms
    from autoencoder.perceptual import Perceptual, PerceptualConfig
    from autoencoder.saved import load
    from autoencoder.statistics import LatentStatistics, fold, measure
    from autoencoder.vq import VQ_PRESETS, VQConfig

__all__ = [
    "KL_PRESETS",
    "VQ_PRESETS",
    "AdversarialConfig",
    "Autoencode",
    "AutoencoderConfig",
    "AutoencoderError",
    "AutoencoderLoss",
    "CodeUsage",
    "Codebook",
    "Discriminator",
    "DiscriminatorConfig",
    "EquivarianceConfig",
    "KLConfig",
    "LatentStatistics",
    "LossConfig",
    "LossTerms",
    "Moments",
    "Perceptual",
    "PerceptualConfig",
    "Reconstruction",
    "VQConfig",
    "build",
    "decode",
    "encode",
    "fold",
    "latent_shape",
    "load",
    "measure",
    "posterior",
    "reconstruct",
    "reduction",
    "sample",
    "two_player",
]

_NAMES = {
    "adversarial": "two_player",
    "base": "Autoencode AutoencoderError Moments Reconstruction decode encode latent_shape posterior reconstruct "
    "reduction sample",
    "codebook": "CodeUsage Codebook",
    "config": "AutoencoderConfig build",
    "discriminator": "Discriminator DiscriminatorConfig",
    "equivariance": "EquivarianceConfig",
    "kl": "KL_PRESETS KLConfig",
    "loss": "AdversarialConfig AutoencoderLoss LossConfig LossTerms",
    "perceptual": "Perceptual PerceptualConfig",
    "saved": "load",
    "statistics": "LatentStatistics fold measure",
    "vq": "VQ_PRESETS VQConfig",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name, when it is first used, from the module that defines it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
