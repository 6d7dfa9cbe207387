"""Encoding pictures to latents and decoding them, with a KL or a VQ autoencoder of diffusers alike.

A picture x is [B, C, H, W] in [-1, 1]; a latent z is [B, Z, h, w]. `encode` and `decode` use the *normalised*
latent that the U-Net is trained on; `posterior` and `Autoencode` the raw one, on which the KL term is defined.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor, nn

from autoencoder.quantiser import Quantised, quantise

Vae = TypeVar("Vae", bound=AutoencoderKL | VQModel)
LOGVAR_FLOOR, LOGVAR_CEILING = -30.0, 20.0


class AutoencoderError(ValueError):
    """A mistake of the user about the autoencoder; its message is one sentence with what was expected."""


class Moments(NamedTuple):
    """Diagonal Gaussian over latents; a VQ latent is exact, with logvar at -30, so that both kinds are stored alike."""

    mean: Tensor  # [B, Z, h, w]
    logvar: Tensor  # [B, Z, h, w], clamped to [-30, 20]


class Affine(NamedTuple):
    """Normalisation of latents, normalised = (raw - shift) * scale; both broadcast against [B, Z, h, w]."""

    shift: Tensor
    scale: Tensor


class Reconstruction(NamedTuple):
    """Result of one training pass of an autoencoder."""

    picture: Tensor  # [B, C, H, W], not clamped
    moments: Moments  # raw, not normalised
    codebook_loss: Tensor  # scalar; 0 for KL
    indices: Tensor | None = None  # [B, h, w] int64 for VQ
    log_scale: Tensor | None = None  # scalar s of the learned likelihood (`elbo`), a parameter of `Autoencode`


def sample(moments: Moments, noise: Tensor) -> Tensor:
    """Sample a latent [B, Z, h, w]: mean + exp(logvar / 2) * noise (Kingma and Welling 2014, eq. 10)."""
    return moments.mean + torch.exp(moments.logvar / 2) * noise


def posterior(vae: AutoencoderKL | VQModel, x: Tensor) -> Moments:
    """Encode pictures [B, C, H, W] in [-1, 1] to raw moments, in float32 or better."""
    model: Any = _check_class(vae)
    given = model.encode(x.to(vae.dtype))
    if isinstance(vae, AutoencoderKL):
        return Moments(_full(given.latent_dist.mean), _full(given.latent_dist.logvar))
    mean = _full(given.latents)
    return Moments(mean, torch.full_like(mean, LOGVAR_FLOOR))


def reconstruct(vae: AutoencoderKL | VQModel, z: Tensor) -> Tensor:
    """Decode raw latents [B, Z, h, w] to pictures [B, C, H, W]; a VQ model quantises them first."""
    model: Any = _check_class(vae)
    if isinstance(vae, AutoencoderKL):
        return _full(model.decode(z.to(vae.dtype)).sample)
    return _render(vae, quantise(z, vae.quantize.embedding.weight).latents)


def affine(vae: AutoencoderKL | VQModel) -> Affine:
    """Return the normalisation of the model's config: scaling_factor, with shift_factor or latents_mean and _std.

    It is float64 on the CPU, as a device may have no float64.
    """
    config: Any = _check_class(vae).config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        mean, std = [config.get("shift_factor") or 0.0], [1.0]
    shift, spread = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (mean, std))
    return Affine(shift, config.scaling_factor / spread)


def check_config(vae: Vae, where: str) -> Vae:
    """Return an autoencoder whose config holds a normalisation that can be undone, and whole numbers of channels.

    Raises:
        AutoencoderError: names `where` and the key.
    """
    config: Any = _check_class(vae).config
    channels = config.latent_channels
    for key in ("in_channels", "out_channels", "latent_channels"):
        if type(config.get(key)) is not int or config[key] < 1:
            raise AutoencoderError(f"{where}: {key} is {config.get(key)!r:.40}; expected a whole number of 1 or more.")
    if not _is_number(config.scaling_factor) or config.scaling_factor == 0:
        raise AutoencoderError(f"{where}: scaling_factor is {config.scaling_factor!r:.40}; expected a number but 0.")
    if not (config.get("shift_factor") is None or _is_number(config.shift_factor)):
        raise AutoencoderError(f"{where}: shift_factor is {config.shift_factor!r:.40}; expected a number, or null.")
    for key in ("latents_mean", "latents_std"):
        values = config.get(key)
        whole = values is None or (isinstance(values, list | tuple) and len(values) == channels)
        if not whole or not all(_is_number(value) and (value > 0 or key == "latents_mean") for value in values or ()):
            raise AutoencoderError(
                f"{where}: {key} is {values!r:.40}; expected {channels} numbers, deviations above 0."
            )
    return vae


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def encode(vae: AutoencoderKL | VQModel, x: Tensor) -> Moments:
    """Encode pictures to the normalised moments that a latent cache stores.

    Args:
        vae: any diffusers AutoencoderKL or VQModel.
        x: pictures [B, C, H, W] in [-1, 1].

    Returns:
        Mean and log-variance [B, Z, h, w] in float32 or better.

    Raises:
        AutoencoderError: a model of another class.
    """
    raw, (shift, scale) = posterior(vae, x), affine(vae)
    mean = (raw.mean - _like(shift, raw.mean)) * _like(scale, raw.mean)
    if isinstance(vae, VQModel):
        return Moments(mean, raw.logvar)
    logvar = raw.logvar + 2 * _like(scale.abs().log(), raw.logvar)
    return Moments(mean, logvar.clamp(LOGVAR_FLOOR, LOGVAR_CEILING))


def decode(vae: AutoencoderKL | VQModel, z: Tensor) -> Tensor:
    """Decode normalised latents [B, Z, h, w] to pictures [B, C, H, W], about [-1, 1] and not clamped.

    A VQ model quantises the unscaled latent first (Rombach et al. 2022: the quantiser belongs to the decoder).

    Raises:
        AutoencoderError: a model of another class.
    """
    shift, scale = affine(vae)
    return reconstruct(vae, z / _like(scale, z) + _like(shift, z))


class Autoencode(nn.Module):
    """An autoencoder whose forward is a whole training pass, so that DDP around it averages every gradient.

    Args:
        vae: a diffusers AutoencoderKL or VQModel.
        beta: weight of a VQ model's commitment loss.
        learned_scale: add the scalar log scale s of a learned Laplace or Gauss likelihood; it is here and not in the
            loss because DDP averages gradients of what it wraps alone.
    """

    def __init__(self, vae: AutoencoderKL | VQModel, *, beta: float = 0.25, learned_scale: bool = False) -> None:
        super().__init__()
        self.vae = _check_class(vae)
        self.beta = beta
        self.log_scale = nn.Parameter(torch.zeros(())) if learned_scale else None

    def forward(self, x: Tensor, noise: Tensor, move: Callable[[Tensor], Tensor] | None = None) -> Reconstruction:
        """Encode x [B, C, H, W], sample a latent with `noise` [B, Z, h, w] (unused by VQ), decode it.

        `move` transforms the latent before it is decoded (`equivariance.Move`); a VQ model ignores it.
        """
        scale = None if self.log_scale is None else self.log_scale.clone()
        moments = posterior(self.vae, x)
        if isinstance(self.vae, AutoencoderKL):
            z = sample(moments, noise)
            picture = reconstruct(self.vae, z if move is None else move(z))
            return Reconstruction(picture, moments, picture.new_zeros(()), log_scale=scale)
        codes: Quantised = quantise(moments.mean, self.vae.quantize.embedding.weight, self.beta)
        return Reconstruction(_render(self.vae, codes.latents), moments, codes.loss, codes.indices, scale)

    @property
    def last_layer(self) -> Tensor:
        """The weight [C, W, 3, 3] on which the adaptive GAN weight is measured."""
        return self.vae.decoder.conv_out.weight


def reduction(vae: AutoencoderKL | VQModel) -> int:
    """Return the downsampling factor from a picture's side to its latent's."""
    config: Any = _check_class(vae).config
    return 2 ** (len(config.block_out_channels) - 1)


def latent_shape(vae: AutoencoderKL | VQModel, height: int, width: int) -> tuple[int, int, int]:
    """Return the shape (Z, h, w) of a picture's latent.

    Args:
        vae: the autoencoder.
        height: of the picture, in pixels; a multiple of the autoencoder's downsampling factor.
        width: of the picture, in pixels, a multiple of the same factor.

    Raises:
        AutoencoderError: a side is no multiple of the downsampling factor.
    """
    config: Any = _check_class(vae).config
    factor = reduction(vae)
    if height % factor or width % factor:
        raise AutoencoderError(
            f"A picture of {height}x{width} px does not fit: this autoencoder needs multiples of {factor}."
        )
    channels = config.get("vq_embed_dim") or config.latent_channels
    return channels, height // factor, width // factor


def _render(vae: Any, latents: Tensor) -> Tensor:
    """Decode quantised latents past VQModel's own quantiser, whose distance matrix is not chunked."""
    latents = latents.to(vae.dtype)
    spatial = latents if vae.config.norm_type == "spatial" else None
    return _full(vae.decoder(vae.post_quant_conv(latents), spatial))


def float64(x: Tensor) -> Tensor:
    """Return numbers as float64, on the CPU where their device has none such."""
    try:
        return x.double()
    except (TypeError, RuntimeError):
        return x.cpu().double()


def _like(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x.dtype).to(x.device)


def _full(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_class(vae: Vae) -> Vae:
    if isinstance(vae, AutoencoderKL | VQModel):
        return vae
    raise AutoencoderError(f"An autoencoder must be a diffusers AutoencoderKL or VQModel, got {type(vae).__name__}.")
