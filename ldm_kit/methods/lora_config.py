"""Config of LoRA: which layers of a trained model get small trained matrices, and of which rank."""

from typing import Annotated

from pydantic import Field, model_validator

from ldm_kit.config import Config

Layer = Annotated[str, Field(min_length=1)]
UNET_TARGETS, TEXT_TARGETS = ("to_q", "to_k", "to_v", "to_out.0"), ("q_proj", "k_proj", "v_proj", "out_proj")


class LoraConfig(Config):
    """Settings of LoRA: a layer of weight W computes with W + (alpha / rank) B A, where A and B alone are trained.

    Source: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
    """

    rank: int = Field(default=8, ge=1, description="rows of A and columns of B")
    alpha: float | None = Field(default=None, gt=0, description="scale of B A, times rank; null: the rank, so scale 1")
    targets: tuple[Layer, ...] = Field(
        default=UNET_TARGETS, description="ends of the names of the U-Net's linear layers and convolutions that get one"
    )
    text_targets: tuple[Layer, ...] = Field(
        default=TEXT_TARGETS, description="the same in the text encoder, if it is trained with the U-Net; []: none"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout of the input of A")
    dora: bool = Field(default=False, description="train the norms of W + B A too (DoRA, Liu et al. 2024)")

    @model_validator(mode="after")
    def _check_targets(self) -> "LoraConfig":
        if not self.targets and not self.text_targets:
            raise ValueError("targets and text_targets are both empty; expected names of layers")
        return self
