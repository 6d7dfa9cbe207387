"""DiffAE's conditional U-Net: diffusers' `UNet2DModel` whose residual blocks are also scaled by a semantic code.

The code is the only condition; there is no cross-attention. As in the paper (Preechakul et al. 2022, appendix A), ADM's
residual blocks resample (average pooling, nearest neighbour), attention has one head by default, and time and code are
embedded separately.
"""

import math
from collections.abc import Sequence
from itertools import compress
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.unets.unet_2d import UNet2DModel
from pydantic import AliasChoices, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import pad

from ldm_kit.config import UserError
from ldm_kit.nets.adagn import give_z
from ldm_kit.nets.apply import ConditionLike
from ldm_kit.nets.arguments import network_arguments
from ldm_kit.nets.levels import LevelsConfig
from ldm_kit.nets.unet import zero_init_like_adm


class SemanticUNetConfig(LevelsConfig):
    """Settings of a U-Net that decodes a semantic code.

    Level 0 works at the picture's resolution; each further level halves it.
    """

    widths: tuple[int, ...] = Field(default=(64, 128, 128), min_length=1, description="feature channels of each level")
    attention_levels: tuple[bool, ...] = Field(
        validation_alias=AliasChoices("attention_levels", "attention"),
        default=(False, True, False),
        description="for each level, whether it has attention (the papers: at 16 pixels); the middle block always has",
    )
    layers_per_block: int = Field(
        validation_alias=AliasChoices("layers_per_block", "layers"),
        default=2,
        ge=1,
        description="residual blocks of each level down; one more on the way up",
    )
    heads: int = Field(default=1, ge=1, description="attention heads at the narrowest level that has attention")
    time_width: int = Field(default=512, ge=1, description="channels of the time embedding; may differ from z_width")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout in residual blocks")

    @model_validator(mode="after")
    def _fits(self) -> "SemanticUNetConfig":
        self.check_heads(self.heads, f"heads {self.heads}")
        return self


class SemanticUNet(ModelMixin, ConfigMixin):
    """DiffAE's U-Net: a map of x_t [B, C, h, w], timesteps t [B] and semantic codes z [B, Z] to outputs [B, C', h, w].

    As in ADM, the output is 0 before training.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        *,
        sample_size: int,
        channels: int = 3,
        out_channels: int | None = None,
        z_width: int = 512,
        widths: Sequence[int] = (64, 128, 128),
        attention: Sequence[bool] = (False, True, False),
        layers: int = 2,
        heads: int = 1,
        time_width: int = 512,
        groups: int = 32,
        dropout: float = 0.1,
    ) -> None:
        """Build the network from the fields of `SemanticUNetConfig` and the shapes of the data.

        Args:
            sample_size: side of a training picture (or latent).
            channels: channels C of the input x_t.
            out_channels: channels C' of the output; None: C.
            z_width: Z, dimensions of a semantic code.
            widths: this and the following arguments are fields of `SemanticUNetConfig`, some renamed by
                `arguments.SAVED`.
        """
        super().__init__()
        shape: dict[str, Any] = {"sample_size": sample_size, "in_channels": channels}
        self.unet = UNet2DModel(
            **shape,
            **_blocks(attention),
            out_channels=out_channels or channels,
            block_out_channels=tuple(widths),
            layers_per_block=layers,
            attention_head_dim=_head_size(widths, attention, heads),
            time_embedding_dim=time_width + z_width,  # what each block receives
            class_embed_type="identity",
            resnet_time_scale_shift="scale_shift",
            norm_num_groups=groups,
            attn_norm_num_groups=groups,  # else the middle attention has no norm (diffusers #4414)
            dropout=dropout,
        )
        self.unet.time_embedding = TimeHalf(widths[0], time_width, z_width)  # pyright: ignore[reportAttributeAccessIssue]
        self.unet.class_embedding = CodeHalf(time_width)  # pyright: ignore[reportAttributeAccessIssue]
        give_z(self.unet, time_width, z_width)
        zero_init_like_adm(self.unet)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Return the output [B, C', h, w], computed in the weights' dtype.

        Args:
            x: noisy data x_t [B, C, h, w].
            t: timesteps [B].
            z: semantic codes [B, Z], or one code [1, Z] for the whole batch.

        Raises:
            ValueError: z is neither [B, Z] nor [1, Z] (one code for the whole batch).
        """
        dtype = self.unet.conv_in.weight.dtype
        z = expand_codes(z, len(x), self.config["z_width"]).to(dtype)
        return self.unet(x.to(dtype), t, class_labels=z, return_dict=False)[0]


