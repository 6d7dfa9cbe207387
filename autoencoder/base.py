"""Pictures to latents and back: what a KL and a VQ autoencoder have in common, whichever diffusers class holds them.

A picture x is [B, C, H, W] in [-1, 1]; a latent z is [B, Z, h, w]. `encode` and `decode` speak of the *normalised*
latent that the U-Net sees; `posterior` and `Autoencode` speak of the raw one, on which the KL term is defined.
"""

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
    """A user's mistake about the autoencoder, in one sentence: what, where, and what was expected."""


class Moments(NamedTuple):
    """A diagonal Gaussian over latents. A VQ latent is exact: logvar on the floor, so a cache treats both alike."""

    mean: Tensor  # [B, Z, h, w]
    logvar: Tensor  # [B, Z, h, w], clamped to [-30, 20]


class Affine(NamedTuple):
    """normalised = (raw - shift) * scale; both broadcast against [B, Z, h, w]."""

    shift: Tensor
    scale: Tensor


class Reconstruction(NamedTuple):
    """All that a training step needs from one pass of an autoencoder."""

    picture: Tensor  # [B, C, H, W], not clamped
    moments: Moments  # raw, not normalised
    codebook_loss: Tensor  # scalar; 0 for KL
    indices: Tensor | None = None  # [B, h, w] int64 for VQ
    log_scale: Tensor | None = None  # scalar s of the learned likelihood (`elbo`), a parameter of `Autoencode`


def sample(moments: Moments, noise: Tensor) -> Tensor:
    """A latent [B, Z, h, w]: mean + exp(logvar / 2) * noise (Kingma and Welling 2014, eq. 10)."""
    return moments.mean + torch.exp(moments.logvar / 2) * noise


def posterior(vae: AutoencoderKL | VQModel, x: Tensor) -> Moments:
    """Raw moments of pictures [B, C, H, W] as the network emits them, in float32 or better."""
    model: Any = _known(vae)
    given = model.encode(x.to(vae.dtype))
    if isinstance(vae, AutoencoderKL):
        return Moments(_full(given.latent_dist.mean), _full(given.latent_dist.logvar))
    mean = _full(given.latents)
    return Moments(mean, torch.full_like(mean, LOGVAR_FLOOR))


def reconstruct(vae: AutoencoderKL | VQModel, z: Tensor) -> Tensor:
    """Pictures [B, C, H, W] of raw latents [B, Z, h, w]; a VQ model quantises them first."""
    model: Any = _known(vae)
    if isinstance(vae, AutoencoderKL):
        return _full(model.decode(z.to(vae.dtype)).sample)
    return _render(vae, quantise(z, vae.quantize.embedding.weight).latents)


def affine(vae: AutoencoderKL | VQModel) -> Affine:
    """What the model's own config states: scaling_factor, with shift_factor or with latents_mean and latents_std."""
    config: Any = _known(vae).config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        mean, std = [config.get("shift_factor") or 0.0], [1.0]
    shift, spread = (torch.tensor(v, dtype=torch.float64, device=vae.device).view(1, -1, 1, 1) for v in (mean, std))
    return Affine(shift, config.scaling_factor / spread)


def encode(vae: AutoencoderKL | VQModel, x: Tensor) -> Moments:
    """Normalised moments [B, Z, h, w] of pictures [B, C, H, W] in [-1, 1]: what a latent cache stores.

    Works on any diffusers AutoencoderKL or VQModel. Raises AutoencoderError for another class.
    """
    raw, (shift, scale) = posterior(vae, x), affine(vae)
    mean = (raw.mean - shift.to(raw.mean)) * scale.to(raw.mean)
    if isinstance(vae, VQModel):
        return Moments(mean, raw.logvar)
    logvar = raw.logvar + 2 * scale.abs().log().to(raw.logvar)
    return Moments(mean, logvar.clamp(LOGVAR_FLOOR, LOGVAR_CEILING))


def decode(vae: AutoencoderKL | VQModel, z: Tensor) -> Tensor:
    """Pictures [B, C, H, W], about [-1, 1] and not clamped, of normalised latents [B, Z, h, w].

    A VQ model sees the unscaled latent and quantises it (Rombach et al. 2022: the quantiser belongs to the decoder).
    """
    shift, scale = affine(vae)
    return reconstruct(vae, z / scale.to(z) + shift.to(z))


class Autoencode(nn.Module):
    """An autoencoder whose forward is a whole training pass, so that DDP around it sees every gradient.

    `beta` weighs the commitment of a VQ model; `learned_scale` adds the scalar s of a learned Laplace or Gauss width,
    kept here rather than in the loss because DDP averages the gradients only of what it wraps.
    """

    def __init__(self, vae: AutoencoderKL | VQModel, *, beta: float = 0.25, learned_scale: bool = False) -> None:
        super().__init__()
        self.vae = _known(vae)
        self.beta = beta
        self.log_scale = nn.Parameter(torch.zeros(())) if learned_scale else None

    def forward(self, x: Tensor, noise: Tensor, move: Callable[[Tensor], Tensor] | None = None) -> Reconstruction:
        """Encode x [B, C, H, W], draw a latent with `noise` [B, Z, h, w] (unused by VQ), decode.

        `move` is what happens to the latent in between; latents of a codebook stay where they are.
        """
        scale = None if self.log_scale is None else self.log_scale.clone()
        moments = posterior(self.vae, x)
        if isinstance(self.vae, AutoencoderKL):
            z = sample(moments, noise)
            picture = reconstruct(self.vae, z if move is None else move(z))
            return Reconstruction(picture, moments, picture.new_zeros(()), log_scale=scale)
        found: Quantised = quantise(moments.mean, self.vae.quantize.embedding.weight, self.beta)
        return Reconstruction(_render(self.vae, found.latents), moments, found.loss, found.indices, scale)

    @property
    def last_layer(self) -> Tensor:
        """The weight [C, W, 3, 3] on which the adaptive GAN weight is measured."""
        return self.vae.decoder.conv_out.weight


def reduction(vae: AutoencoderKL | VQModel) -> int:
    """How many times smaller a latent's side is than its picture's."""
    config: Any = _known(vae).config
    return 2 ** (len(config.block_out_channels) - 1)


def latent_shape(vae: AutoencoderKL | VQModel, height: int, width: int) -> tuple[int, int, int]:
    """(Z, h, w) of a picture's latent. Raises AutoencoderError when a side is no multiple of the reduction factor."""
    config: Any = _known(vae).config
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


def _full(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _known(vae: Vae) -> Vae:
    if isinstance(vae, AutoencoderKL | VQModel):
        return vae
    raise AutoencoderError(f"An autoencoder must be a diffusers AutoencoderKL or VQModel, got {type(vae).__name__}.")
