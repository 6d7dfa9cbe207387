"""Config of an autoencoder's training, with checks for settings that contradict each other."""

from typing import ClassVar, Literal

from pydantic import AliasChoices, Field, model_validator

from autoencoder.config import AutoencoderConfig
from autoencoder.discriminator import DiscriminatorConfig
from autoencoder.equivariance import EquivarianceConfig
from autoencoder.loss import LossConfig
from autoencoder.perceptual import PerceptualConfig
from autoencoder.vq import VQConfig
from ldm_kit.data.openmoji.dataset import OpenMojiConfig
from ldm_kit.methods.run_config import INIT, RunConfig
from ldm_kit.training.optim import OptimConfig


class AutoencoderRun(RunConfig):
    """Config of a run that trains an autoencoder, with or without a discriminator.

    `perceptual` sets the perceptual distance, a term of the loss.
    """

    masks: ClassVar[bool] = True
    takes_range: ClassVar[bool] = True

    method: Literal["autoencoder"] = Field(default="autoencoder", description="stage 1: an autoencoder")
    init: str | None = INIT
    train_decoder_only: bool = Field(
        default=False, description="train the decoder of `init` alone, so that its latents stay what they are"
    )
    autoencoder: AutoencoderConfig
    loss: LossConfig = Field(
        default=LossConfig(),
        validation_alias=AliasChoices("loss", "criterion"),
        description="loss of the autoencoder",
    )
    perceptual: PerceptualConfig = PerceptualConfig()
    equivariance: EquivarianceConfig | None = Field(
        default=None, description="train latents that transform as the pictures do (EQ-VAE); null: off"
    )
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    discriminator_optim: OptimConfig | None = Field(
        default=None, description="optimiser of the discriminator; null: as `optim`, without Muon"
    )

    @model_validator(mode="after")
    def _check_shapes(self) -> "AutoencoderRun":
        net, channels = self.autoencoder, self._channels
        if net.resolution != self.data.resolution:
            raise ValueError(
                f"autoencoder.resolution is {net.resolution} but data.resolution {self.data.resolution}; "
                "make them equal"
            )
        if net.channels != channels:
            raise ValueError(f"autoencoder.channels is {net.channels}, but the pictures have {channels}")
        if self.equivariance is not None and isinstance(net, VQConfig):
            raise ValueError("equivariance moves latents between the codes of a codebook; expected autoencoder.kind kl")
        return self

    @model_validator(mode="after")
    def _check_perceptual(self) -> "AutoencoderRun":
        seen = (1, 3) if getattr(self.data, "range", None) is not None else (1, 3, 4)
        if self.perceptual.spec != "none" and self._channels not in seen:
            raise ValueError(
                f"the perceptual distance is of grey and RGB, and the pictures have {self._channels} channels; "
                "expected perceptual.spec: none, which trains on the pixel error of all channels, with "
                "loss.adversarial for sharp detail"
            )
        return self

    @model_validator(mode="after")
    def _check_start(self) -> "AutoencoderRun":
        if self.train_decoder_only and self.init is None:
            raise ValueError("train_decoder_only keeps the encoder of a trained autoencoder; expected its name as init")
        if self.train_decoder_only and self.equivariance is not None:
            raise ValueError("equivariance trains the latents, which train_decoder_only keeps; leave one of them out")
        return self

    @model_validator(mode="after")
    def _check_discriminator(self) -> "AutoencoderRun":
        config = self.discriminator
        if self.loss.adversarial is None:
            return self
        if config.channels != self._channels:
            raise ValueError(f"discriminator.channels is {config.channels}, but the pictures have {self._channels}")
        if self._smallest < (least := 3 * 2**config.layers):
            raise ValueError(f"discriminator.layers {config.layers} needs pictures of {least} px, got {self._smallest}")
        return self

    @property
    def needs_captions(self) -> bool:
        """Whether the run uses captions or classes: False, as an autoencoder is trained on pictures alone."""
        return False

    def cautions(self) -> list[str]:
        """Return a warning for each setting without effect, such as an adversarial loss that starts after the run."""
        adversarial, steps = self.loss.adversarial, self.train.steps
        if adversarial is None or adversarial.start < steps:
            return super().cautions()
        trained = "it and the discriminator never count"
        if adversarial.discriminates(steps - 1):
            trained = "it never counts, though the discriminator is trained"
        late = (
            f"loss.adversarial.start is {adversarial.start}, but the run has {steps} steps, of which the first is 0: "
            f"{trained}"
        )
        return [*super().cautions(), late]

    @property
    def batch_norm_note(self) -> str:
        """A phrase for the log on batch norm in the discriminator; empty if there is none."""
        if self.loss.adversarial is None or self.discriminator.norm != "batch":
            return ""
        return ", against a discriminator whose batch norm sees one micro-batch in one process at a time"

    @property
    def _channels(self) -> int:
        """Number of channels of the training pictures."""
        return 3 if isinstance(self.data, OpenMojiConfig) else self.data.channels

    @property
    def _smallest(self) -> int:
        """Side in pixels of the smallest pictures that a step may train on, since `equivariance` scales some down."""
        factor, side = 2 ** (len(self.autoencoder.widths) - 1), self.autoencoder.resolution
        return side if self.equivariance is None else factor * self.equivariance.smallest(side // factor)