class TimeHalf(nn.Module):
    """Map of sinusoidal time features [B, F] to a time embedding [B, T], padded by Z zeros at the end: [B, T + Z].

    diffusers' U-Net adds this to the output of `CodeHalf`, T zeros followed by the semantic code z. The sum is the
    concatenation of the time embedding [B, T] and z [B, Z].

    Args:
        features: F, number of sinusoidal features.
        time_width: T, channels of the time embedding.
        z_width: Z, dimensions of a code.
    """

    def __init__(self, features: int, time_width: int, z_width: int) -> None:
        super().__init__()
        self.embedding, self.z_width = TimestepEmbedding(features, time_width), z_width

    def forward(self, features: Tensor) -> Tensor:
        """Apply two linear maps with a SiLU between them to features [B, F], then append Z zeros: [B, T + Z]."""
        return pad(self.embedding(features), (0, self.z_width))


class CodeHalf(nn.Module):
    """Padding of semantic codes [B, Z] by T zeros in front, [B, T + Z], to be added to the output of `TimeHalf`.

    Args:
        time_width: T, channels of the time embedding.
    """

    def __init__(self, time_width: int) -> None:
        super().__init__()
        self.time_width = time_width

    def forward(self, z: Tensor) -> Tensor:
        """Prepend T zeros to z [B, Z]. Nothing is learned: each residual block has its own linear map of z."""
        return pad(z, (self.time_width, 0))


def build_semantic_unet(
    config: SemanticUNetConfig, *, sample_size: int, channels: int, z_width: int, out_channels: int | None = None
) -> SemanticUNet:
    """Build the U-Net that a config describes, with random weights.

    Args:
        config: widths, attention and so on.
        sample_size: side of a training picture (or latent).
        channels: channels of the input.
        z_width: dimensions of a semantic code.
        out_channels: channels of the output; None: as many as the input has.

    Raises:
        UserError: `sample_size` cannot be halved once for every level after the first.
    """
    check_halves(config, sample_size)
    shape = {"sample_size": sample_size, "channels": channels, "z_width": z_width, "out_channels": out_channels}
    return SemanticUNet(**shape, **network_arguments(config))


def check_halves(config: SemanticUNetConfig, sample_size: int) -> None:
    """Check that a picture (or latent) of side `sample_size` can be halved once for every level after the first.

    Raises:
        UserError: it cannot.
    """
    factor = 2 ** (len(config.widths) - 1)
    if sample_size % factor:
        raise UserError(
            f"a picture of side {sample_size} cannot be halved {len(config.widths) - 1} times; expected a multiple of "
            f"{factor}, or fewer widths"
        )


def expand_codes(z: Tensor, batch: int, width: int) -> Tensor:
    """Return semantic codes z, [batch, width] or one code [1, width] for the whole batch, as [batch, width].

    Raises:
        ValueError: z has another shape.
    """
    if z.dim() != 2 or z.shape[1] != width or len(z) not in (1, batch):
        raise ValueError(f"expected codes [{batch}, {width}], got {list(z.shape)}")
    return z.expand(batch, width)


def apply_semantic(unet: nn.Module, x: Tensor, t: Tensor, condition: ConditionLike) -> Tensor:
    """Return the U-Net's output for a condition that holds a semantic code.

    `partial(apply_semantic, unet)` is a function of (x_t, t, condition), as `diffusion.denoiser.NetworkDenoiser` takes
    it.

    Args:
        unet: the network of (x_t, t, z), a `SemanticUNet` or a `TokenUNet`.
        x: noisy data x_t [B, C, h, w].
        t: timesteps [B].
        condition: its `vector` is the semantic code, [B, Z] or [1, Z]; its other tensors are ignored.

    Returns:
        The network's output [B, C', h, w].

    Raises:
        ValueError: the condition has no vector.
    """
    if condition.vector is None:
        raise ValueError("a semantic U-Net needs a condition's vector, the code z; got a condition without")
    return unet(x, torch.as_tensor(t, device=x.device), condition.vector)


def _blocks(attention: Sequence[bool]) -> dict[str, Any]:
    down = tuple("AttnDownBlock2D" if attends else "ResnetDownsampleBlock2D" for attends in attention)
    up = tuple("AttnUpBlock2D" if attends else "ResnetUpsampleBlock2D" for attends in reversed(attention))
    kinds = {"downsample_type": "resnet", "upsample_type": "resnet"}
    return {"down_block_types": down, "up_block_types": up, **kinds}


def _head_size(widths: Sequence[int], attention: Sequence[bool], heads: int) -> int | None:
    """Return the channels of a head, one number for all levels, as `UNet2DModel` takes it.

    It is the greatest common divisor of all widths with attention, divided by `heads`. None means one head, which is as
    wide as its level.

    Args:
        widths: channels of each level; the last is also that of the middle block, which always has attention.
        attention: for each level, whether it has attention.
        heads: number of heads at the narrowest level with attention.
    """
    if heads == 1:
        return None
    return math.gcd(*compress(widths, attention), widths[-1]) // heads
