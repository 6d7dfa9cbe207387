"""Encode pictures to latents and decode them, with first stages of all classes of `autoencoder.classes` alike.

A picture x is [B, C, H, W] in [-1, 1]; a latent z is [B, Z, h, w]. `encode` and `decode` use *normalised* latents,
which the U-Net is trained on; `posterior`, `reconstruct` and `Autoencode` use raw ones, which the KL term is defined
on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor, nn

from autoencoder.classes import KINDS, FirstStage, Kind, full, kind_of, render
from autoencoder.quantiser import Quantised, quantise

Vae = TypeVar("Vae", bound=FirstStage)
LOGVAR_FLOOR, LOGVAR_CEILING = -30.0, 20.0


class AutoencoderError(ValueError):
    """A user's mistake that concerns the autoencoder; the message is one sentence that says what was expected."""


class MissingWeights(AutoencoderError):
    """Pretrained weights are neither cached nor to be downloaded."""


class Moments(NamedTuple):
    """The encoder's posterior q(z | x): mean and log-variance of a diagonal Gaussian over latents of Z channels.

    Other latents than KL's are deterministic; their logvar is -30, so that latents of all kinds are stored alike.
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


def posterior(vae: FirstStage, x: Tensor) -> Moments:
    """Encode pictures [B, C, H, W] in [-1, 1] to the moments of raw (not normalised) latents, in float32 or better."""
    mean, logvar = _kind(vae).moments(vae, x.to(vae.dtype))
    return Moments(full(mean), torch.full_like(full(mean), LOGVAR_FLOOR) if logvar is None else full(logvar))


def reconstruct(vae: FirstStage, z: Tensor) -> Tensor:
    """Decode raw latents [B, Z, h, w] (not normalised) to pictures [B, C, H, W]; a VQ model quantises them first."""
    return full(_kind(vae).picture(vae, z))


def affine(vae: FirstStage) -> Affine:
    """Return the normalisation that a model's config states.

    The config has scaling_factor, with shift_factor or with latents_mean and latents_std. The tensors are float64 on
    the CPU, because some devices have no float64.
    """
    _kind(vae)
    config: Any = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        mean, std = [config.get("shift_factor") or 0.0], [1.0]
    shift, spread = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (mean, std))
    return Affine(shift, config.scaling_factor / spread)


def encode(vae: FirstStage, x: Tensor) -> Moments:
    """Encode pictures to the moments of their normalised latents, which latent caches store.

    Args:
        vae: an autoencoder of diffusers, of one of the classes in `KINDS`.
        x: pictures [B, C, H, W] in [-1, 1].

    Returns:
        Mean and log-variance [B, Z, h, w] in float32 or better.

    Raises:
        AutoencoderError: the model is of another class.
    """
    raw, (shift, scale) = posterior(vae, x), affine(vae)
    mean = (raw.mean - _like(shift, raw.mean)) * _like(scale, raw.mean)
    if not isinstance(vae, AutoencoderKL):
        return Moments(mean, raw.logvar)
    logvar = raw.logvar + 2 * _like(scale.abs().log(), raw.logvar)
    return Moments(mean, logvar.clamp(LOGVAR_FLOOR, LOGVAR_CEILING))


def decode(vae: FirstStage, z: Tensor) -> Tensor:
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
        if not isinstance(vae, AutoencoderKL | VQModel):
            raise AutoencoderError(f"Only an AutoencoderKL or a VQModel can be trained, got {type(vae).__name__}.")
        self.vae = vae
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
        return Reconstruction(render(self.vae, codes.latents), moments, codes.loss, codes.indices, scale)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution, for `adaptive_weight`: its output is the picture's C channels."""
        return self.vae.decoder.conv_out.weight


def reduction(vae: FirstStage) -> int:
    """Return the downsampling factor, the ratio of a picture's side to its latent's."""
    config: Any = vae.config
    return 2 ** (len(config[_kind(vae).levels]) - 1)


def latent_shape(vae: FirstStage, height: int, width: int) -> tuple[int, int, int]:
    """Return the shape (Z, h, w) of the latent of a picture.

    Args:
        vae: the autoencoder.
        height: height of the picture in pixels; a multiple of the autoencoder's downsampling factor.
        width: width of the picture in pixels; a multiple of the same factor.

    Raises:
        AutoencoderError: height or width is no multiple of the downsampling factor.
    """
    config: Any = vae.config
    factor = reduction(vae)
    if height % factor or width % factor:
        raise AutoencoderError(
            f"A picture of {height}x{width} px does not fit: this autoencoder needs multiples of {factor}."
        )
    channels = config.get("vq_embed_dim") or config.latent_channels
    return channels, height // factor, width // factor


def float64(x: Tensor) -> Tensor:
    """Return a tensor as float64, on its device or, if the device has no float64, on the CPU."""
    try:
        return x.double()
    except (TypeError, RuntimeError):
        return x.cpu().double()


def _like(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x.dtype).to(x.device)


def _kind(vae: object) -> Kind:
    kind = kind_of(vae)
    if kind is None:
        names = ", ".join(cls.__name__ for cls in KINDS)
        raise AutoencoderError(
            f"A first stage must be of a class of diffusers among {names}; got {type(vae).__name__}."
        )
    return kind
