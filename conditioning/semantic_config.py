"""Configs of the semantic encoders of DiffAE and PDAE: the `encoder:` section of a run's config."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

Blocks = Literal["single", "double"]


class SemanticEncoderConfig(BaseModel):
    """Settings of DiffAE's semantic encoder. Level 0 has the picture's resolution; each further level halves it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["diffae"] = Field(default="diffae", description="the downward half of a U-Net")
    z_width: int = Field(default=512, ge=1, description="numbers in a code")
    widths: tuple[int, ...] = Field(
        default=(64, 128, 128, 128), min_length=1, description="feature channels of each level"
    )
    attention_levels: tuple[bool, ...] = Field(
        validation_alias=AliasChoices("attention_levels", "attention"),
        default=(False, True, False, False),
        description="for each level, whether it has attention (the paper: at 16 pixels)",
    )
    blocks: Blocks = Field(
        default="single",
        description="single: one convolution a block, as the released models have; double: full residual blocks",
    )
    layers_per_block: int = Field(
        validation_alias=AliasChoices("layers_per_block", "layers"), default=2, ge=1, description="blocks of each level"
    )
    norm_num_groups: int = Field(
        validation_alias=AliasChoices("norm_num_groups", "groups"),
        default=32,
        ge=1,
        description="groups of every GroupNorm; must divide every width",
    )

    @model_validator(mode="after")
    def _fits(self) -> "SemanticEncoderConfig":
        if len(self.attention_levels) != len(self.widths):
            raise ValueError(
                f"attention_levels has {len(self.attention_levels)} levels and widths {len(self.widths)}; "
                "expected one each"
            )
        _check_groups(self.widths, self.norm_num_groups)
        return self


class StridedEncoderConfig(BaseModel):
    """Settings of PDAE's semantic encoder; the defaults are the paper's for pictures of 128 pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["strided"] = Field(default="strided", description="strided convolutions")
    z_width: int = Field(default=512, ge=1, description="numbers in a code")
    widths: tuple[int, ...] = Field(
        default=(64, 128, 256, 256, 256), min_length=1, description="channels of each convolution; each halves the side"
    )
    attention: int | None = Field(default=3, ge=1, description="convolutions before the attention; null: no attention")
    heads: int = Field(default=4, ge=1, description="attention heads")
    norm_num_groups: int = Field(
        validation_alias=AliasChoices("norm_num_groups", "groups"),
        default=32,
        ge=1,
        description="groups of every GroupNorm; must divide every width",
    )

    @model_validator(mode="after")
    def _fits(self) -> "StridedEncoderConfig":
        if self.attention is not None and self.attention > len(self.widths):
            raise ValueError(f"attention after {self.attention} convolutions, but there are {len(self.widths)}")
        if self.attention is not None and self.widths[self.attention - 1] % self.heads:
            raise ValueError(f"width {self.widths[self.attention - 1]} cannot be cut by heads {self.heads}")
        _check_groups(self.widths, self.norm_num_groups)
        return self


SemanticConfig = Annotated[SemanticEncoderConfig | StridedEncoderConfig, Field(discriminator="kind")]


def _check_groups(widths: Sequence[int], groups: int) -> None:
    if bad := [w for w in widths if w < 1 or w % groups]:
        raise ValueError(f"widths {bad} are not positive multiples of the {groups} groups of a norm")
