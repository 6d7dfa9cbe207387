"""Perceptual distance of two pictures, between the features of a frozen, pretrained network.

d(x, y) = sum or mean over stages l of mean over positions of  w_l . (f_l(x)/|f_l(x)| - f_l(y)/|f_l(y)|)^2

Here f_l is the feature vector of stage l at a position, and w_l has a weight for each channel: learned in LPIPS (Zhang
et al. 2018, eq. 1), all ones for a timm backbone.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from autoencoder.backbones import LpipsBackbone, TimmBackbone
from autoencoder.base import AutoencoderError


class PerceptualConfig(BaseModel):
    """Settings of the perceptual distance: which network's features are compared, and where its weights come from.

    `reduce` says how the distances of the stages are combined, `precision` is the autocast of the features' network.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    spec: str = Field(default="lpips", description="'none' (no distance), 'lpips', or 'timm:<model name>'.")
    net: Literal["vgg", "alex"] = Field(default="vgg", description="Backbone of LPIPS: vgg to train, alex to report.")
    weights: str | None = Field(
        default=None, description="A file's path or 'package:<name>'; null: torch's cache or the Hub."
    )
    stages: tuple[int, ...] | None = Field(default=None, description="Stages of a timm backbone to compare; null: all.")
    reduce: Literal["mean", "sum"] = Field(
        default="mean", description="Mean or sum over a timm backbone's stages; LPIPS sums."
    )
    precision: Literal["run", "no"] = Field(
        default="run", description="Precision of the features; run: that of the run; no: float32."
    )
    minimum_size: int = Field(default=64, ge=1, description="Smaller pictures are enlarged to this side, in pixels.")

    @model_validator(mode="after")
    def _known(self) -> "PerceptualConfig":
        if self.spec not in ("none", "lpips") and not (self.spec.startswith("timm:") and self.spec != "timm:"):
            raise ValueError(f"perceptual.spec must be 'none', 'lpips' or 'timm:<model name>', got {self.spec!r}")
        if self.stages is not None and (not self.stages or not self.spec.startswith("timm:")):
            raise ValueError("perceptual.stages chooses stages of a timm backbone; leave it out otherwise")
        return self


class Perceptual(nn.Module):
    """Perceptual distance with frozen weights, differentiable in both pictures; 0 if `config.spec` is "none".

    Attributes:
        precision: dtype of the backbone's autocast; None: that of an enclosing autocast, if there is one. Distances are
            float32. Measured with EfficientNet-Lite0 and pictures of 64 px, bfloat16 changes distances by up to 1.3 %
            and a layer's gradient over two pictures by 6 to 15 %; float16 by up to 0.3 % and by 5 to 6 %.

    Raises:
        AutoencoderError: the weights cannot be loaded; the message names every way to provide them.
    """

    def __init__(self, config: PerceptualConfig) -> None:
        super().__init__()
        self.config = config
        self.precision: torch.dtype | None = None
        self.backbone = _build(config)
        self.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.train(False)

    def train(self, mode: bool = True) -> "Perceptual":
        """Stay in evaluation mode, even when the enclosing module is put into training mode."""
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distances [B] between pictures x and y, each [B, C, H, W] in [-1, 1].

        C is 1, 3, or 4 with an alpha channel, which is ignored. If one of the two pictures requires no gradient, no
        autograd graph is built for that picture's features.
        """
        if self.backbone is None:
            return x.new_zeros(len(x))
        pairs = zip(self._maps(x), self._maps(y), strict=True)
        with torch.autocast(x.device.type, enabled=False):
            stages = [self._distance(stage, a, b) for stage, (a, b) in enumerate(pairs)]
        mean = self.config.reduce == "mean" and self.config.spec != "lpips"
        return sum(stages[1:], stages[0]) / (len(stages) if mean else 1)

    def features(self, x: Tensor) -> Tensor:
        """Return the deepest feature map of pictures x, averaged over positions, for nearest-neighbour search.

        x is [B, C, H, W] in [-1, 1]; the result [B, D] has the D channels of that feature map.

        Raises:
            AutoencoderError: spec is "none".
        """
        if self.backbone is None:
            raise AutoencoderError(
                "perceptual.spec is 'none', which has no features: choose 'lpips' or 'timm:<model name>'."
            )
        return self._maps(x)[-1].mean((2, 3))

    def _distance(self, stage: int, a: Tensor, b: Tensor) -> Tensor:
        assert self.backbone is not None
        return self.backbone.judge(stage, (_unit(a) - _unit(b)).square()).mean((1, 2))

    def _maps(self, x: Tensor) -> list[Tensor]:
        assert self.backbone is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            x = enlarged(_rgb(x), self.config.minimum_size).contiguous(memory_format=torch.channels_last)
            with self._autocast(x.device.type):
                return [m.float() for m in self.backbone.maps(x.float())]

    def _autocast(self, device: str) -> torch.autocast:
        precision = self.precision or torch.get_autocast_dtype(device)
        enabled = self.config.precision == "run" and (self.precision is not None or torch.is_autocast_enabled(device))
        # on a CPU bfloat16 costs time on the depthwise convolutions of timm's backbones and gives none back
        slow = device == "cpu" and isinstance(self.backbone, TimmBackbone)
        return torch.autocast(device, precision, enabled=enabled and not slow)


def enlarged(x: Tensor, minimum: int) -> Tensor:
    """Enlarge pictures [B, C, H, W] bilinearly to a shorter side of `minimum` pixels; larger pictures stay."""
    height, width = x.shape[-2:]
    if (short := min(height, width)) >= minimum:
        return x
    size = (round(height * minimum / short), round(width * minimum / short))
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _build(config: PerceptualConfig) -> LpipsBackbone | TimmBackbone | None:
    if config.spec == "none":
        return None
    if config.spec == "lpips":
        return LpipsBackbone(config.net, config.weights)
    return TimmBackbone(config.spec.removeprefix("timm:"), config.weights, config.stages)


def _rgb(x: Tensor) -> Tensor:
    match x.shape[1]:
        case 1:
            return x.expand(-1, 3, -1, -1)
        case 3:
            return x
        case 4:
            return x[:, :3]
        case n:
            raise AutoencoderError(f"The perceptual loss sees pictures of 1, 3 or 4 channels, got {n}.")


def _unit(features: Tensor) -> Tensor:
    """Scale the features [B, C, h, w] at each position to length 1; adding 1e-10 keeps gradients at 0 finite."""
    return features * (features.square().sum(1, keepdim=True) + 1e-10).rsqrt()
