"""The autoencoder's loss: reconstruction, perceptual distance, KL or codebook loss, and the adversarial settings."""

from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from autoencoder import loss_terms
from autoencoder.base import AutoencoderError, Reconstruction
from autoencoder.perceptual import Perceptual

BALANCES = MappingProxyType(
    {
        "ldm": {"kl_weight": 1e-6, "perceptual_weight": 1.0, "learned_scale": False},
        "elbo": {"kl_weight": 1.0, "perceptual_weight": 0.25, "learned_scale": True},
    }
)


class AdversarialConfig(BaseModel):
    """Schedule and weight of the adversarial loss; steps are those of the autoencoder's optimiser, from 0.

    The weight of the autoencoder's adversarial loss is `weight` times `factor(step)` and, if `adaptive`, times the
    ratio of gradients that `adaptive_weight` returns, which is at most `max_weight`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    loss: Literal["hinge", "vanilla"] = Field(default="hinge", description="The discriminator's loss.")
    start: int = Field(default=50_000, ge=0, description="First step with the adversarial loss.")
    discriminator_start: int | None = Field(
        default=None, ge=0, description="First step at which the discriminator is trained; by default start."
    )
    ramp: int = Field(default=0, ge=0, description="Steps in which the adversarial weight grows from 0.")
    weight: float = Field(
        default=0.5,
        gt=0,
        description="Adversarial weight; if adaptive, in units of the reconstruction's gradient at the last layer.",
    )
    adaptive: bool = Field(default=True, description="Scale the weight by a ratio of gradients, lambda.")
    max_weight: float = Field(default=1e3, gt=0, description="Upper limit of lambda, for losses that are means.")

    @model_validator(mode="after")
    def _ordered(self) -> "AdversarialConfig":
        if self.discriminator_start is not None and self.discriminator_start > self.start:
            raise ValueError(
                f"discriminator_start {self.discriminator_start} is later than start {self.start}: "
                "the autoencoder would be trained against an untrained discriminator"
            )
        return self

    def factor(self, step: int) -> float:
        """Return the factor of the adversarial weight: 0 before the step `start`, then rising to 1 in `ramp` steps."""
        return 0.0 if step < self.start else min(1.0, (step - self.start + 1) / max(1, self.ramp))

    def discriminates(self, step: int) -> bool:
        """Return whether the discriminator is trained at a step: from `discriminator_start`, or else `start`, on."""
        return step >= (self.start if self.discriminator_start is None else self.discriminator_start)


class LossConfig(BaseModel):
    """Weights of an autoencoder's loss.

    A KL weight has a meaning only together with the log scale s of the likelihood. So `balance` sets both, and the
    perceptual weight: "ldm": s = 0 and KL weight 1e-6, which is hardly a prior; "elbo": s learned and KL weight 1, a
    far stronger prior; "custom": kl_weight, perceptual_weight and learned_scale must all be given. If
    `perceptual_every` is k, the perceptual distance is computed on one of k pictures, and multiplied by k.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    balance: Literal["ldm", "elbo", "custom"] = Field(
        default="ldm", description="Source of kl_weight, perceptual_weight, learned_scale."
    )
    kl_weight: float = Field(default=1e-6, ge=0, description="Weight of the KL in nats, in LDM's sum convention.")
    perceptual_weight: float = Field(default=1.0, ge=0, description="Weight of the perceptual distance.")
    learned_scale: bool = Field(default=False, description="Learn the likelihood's log scale s.")
    perceptual_every: int = Field(
        default=1,
        ge=1,
        description="k: the perceptual distance is computed on one of k pictures and multiplied by k.",
    )
    pixel: Literal["l1", "l2"] = Field(default="l1", description="Pixel error.")
    codebook_weight: float = Field(default=1.0, ge=0, description="Weight of a VQ model's codebook loss.")
    adversarial: AdversarialConfig | None = Field(default=None, description="Adversarial loss; null: no discriminator.")

    @model_validator(mode="before")
    @classmethod
    def _balanced(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        balance = given.get("balance", "ldm")
        if balance == "custom" and (lost := [key for key in BALANCES["ldm"] if key not in given]):
            raise ValueError(f"balance 'custom' needs {', '.join(lost)} too")
        return {**BALANCES.get(balance, {}), **given}

    @model_validator(mode="after")
    def _unmixed(self) -> "LossConfig":
        for key in ("kl_weight", "learned_scale") if self.balance != "custom" else ():
            if getattr(self, key) != (meant := BALANCES[self.balance][key]):
                raise ValueError(
                    f"balance {self.balance!r} means {key} {meant}; write balance 'custom' to choose your own"
                )
        return self


class LossTerms(NamedTuple):
    """Scalar losses of one batch; `total` is what the autoencoder minimises, without the adversarial term.

    Args:
        total: nll + kl_weight * kl + codebook_weight * codebook; differentiable.
        nll: mean negative log-likelihood per picture element.
        pixel: mean absolute or squared error of pixels in [-1, 1], not divided by the learned scale.
        perceptual: mean perceptual distance, without its weight `perceptual_weight`; 0 without a perceptual network.
        kl: mean KL divergence from the posterior to N(0, I), in nats per picture element; 0 for a VQ model.
        codebook: codebook and commitment loss; 0 for a KL model.
    """

    total: Tensor
    nll: Tensor
    pixel: Tensor
    perceptual: Tensor
    kl: Tensor
    codebook: Tensor


class AutoencoderLoss(nn.Module):
    """The autoencoder's loss without the adversarial term: mean nll + w (N_latent / N_pixel) mean KL + codebook loss.

    w is the KL weight; N_latent and N_pixel are the numbers of elements of a latent and of a picture, whose ratio makes
    w mean the same at every resolution (see the module `loss_terms`). This class has no trained parameters: the learned
    scale belongs to `Autoencode`.

    Args:
        config: the weights of the terms, and which pixel error is used.
        perceptual: the perceptual distance, which is added to the pixel error; None: the pixel error alone.
    """

    def __init__(self, config: LossConfig, perceptual: Perceptual | None = None) -> None:
        super().__init__()
        self.config = config
        self.perceptual = perceptual

    def judged(self, offset: Tensor, count: int, start: float) -> Tensor | None:
        """Choose the samples on which the perceptual distance is computed: bool [B], or None for all.

        One in `perceptual_every` samples of the whole batch is chosen: consecutive samples from a random position on,
        cyclically. Each of R ranks takes every R-th sample of the batch, so that the numbers of chosen samples of any
        two ranks differ by at most one.

        Args:
            offset: index of each of this rank's B samples in the whole batch, int64 [B].
            count: samples in the whole batch, over all ranks and micro-batches.
            start: random number in [0, 1) of the step, which sets the position; each sample is chosen equally often.
        """
        if (every := self.config.perceptual_every) == 1:
            return None
        moved = (offset.cpu().double() + start * count) % count
        return (moved * every < count).to(offset.device)

    def forward(
        self, x: Tensor, made: Reconstruction, judged: Tensor | None = None, weight: Tensor | None = None
    ) -> LossTerms:
        """Return the loss terms of a batch.

        With weights, the pixel error is a weighted mean, and the perceptual distance is that of the reconstruction
        laid over the picture (`loss_terms.laid_over`); KL and codebook loss are those of the whole latent.

        Args:
            x: pictures [B, C, H, W] in [-1, 1].
            made: the reconstruction of x that `Autoencode` returned.
            judged: bool [B], the pictures on which the perceptual distance is computed; None: all.
            weight: [B, 1, H, W] in [0, 1], by which each pixel counts; None: all count.

        Raises:
            AutoencoderError: only one of the config and `made` has a learned scale.
        """
        if self.config.learned_scale != (made.log_scale is not None):
            raise AutoencoderError(
                f"learned_scale is {self.config.learned_scale} in the loss but not in the autoencoder: "
                "build Autoencode(vae, learned_scale=config.learned_scale)."
            )
        pixel = loss_terms.pixel_error(made.picture, x, self.config.pixel, weight)
        perceptual = self._perceptual(loss_terms.laid_over(made.picture, x, weight), x, judged)
        kl = loss_terms.kl_per_pixel(made.moments, x) if made.indices is None else pixel.new_zeros(len(x))
        nll = loss_terms.nll(pixel + self.config.perceptual_weight * perceptual, made.log_scale)
        total = nll.mean() + self.config.kl_weight * kl.mean() + self.config.codebook_weight * made.codebook_loss
        return LossTerms(total, nll.mean(), pixel.mean(), perceptual.mean(), kl.mean(), made.codebook_loss)

    def _perceptual(self, picture: Tensor, x: Tensor, judged: Tensor | None) -> Tensor:
        if self.perceptual is None or self.config.perceptual_weight == 0:
            return x.new_zeros(len(x))
        if judged is None:
            return self.perceptual(picture, x)
        indices = judged.nonzero()[:, 0]
        if len(indices) == 0:
            return x.new_zeros(len(x))
        distances = self.config.perceptual_every * self.perceptual(picture[indices], x[indices])
        return distances.new_zeros(len(x)).index_copy(0, indices, distances)
