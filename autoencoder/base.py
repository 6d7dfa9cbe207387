"""Encode pictures to latents and decode them, with a diffusers AutoencoderKL or VQModel alike.

A picture x is [B, C, H, W] in [-1, 1]; a latent z is [B, Z, h, w]. `encode` and `decode` use *normalised* latents,
which the U-Net is trained on; `posterior`, `reconstruct` and `Autoencode` use raw ones, which the KL term is defined
on.
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
    """A user's mistake that concerns the autoencoder; the message is one sentence that says what was expected."""


class MissingWeights(AutoencoderError):
    """Pretrained weights are neither cached nor to be downloaded."""


class Moments(NamedTuple):
    """The encoder's posterior q(z | x): mean and log-variance of a diagonal Gaussian over latents of Z channels.

    A VQ latent is deterministic; its logvar is -30, so that latents of both kinds are stored alike.
    """

    mean: Tensor  # [B, Z, h, w]
    logvar: Tensor  # [B, Z, h, w], clamped to [-30, 20]


class Affine(NamedTuple):
    """Normalisation of latents: normalised = (raw - shift) * scale. Both tensors broadcast against [B, Z, h, w]."""

    shift: Tensor
    scale: Tensor


class Reconstruction(NamedTuple):
    """Result of one training pass through `Autoencode`."""

    picture: Tensor  # [B, C, H, W], not clamped
    moments: Moments  # as the encoder returns them, before the latents' normalisation
    codebook_loss: Tensor  # scalar; 0 for KL
    indices: Tensor | None = None  # [B, h, w] int64 for VQ
    log_scale: Tensor | None = None  # scalar, the learned log scale s of the likelihood; None: it is not learned


def sample(moments: Moments, noise: Tensor) -> Tensor:
    """Sample latents [B, Z, h, w] from `moments`: mean + exp(logvar / 2) * noise (Kingma and Welling 2014, eq. 10)."""
    return moments.mean + torch.exp(moments.logvar / 2) * noise


def posterior(vae: AutoencoderKL | VQModel, x: Tensor) -> Moments:
    """Encode pictures [B, C, H, W] in [-1, 1] to the moments of raw (not normalised) latents, in float32 or better."""
    model: Any = _check_class(vae)
    given = model.encode(x.to(vae.dtype))
    if isinstance(vae, AutoencoderKL):
        return Moments(_full(given.latent_dist.mean), _full(given.latent_dist.logvar))
    mean = _full(given.latents)
    return Moments(mean, torch.full_like(mean, LOGVAR_FLOOR))


def reconstruct(vae: AutoencoderKL | VQModel, z: Tensor) -> Tensor:
    """Decode raw latents [B, Z, h, w] (not normalised) to pictures [B, C, H, W]; a VQ model quantises them first."""
    model: Any = _check_class(vae)
    if isinstance(vae, AutoencoderKL):
        return _full(model.decode(z.to(vae.dtype)).sample)
    return _render(vae, quantise(z, vae.quantize.embedding.weight).latents)


def affine(vae: AutoencoderKL | VQModel) -> Affine:
    """Return the normalisation that a model's config states.

    The config has scaling_factor, with shift_factor or with latents_mean and latents_std. The tensors are float64 on
    the CPU, because some devices have no float64.
    """
    config: Any = _check_class(vae).config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        mean, std = [config.get("shift_factor") or 0.0], [1.0]
    shift, spread = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (mean, std))
    return Affine(shift, config.scaling_factor / spread)


