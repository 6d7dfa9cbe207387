"""PatchGAN: a convolutional discriminator with one logit per patch (Isola et al. 2017; Esser et al. 2021)."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from autoencoder.base import AutoencoderError


class DiscriminatorConfig(BaseModel):
    """Settings of the PatchGAN discriminator: its size and normalisation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    channels: int = Field(default=3, ge=1, description="Channels of a picture.")
    width: int = Field(
        default=64, ge=1, description="Channels of the first layer; later ones have up to 8 times as many."
    )
    layers: int = Field(default=3, ge=1, description="Halvings of the resolution: 3 for 256 px, 1 or 2 up to 64 px.")
    norm: Literal["group", "batch", "spectral", "none"] = Field(
        default="group",
        description="Normalisation; batch is LDM's, but takes statistics of one micro-batch in one process: the result "
        "then depends on train.micro_batch and on the number of processes.",
    )
    groups: int = Field(default=16, ge=1, description="Groups of the group norm; must divide twice the width.")

    @model_validator(mode="after")
    def _divides(self) -> "DiscriminatorConfig":
        if self.norm == "group" and 2 * self.width % self.groups:
            raise ValueError(f"groups {self.groups} does not divide {2 * self.width}, the first normalised width")
        return self


class Discriminator(nn.Module):
    """PatchGAN: pictures [B, C, H, W] in [-1, 1] to logits [B, 1, h, w], one per patch, positive for real pictures.

    Args:
        config: number of channels and layers, and the normalisation.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * min(2**n, 8) for n in range(config.layers + 1)]
        body: list[nn.Module] = [_conv(config, config.channels, widths[0], 2), nn.LeakyReLU(0.2)]
        for n, (before, after) in enumerate(pairwise(widths), start=1):
            normed = config.norm in ("group", "batch")
            body += [_conv(config, before, after, 2 if n < config.layers else 1, bias=not normed)]
            body += [_norm(config, after), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*body, _conv(config, widths[-1], 1, 1))
        self.train()

    def train(self, mode: bool = True) -> "Discriminator":
        """Set the mode of all modules except spectral norms.

        Spectral norms stay in evaluation mode, because `after_step` runs their power iteration once per step, not in
        each pass.
        """
        super().train(mode)
        for module in self._parametrised():
            module.parametrizations.eval()
        return self

    @torch.no_grad()
    def after_step(self) -> None:
        """Run one power iteration of each spectral norm; call it once per step, for any number of micro-batches."""
        for module in self._parametrised():
            module.parametrizations.train()
            _ = module.weight  # computing it is what iterates
            module.parametrizations.eval()

    def _parametrised(self) -> Iterator[Any]:
        return (module for module in self.modules() if is_parametrized(module))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, 1, h, w], one per overlapping patch of the pictures x.

        Raises:
            AutoencoderError: the pictures' shorter side is below 3 * 2^layers pixels.
        """
        if min(x.shape[-2:]) < (least := 3 * 2**self.config.layers):
            size, layers = f"{x.shape[-2]}x{x.shape[-1]}", self.config.layers
            raise AutoencoderError(
                f"A discriminator of {layers} layers needs pictures of at least {least} px, got {size}."
            )
        return self.body(x)


def _conv(config: DiscriminatorConfig, before: int, after: int, stride: int, bias: bool = True) -> nn.Module:
    conv = nn.Conv2d(before, after, 4, stride, 1, bias=bias)
    nn.init.normal_(conv.weight, 0.0, 0.02)
    return spectral_norm(conv) if config.norm == "spectral" else conv


def _norm(config: DiscriminatorConfig, width: int) -> nn.Module:
    if config.norm not in ("group", "batch"):
        return nn.Identity()
    norm = nn.GroupNorm(config.groups, width) if config.norm == "group" else nn.BatchNorm2d(width)
    nn.init.normal_(norm.weight, 1.0, 0.02)
    nn.init.zeros_(norm.bias)
    return norm
