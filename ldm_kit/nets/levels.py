"""Config fields that all U-Net-shaped networks share: widths, attention and residual blocks of each level."""

from itertools import compress
from typing import Self

from pydantic import AliasChoices, Field, model_validator

from ldm_kit.config import Config


class LevelsConfig(Config):
    """Base config of U-Net-shaped networks. Level 0 works at the input's resolution; each next level halves it."""

    widths: tuple[int, ...] = Field(min_length=1, description="feature channels of each level")
    attention_levels: tuple[bool, ...] = Field(
        validation_alias=AliasChoices("attention_levels", "attention"),
        description="for each level, whether it has attention",
    )
    layers_per_block: int = Field(
        validation_alias=AliasChoices("layers_per_block", "layers"), ge=1, description="residual blocks of each level"
    )
    norm_num_groups: int = Field(
        validation_alias=AliasChoices("norm_num_groups", "groups"),
        default=32,
        ge=1,
        description="groups of every GroupNorm; must divide every width",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout in residual blocks")

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        if len(self.attention_levels) != len(self.widths):
            raise ValueError(
                f"attention_levels has {len(self.attention_levels)} levels and widths {len(self.widths)}; "
                "expected one each"
            )
        # a decoder block's input, two widths concatenated, is then divisible as well
        if bad := [w for w in self.widths if w < 1 or w % self.norm_num_groups]:
            raise ValueError(f"widths {bad} are not positive multiples of the {self.norm_num_groups} groups of a norm")
        return self

    @property
    def attended(self) -> list[int]:
        """Feature channels of each level with attention, then those of the middle block (the last width)."""
        return [*compress(self.widths, self.attention_levels), self.widths[-1]]

    def check_heads(self, divisor: int, setting: str) -> None:
        """Check that the width of every attention layer can be divided into heads.

        Args:
            divisor: number of heads, or channels of a head.
            setting: name and value of the setting for the error message, such as "heads 4".

        Raises:
            ValueError: a width is not divisible by `divisor`.
        """
        if bad := [w for w in self.attended if w % divisor]:
            raise ValueError(f"widths {bad} with attention cannot be cut by {setting}")