def check_config(vae: Vae, where: str) -> Vae:
    """Check the channels and the normalisation of latents that an autoencoder's config states; return the autoencoder.

    The numbers of channels must be 1 or more. The normalisation (scaling_factor, shift_factor, latents_mean,
    latents_std) must be invertible.

    Raises:
        AutoencoderError: a value is invalid; the message names `where`, the origin of the config, and the key.
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
    """Encode pictures to the moments of their normalised latents, which latent caches store.

    Args:
        vae: any diffusers AutoencoderKL or VQModel.
        x: pictures [B, C, H, W] in [-1, 1].

    Returns:
        Mean and log-variance [B, Z, h, w] in float32 or better.

    Raises:
        AutoencoderError: the model is of another class.
    """
    raw, (shift, scale) = posterior(vae, x), affine(vae)
    mean = (raw.mean - _like(shift, raw.mean)) * _like(scale, raw.mean)
    if isinstance(vae, VQModel):
        return Moments(mean, raw.logvar)
    logvar = raw.logvar + 2 * _like(scale.abs().log(), raw.logvar)
    return Moments(mean, logvar.clamp(LOGVAR_FLOOR, LOGVAR_CEILING))


def decode(vae: AutoencoderKL | VQModel, z: Tensor) -> Tensor:
    """Decode normalised latents [B, Z, h, w] to pictures [B, C, H, W], in about [-1, 1], not clamped.

    The normalisation is undone first. A VQ model then quantises the latent (Rombach et al. 2022: the quantiser belongs
    to the decoder).

    Raises:
        AutoencoderError: the model is of another class.
    """
    shift, scale = affine(vae)
    return reconstruct(vae, z / _like(scale, z) + _like(shift, z))


class Autoencode(nn.Module):
    """An autoencoder whose forward encodes, samples and decodes, so that DDP around it averages all gradients.

    Args:
        vae: a diffusers AutoencoderKL or VQModel.
        beta: weight of a VQ model's commitment loss.
        learned_scale: add a trained scalar s, the log scale of a Laplace or Gaussian likelihood. It is a parameter of
            this module and not of the loss, because DDP averages only gradients of the module that it wraps.
    """

    def __init__(self, vae: AutoencoderKL | VQModel, *, beta: float = 0.25, learned_scale: bool = False) -> None:
        super().__init__()
        self.vae = _check_class(vae)
        self.beta = beta
        self.log_scale = nn.Parameter(torch.zeros(())) if learned_scale else None

    def forward(self, x: Tensor, noise: Tensor, move: Callable[[Tensor], Tensor] | None = None) -> Reconstruction:
        """Encode pictures, sample latents (a VQ model quantises them instead) and decode them.

        Args:
            x: pictures [B, C, H, W] in [-1, 1].
            noise: standard normal noise [B, Z, h, w] of the samples; unused by a VQ model.
            move: transform of the latents before they are decoded (`equivariance.Move`); ignored by a VQ model.
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
        """Weight of the decoder's last convolution, for `adaptive_weight`: its output is the picture's C channels."""
        return self.vae.decoder.conv_out.weight


def reduction(vae: AutoencoderKL | VQModel) -> int:
    """Return the downsampling factor, the ratio of a picture's side to its latent's."""
    config: Any = _check_class(vae).config
    return 2 ** (len(config.block_out_channels) - 1)


def latent_shape(vae: AutoencoderKL | VQModel, height: int, width: int) -> tuple[int, int, int]:
    """Return the shape (Z, h, w) of the latent of a picture.

    Args:
        vae: the autoencoder.
        height: height of the picture in pixels; a multiple of the autoencoder's downsampling factor.
        width: width of the picture in pixels; a multiple of the same factor.

    Raises:
        AutoencoderError: height or width is no multiple of the downsampling factor.
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
    """Decode latents [B, Z, h, w] that are quantised already to pictures [B, C, H, W].

    VQModel.decode would quantise them again, and hold the distances of all latents to all codes in memory.
    """
    latents = latents.to(vae.dtype)
    spatial = latents if vae.config.norm_type == "spatial" else None
    return _full(vae.decoder(vae.post_quant_conv(latents), spatial))


def float64(x: Tensor) -> Tensor:
    """Return a tensor as float64, on its device or, if the device has no float64, on the CPU."""
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
