"""Build a diffusers U-Net from a config.

With cross-attention tokens it is a `UNet2DConditionModel`, which Stable Diffusion's pipelines open. Without tokens it
is a `UNet2DModel`, which `LDMPipeline` opens, or an `AdmUNet` where all levels need the same number of heads (ADM at
128 px), which `UNet2DModel` cannot express.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from pydantic import AliasChoices, Field, model_validator

from ldm_kit.config import UserError
from ldm_kit.nets.adm import AdmUNet
from ldm_kit.nets.guidance_embedding import check_no_guidance_scale, zero_guidance_scale
from ldm_kit.nets.levels import LevelsConfig
from ldm_kit.nets.presets import PRESETS
from ldm_kit.nets.zero_init import zero_init_like_adm as zero_init_like_adm

UNet = UNet2DConditionModel | UNet2DModel
LEVEL = "timestep"  # diffusers' class_embed_type of a network that takes a noise level


def takes_level(unet: Any) -> bool:
    """Return whether a U-Net takes the noise level [B] of a picture condition as an input."""
    return unet.config.get("class_embed_type") == LEVEL


class UNetConfig(LevelsConfig):
    """Settings of a denoising U-Net; the defaults are the preset `nano`.

    Level 0 works at the latent's resolution; each further level halves it.
    """

    preset: str | None = Field(default=None, description="name of a preset, whose values fill every field left out")
    widths: tuple[int, ...] = Field(default=(64, 128, 128), min_length=1, description="feature channels of each level")
    attention_levels: tuple[bool, ...] = Field(
        validation_alias=AliasChoices("attention_levels", "attention"),
        default=(False, True, True),
        description="for each level, whether it has a transformer (plain attention where there are no tokens)",
    )
    layers_per_block: int = Field(
        validation_alias=AliasChoices("layers_per_block", "layers"),
        default=1,
        ge=1,
        description="residual blocks of each level down; one more on the way up",
    )
    heads: int | None = Field(
        default=None,
        ge=1,
        description="attention heads; left out: 4. Without tokens diffusers has one head size for all levels: the "
        "largest that gives every level at least this number of heads",
    )
    head_size: int | None = Field(default=None, ge=1, description="channels of a head, instead of heads")
    equal_heads: bool = Field(
        default=False,
        description="without tokens: exactly `heads` at every level (ADM at 128 px), which plain diffusers cannot open",
    )
    norm_num_groups: int = Field(
        validation_alias=AliasChoices("norm_num_groups", "groups"),
        default=8,
        ge=1,
        description="groups of every GroupNorm; must divide every width",
    )
    transformer_depth: int = Field(default=1, ge=1, description="blocks in each transformer; unused without tokens")
    linear_projection: bool = Field(
        default=False, description="linear maps, not 1x1 convolutions, around a transformer (SD 2)"
    )
    time: Literal["add", "scale_shift"] = Field(
        default="add", description="how a residual block takes the time: added, or as scale and shift of its norm (ADM)"
    )
    resample: Literal["conv", "resnet"] = Field(
        default="conv", description="between levels: a convolution, or a residual block (ADM; only without tokens)"
    )
    time_channels: int | None = Field(
        default=None, ge=1, description="channels of the time embedding; left out: 4 x the first width"
    )

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, given: Any) -> Any:
        """Return a config's fields `given`, with the values of the preset `given["preset"]` for missing fields.

        If `heads` or `head_size` is given, the preset's `heads`, `head_size` and `equal_heads` are not used. If none
        of `preset`, `heads` and `head_size` is given, heads = 4 is added.
        """
        if not isinstance(given, Mapping):
            return given
        name = given.get("preset")
        if name is not None and name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
        base = dict(PRESETS[name]) if name is not None else {"heads": 4}
        if given.get("heads") is not None or given.get("head_size") is not None:
            base = {key: value for key, value in base.items() if key not in ("heads", "head_size", "equal_heads")}
        return {**base, **given}

    @model_validator(mode="after")
    def _fits(self) -> "UNetConfig":
        if (self.heads is None) == (self.head_size is None):
            raise ValueError(
                f"expected either heads or head_size, got heads {self.heads} and head_size {self.head_size}"
            )
        if self.equal_heads and self.heads is None:
            raise ValueError(f"equal_heads is for heads, but head_size is {self.head_size}; leave one of them out")
        self.check_heads(self.heads or self.head_size or 1, self._counted)
        return self

    @property
    def time_width(self) -> int:
        """Channels of the time embedding, to which a condition's vector is added."""
        return self.time_channels or 4 * self.widths[0]

    @property
    def factor(self) -> int:
        """Ratio of the latent's side to the side of the middle block's features, 2 ** (levels - 1)."""
        return 2 ** (len(self.widths) - 1)

    @property
    def _counted(self) -> str:
        return f"heads {self.heads}" if self.heads else f"head_size {self.head_size}"

    def heads_by_level(self) -> tuple[int, ...]:
        """Return the number of attention heads of each level; `UNet2DConditionModel` calls it `attention_head_dim`."""
        if self.heads is not None:
            return (self.heads,) * len(self.widths)
        return tuple(max(1, width // (self.head_size or 1)) for width in self.widths)

    def common_head_size(self) -> int | None:
        """Return the channels of a head, one number for all levels, as `UNet2DModel` takes it.

        None means one head at every level.
        """
        if self.heads is None or self.heads == 1:
            return self.head_size
        return math.gcd(*self.attended) // self.heads


def build_unet(
    config: UNetConfig,
    *,
    sample_size: int,
    channels: int,
    cross_width: int | None,
    out_channels: int | None = None,
    vector_width: int | None = None,
    guidance_width: int | None = None,
    level: bool = False,
) -> UNet:
    """Build the network x_t [B, channels, h, w] -> [B, out_channels, h, w], with diffusers' random initialisation.

    Args:
        config: widths, attention and so on.
        sample_size: side of a training latent.
        channels: input channels, including those of the maps that a condition concatenates to the input.
        cross_width: channels D of the tokens [B, L, D] that the network attends to; None: no cross-attention.
        out_channels: output channels; None: as many as the input has.
        vector_width: channels V of a condition's `vector` [B, V], which is added to the time embedding. None: the
            network takes no vector.
        guidance_width: number of sinusoids that embed the guidance scale, an input whose weights start at zero; only
            for networks with tokens. None: the guidance scale is no input.
        level: whether the noise level of a picture condition is an input, embedded as the timestep is.

    Raises:
        UserError: `sample_size` cannot be halved once for every level after the first; or, without tokens,
            `vector_width` is not the width of the time embedding, or `guidance_width` is given; or, with tokens,
            `config.resample` is "resnet"; or both `vector_width` and `level` are given.
    """
    if level and vector_width is not None:
        raise UserError(
            "a U-Net of diffusers takes either a vector or a picture's noise level; expected condition.form token, or "
            "no condition of kind super_resolution"
        )
    if sample_size % config.factor:
        raise UserError(
            f"a latent of side {sample_size} cannot be halved {len(config.widths) - 1} times; expected a multiple of "
            f"{config.factor}, or fewer widths"
        )
    shape = {
        "sample_size": sample_size,
        "in_channels": channels,
        "out_channels": channels if out_channels is None else out_channels,
        "block_out_channels": config.widths,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "dropout": config.dropout,
        "time_embedding_dim": config.time_channels,
        "resnet_time_scale_shift": "default" if config.time == "add" else config.time,
    }
    of_level = {"class_embed_type": LEVEL} if level else {}
    if cross_width is None:
        check_no_guidance_scale(guidance_width)
        settings = {**shape, **_plain(config, vector_width), **of_level}
        if config.equal_heads and len({*config.attended}) > 1:
            return AdmUNet(**settings, heads=config.heads or 1)
        return UNet2DModel(**settings, attention_head_dim=config.common_head_size())
    crossed = {**_crossed(config, cross_width, vector_width), **of_level}
    return zero_guidance_scale(UNet2DConditionModel(**shape, **crossed, time_cond_proj_dim=guidance_width))


def _plain(config: UNetConfig, vector_width: int | None) -> dict[str, Any]:
    if vector_width not in (None, config.time_width):
        raise UserError(
            f"a vector {vector_width} wide does not fit a U-Net without tokens; expected the width of its time "
            f"embedding, {config.time_width}"
        )
    return {
        **_blocks(config, "Attn"),
        "attn_norm_num_groups": None if config.time == "add" else config.norm_num_groups,  # diffusers #4414
        "downsample_type": config.resample,
        "upsample_type": config.resample,
        "class_embed_type": None if vector_width is None else "identity",
    }


def _crossed(config: UNetConfig, cross_width: int, vector_width: int | None) -> dict[str, Any]:
    if config.resample != "conv":
        raise UserError(
            "unet.resample is resnet, but diffusers' U-Nets with tokens resample by convolutions; expected conv"
        )
    vector = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": vector_width}
    return {
        **_blocks(config, "CrossAttn"),
        "cross_attention_dim": cross_width,
        "attention_head_dim": config.heads_by_level(),  # despite its name the number of heads (diffusers #2011)
        "transformer_layers_per_block": config.transformer_depth,
        "use_linear_projection": config.linear_projection,
        **({} if vector_width is None else vector),
    }


def _blocks(config: UNetConfig, kind: str) -> dict[str, tuple[str, ...]]:
    bare = "" if config.resample == "conv" else "Resnet"
    return {
        "down_block_types": tuple(_block(kind, bare, "Down", level) for level in config.attention_levels),
        "up_block_types": tuple(_block(kind, bare, "Up", level) for level in reversed(config.attention_levels)),
    }


def _block(kind: str, bare: str, way: str, attention: bool) -> str:
    """Return the name of a diffusers block class.

    Args:
        kind: prefix of blocks with attention, "CrossAttn" or "Attn".
        bare: prefix of blocks without attention: "Resnet" if they resample by residual blocks, "" if by convolutions.
        way: "Down" or "Up".
        attention: whether the block has attention.
    """
    sample = f"{way}sample" if bare else way
    return f"{kind}{way}Block2D" if attention else f"{bare}{sample}Block2D"
