"""The fields that every U-Net shaped network's config has: widths, attention and blocks of each level."""

from itertools import compress
from typing import Self

from pydantic import AliasChoices, Field, model_validator

from ldm_kit.config import Config


class LevelsConfig(Config):
    """The levels of a network: level 0 has the resolution of its input, each next one half."""

    widths: tuple[int, ...] = Field(min_length=1, description="feature channels of each level")
    attention_levels: tuple[bool, ...] = Field(
        validation_alias=AliasChoices("attention_levels", "attention"), description="for each level: attention?"
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
        # the channels of a skip, a sum of two widths, are then a multiple as well
        if bad := [w for w in self.widths if w < 1 or w % self.norm_num_groups]:
            raise ValueError(f"widths {bad} are not positive multiples of the {self.norm_num_groups} groups of a norm")
        return self

    @property
    def attended(self) -> list[int]:
        """Widths with attention: those of the levels that have it, and the middle block's."""
        return [*compress(self.widths, self.attention_levels), self.widths[-1]]

    def check_heads(self, divisor: int, setting: str) -> None:
        """Raise ValueError where a width with attention is no multiple of a divisor; the sentence names the setting."""
        if bad := [w for w in self.attended if w % divisor]:
            raise ValueError(f"widths {bad} with attention cannot be cut by {setting}")
