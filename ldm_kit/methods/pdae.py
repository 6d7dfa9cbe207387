"""PDAE: representation learning from a frozen diffusion model.

Paper:    Zhang et al. 2022, "Unsupervised Representation Learning from Pre-trained Diffusion Probabilistic Models".
Idea:     a frozen model cannot predict what x_t no longer shows of the picture. A learned gradient G(x_t, t, z), with
          the picture's semantic code z, shifts the model's posterior mean, as a classifier's gradient would.
Parts:    the frozen model (of ldm_kit or diffusers), a second decoder on its encoder's features, a semantic encoder.
Run:      accelerate launch train_ldm.py configs/benchmarks/pdae_latents.yaml
Expected: see the header of that config.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from conditioning.semantic import SemanticConfig, StridedEncoderConfig, build_semantic
from ldm_kit.config import UserError
from ldm_kit.data.images import PictureSet, Split
from ldm_kit.diffusion import schedule
from ldm_kit.diffusion.pdae import NetworkEstimator, pdae_loss, pdae_weight
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.methods.base import TrainingData
from ldm_kit.methods.inputs import FirstStage, NoisedBatch
from ldm_kit.methods.run_config import check_any_density
from ldm_kit.methods.semantic import CodedNetwork, SemanticMethod, SemanticRun, pictured_latents
from ldm_kit.models.base_model import BaseModel
from ldm_kit.models.codes import Encoder
from ldm_kit.models.decoders import ShiftDecoder
from ldm_kit.nets.shift_unet import ShiftUNet


class PDAERun(SemanticRun):
    """Config of a run that trains a semantic encoder and a gradient estimator for a frozen diffusion model."""

    method: Literal["pdae"] = Field(description="codes on a frozen diffusion model (PDAE)")
    base: str = Field(
        min_length=1,
        description="the frozen base model, never changed: a model's or a run's folder, or owner/name on the Hub",
    )
    base_revision: str | None = Field(
        default=None, min_length=1, description="revision of a base on the Hub: branch, tag or commit; left out: main"
    )
    encoder: SemanticConfig = StridedEncoderConfig()
    copied: bool = Field(
        default=False,
        description="start the gradient estimator from the frozen decoder's weights; the paper: from random ones",
    )
    gamma: float = Field(
        default=0.1, ge=0, le=1, description="exponent in a timestep's loss weight, SNR^gamma / (1 + SNR)"
    )

    @model_validator(mode="after")
    def _check_base(self) -> "PDAERun":
        check_any_density(self.timestep_sampling)
        if self.autoencoder is not None or self.schedule != ScheduleConfig():
            raise ValueError("autoencoder and schedule are those of the base; leave them out")
        return self


class ShiftedDiffusion(CodedNetwork):
    """Encoder and gradient estimator as one module, so that one DDP wrapper averages the gradients of both.

    The frozen base model is no submodule: it is neither trained nor saved. `folder` is the attribute that holds the
    gradient estimator, and its folder in a saved model.
    """

    folder: ClassVar[str] = "shift"

    def __init__(self, encoder: Encoder, shift: ShiftUNet, base: BaseModel) -> None:
        super().__init__()
        self.encoder, self.shift = encoder, shift
        self._base = (base,)  # in a tuple: nothing of it is registered

    def forward(self, x: Tensor, t: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Return the base model's output and the estimated gradient G, for noisy latents x [B, Z, h, w].

        Args:
            x: noisy latents [B, Z, h, w].
            t: timesteps [B].
            picture: clean pictures [B, C, R, R] in [-1, 1], which are encoded to codes.
        """
        return self.shift(x, t, self.encoder(picture), self._base[0].null.to(x.device))


class PDAE(SemanticMethod[PDAERun, ShiftedDiffusion]):
    """Training method of PDAE: the loss is the weighted squared error of the frozen model's eps, shifted by G.

    G(x_t, t, z) is the learned gradient, where z is the picture's code; the weight depends on the timestep, see
    `weight`.
    """

    Config = PDAERun

    def __init__(
        self, config: PDAERun, module: ShiftedDiffusion, base: BaseModel, data: TrainingData | None = None
    ) -> None:
        super().__init__(config, module, schedule.build(base.schedule_config), data)
        self.base = base

    @classmethod
    def build(cls, config: PDAERun, data: Split, device: torch.device) -> "PDAE":
        """Open the base model on `device`, cache its latents of `data`, and build encoder and gradient estimator.

        Raises:
            UserError: the base model cannot be opened or does not fit the pictures; the training latents have a
                standard deviation below 0.4 or above 2.5, where 1 is expected; or the folder `config.latents` holds
                latents of other pictures or another autoencoder.
        """
        base = BaseModel.open(config.base, device, revision=config.base_revision)
        _check_base(base, data.train, config)
        first_stage = FirstStage(config.model_copy(update={"autoencoder": config.base}), base.vae, device)
        inputs, shape = pictured_latents(config, first_stage, data)
        encoder = build_semantic(config.encoder, resolution=data.train.resolution, channels=data.train.channels)
        width = config.encoder.z_width
        shift = ShiftUNet(base=base.unet, z_width=width, copied=config.copied, learned_range=base.learned_range)
        method = cls(config, ShiftedDiffusion(encoder, shift, base), base, inputs)
        method.latent_shape = shape
        method.dependencies = dict.fromkeys(("base", "base_revision"), base.sha256)
        return method

    def error(self, output: Any, batch: NoisedBatch) -> Tensor:
        """Return the mean squared error [B] between the true eps and the base model's eps, shifted by the gradient G.

        `output` is what `ShiftedDiffusion` returned for `batch`.
        """
        base = self.base
        estimator = NetworkEstimator(lambda _x, _t, _cond: output, self.schedule, base.target, base.learned_range)
        frozen, gap = estimator(batch.x_t, batch.t, None)
        return pdae_loss(frozen.eps, gap, batch.eps, batch.t, self.schedule)

    def weight(self, t: Tensor) -> Tensor:
        """Return the loss weights SNR^gamma / (1 + SNR) of timesteps t [B].

        SNR = a_t^2 / s_t^2 is the signal-to-noise ratio of x_t = a_t x_0 + s_t eps.
        """
        return pdae_weight(t, self.schedule, gamma=self.config.gamma)

    def decoder(self) -> ShiftDecoder:
        """Return the decoder of codes: the base model with the gradient estimator."""
        return ShiftDecoder(self.module.shift, self.base)

    def describe_model(self) -> str:
        """Return a phrase on the networks (classes, parameters) for `describe`, the log's opening text."""
        return f"{super().describe_model()} on the frozen {type(self.base.unet).__name__} of {self.base.name}"


def _check_base(base: BaseModel, pictures: PictureSet, config: PDAERun) -> None:
    shape = (pictures.channels, pictures.resolution, pictures.resolution)
    if shape != base.shape:
        raise UserError(
            f"the frozen model in {config.base} samples pictures of {_sized(base.shape)}, but those of data are of "
            f"{_sized(shape)}; expected the same"
        )
    steps, times = max(config.sample.encode_steps, config.sample.decode_steps), base.schedule_config.num_train_timesteps
    if steps >= times:
        raise UserError(f"sample asks for {steps} steps, but the frozen model in {config.base} has {times} times")


def _sized(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))
