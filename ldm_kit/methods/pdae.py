"""Representation learning from a frozen diffusion model.

Paper:    Zhang et al. 2022, "Unsupervised Representation Learning from Pre-trained Diffusion Probabilistic Models".
Idea:     a frozen model's posterior mean misses what x_t has lost of the picture; a learned gradient G(x_t, t, z), told
          the picture's code z, fills that gap as a classifier's gradient would.
Parts:    the frozen model (ours or of diffusers), a second decoder on its features, a semantic encoder.
Run:      accelerate launch train_ldm.py configs/semantic/pdae_latents.yaml
Expected: see the header of that config.
"""

from functools import partial
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from conditioning.semantic import SemanticConfig, StridedEncoderConfig
from ldm_kit.diffusion import schedule
from ldm_kit.diffusion.pdae import NetworkEstimator, pdae_loss, pdae_weight
from ldm_kit.diffusion.schedule import Schedule, ScheduleConfig
from ldm_kit.methods.base import NoisedRun
from ldm_kit.methods.inputs import NoisedBatch
from ldm_kit.methods.semantic import ReconstructionConfig, SemanticTask, refuse_aware
from ldm_kit.models.base_model import BaseModel
from ldm_kit.models.codes import Encoder
from ldm_kit.nets.shift_unet import ShiftUNet


class PDAERun(NoisedRun):
    """A semantic encoder and a gradient estimator, trained on a frozen model."""

    method: Literal["pdae"] = Field(description="codes on a frozen diffusion model (PDAE)")
    base: str = Field(
        min_length=1,
        description="the frozen model, never changed: its folder, its run's, or its name on the Hub, owner/name",
    )
    base_revision: str | None = Field(
        default=None, min_length=1, description="of a base on the Hub: branch, tag or commit; left out: main"
    )
    encoder: SemanticConfig = StridedEncoderConfig()
    copied: bool = Field(
        default=False, description="start the second decoder from the frozen one's weights; the paper: afresh"
    )
    gamma: float = Field(default=0.1, ge=0, le=1, description="weight of a time: SNR^gamma / (1 + SNR)")
    sample: ReconstructionConfig = ReconstructionConfig()

    @model_validator(mode="after")
    def _fits(self) -> "PDAERun":
        refuse_aware(self.timestep_sampling)
        if self.autoencoder is not None or self.schedule != ScheduleConfig():
            raise ValueError("autoencoder and schedule are those of the base; leave them out")
        return self


class ShiftedDiffusion(nn.Module):
    """Encoder and gradient estimator as one module, so that DDP around it sees every gradient; the base is no part."""

    def __init__(self, encoder: Encoder, shift: ShiftUNet, base: BaseModel) -> None:
        super().__init__()
        self.encoder, self.shift = encoder, shift
        self._base = (base,)  # in a tuple: nothing of it is registered

    def forward(self, x: Tensor, t: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy latents [B, Z, h, w], times [B] and pictures [B, C, R, R] in [-1, 1] to (frozen output, G)."""
        return self.shift(x, t, self.encoder(picture), self._base[0].null.to(x.device))


def pdae_task(config: PDAERun, encoder: Encoder, shift: ShiftUNet, base: BaseModel) -> SemanticTask:
    """The training of both new parts: the error of the shifted eps, weighted by signal and noise."""

    def measure(out: Any, noised: NoisedBatch, table: Schedule) -> Tensor:
        estimator = NetworkEstimator(lambda _x, _t, _cond: out, table, base.target, base.learned_range)
        frozen, gap = estimator(noised.x_t, noised.t, None)
        return pdae_loss(frozen.eps, gap, noised.eps, noised.t, table)

    parts = {"encoder": encoder, "shift": shift}
    module, weigh = ShiftedDiffusion(encoder, shift, base), partial(pdae_weight, gamma=config.gamma)
    return SemanticTask(config, module, parts, schedule.build(base.schedule_config), measure, weigh)
