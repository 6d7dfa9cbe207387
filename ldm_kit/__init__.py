"""ldm_kit: train, condition, sample and edit your own latent diffusion models."""

__version__ = "0.1.0"
