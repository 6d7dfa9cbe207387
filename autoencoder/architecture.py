"""Encoder and decoder settings that KL and VQ models share (Rombach et al. 2022, appendix; Esser et al. 2021)."""

from collections.abc import Mapping
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator


class Architecture(BaseModel):
    """Settings of the convolutional encoder, and of the decoder that mirrors it, of an AutoencoderKL or VQModel.

    Level 0 works at the picture's resolution; each further level halves it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    preset: str | None = Field(default=None, description="A named configuration that fills every field left out.")
    channels: int = Field(default=3, ge=1, description="Channels of a picture: 1 grey, 3 RGB.")
    resolution: int = Field(default=32, ge=1, description="Side of a training picture in pixels.")
    widths: tuple[int, ...] = Field(default=(32, 64), min_length=1, description="Feature channels of each level.")
    layers_per_block: int = Field(
        validation_alias=AliasChoices("layers_per_block", "layers"),
        default=1,
        ge=1,
        description="Residual blocks per encoder level; the decoder has one more.",
    )
    latent_channels: int = Field(default=4, ge=1, description="Channels Z of a latent.")
    attention_levels: tuple[int, ...] = Field(default=(), description="Levels with attention after each block.")
    norm_num_groups: int = Field(
        validation_alias=AliasChoices("norm_num_groups", "norm_groups"),
        default=16,
        ge=1,
        description="Groups of every GroupNorm; must divide all widths.",
    )
    middle_attention: bool = Field(default=True, description="Attention at the bottom of encoder and decoder.")

    @model_validator(mode="after")
    def _fits(self) -> "Architecture":
        if bad := [w for w in self.widths if w < 1 or w % self.norm_num_groups]:
            raise ValueError(f"widths {bad} are not multiples of norm_num_groups {self.norm_num_groups}")
        if bad := [n for n in self.attention_levels if not 0 <= n < len(self.widths)]:
            raise ValueError(f"attention_levels {bad} do not exist: widths has levels 0 to {len(self.widths) - 1}")
        if self.resolution % self.factor:
            raise ValueError(f"resolution {self.resolution} is not a multiple of the reduction factor {self.factor}")
        return self

    @property
    def factor(self) -> int:
        """Downsampling factor, the ratio of a picture's side to its latent's."""
        return 2 ** (len(self.widths) - 1)

    @property
    def side(self) -> int:
        """Height and width of the latent of a training picture: resolution / factor."""
        return self.resolution // self.factor

    def diffusers(self) -> dict[str, Any]:
        """Return the constructor arguments that AutoencoderKL and VQModel have in common."""
        attention = [n in self.attention_levels for n in range(len(self.widths))]
        return {
            "in_channels": self.channels,
            "out_channels": self.channels,
            "down_block_types": tuple("AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attention),
            "up_block_types": tuple("AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attention)),
            "block_out_channels": self.widths,
            "layers_per_block": self.layers_per_block,
            "latent_channels": self.latent_channels,
            "norm_num_groups": self.norm_num_groups,
            "sample_size": self.resolution,
            "scaling_factor": 1.0,  # `statistics.fold` sets it once the latents are known
            "mid_block_add_attention": self.middle_attention,
            "force_upcast": False,
        }


def filled(given: Any, presets: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return the fields that a user gives for a config, completed by the fields of the preset that the user names.

    Args:
        given: values by field name; the value of "preset" is the preset's name. If there is none, or if `given` is no
            mapping, `given` is returned unchanged.
        presets: the fields of each preset, by the preset's name.

    Raises:
        ValueError: there is no such preset.
    """
    if not isinstance(given, Mapping) or given.get("preset") is None:
        return given
    if (name := given["preset"]) not in presets:
        raise ValueError(f"unknown preset {name!r}; known are {', '.join(presets)}")
    return {**presets[name], **given}


def published(
    *multiples: int, latent_channels: int, attention_levels: tuple[int, ...] = (), **more: Any
) -> dict[str, Any]:
    """Return the fields of a config, for an autoencoder of LDM's model zoo that was trained at 256 px.

    The channels of its levels are 128 times `multiples` (one for each level), with two residual blocks per level. The
    other arguments (`latent_channels`, `attention_levels`, `more`) are fields of the config by name.
    """
    shape = {
        "resolution": 256,
        "widths": tuple(128 * m for m in multiples),
        "layers_per_block": 2,
        "norm_num_groups": 32,
    }
    return {**shape, "latent_channels": latent_channels, "attention_levels": attention_levels, **more}
