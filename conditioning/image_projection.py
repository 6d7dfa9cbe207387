"""Config and trained network of the condition on a picture: linear maps of embeddings, and the null condition."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from pydantic import Field, model_validator
from torch import Tensor, nn

from conditioning.condition import Condition
from conditioning.config import ConditionerConfig, Table
from conditioning.image_encoder import Form


class ImageConfig(ConditionerConfig, frozen=True, extra="forbid"):
    """Config of a conditioner that reads pictures."""

    kind: Literal["image"] = Field("image", description="the embedding of a picture by a frozen image encoder")
    model: str = Field(
        min_length=1,
        description="timm:NAME, timm:NAME@PATH, timm:NAME@package:PACKAGE, open_clip:ARCHITECTURE/WEIGHTS, or the "
        "folder of a model that has an image encoder",
    )
    side: int | None = Field(
        None, ge=8, description="side in pixels to which pictures are resized for a network of timm; left out: that of "
        "its training. Embeddings of small pictures are cheaper so"
    )  # fmt: skip
    form: Form = Field(
        "vector", description="vector: the pooled embedding, added to the time embedding; tokens: those of patches or "
        "positions, to which the denoiser attends",
    )  # fmt: skip
    context_tokens: int = Field(
        0, ge=0, description="vector: further tokens that are made of the pooled embedding, to which the denoiser "
        "attends; unCLIP has 4",
    )  # fmt: skip
    width: int | None = Field(
        None, ge=1, description="channels; left out: 512 for tokens, the time embedding's for a vector"
    )

    source: ClassVar[str] = "image"
    reads_pictures: ClassVar[bool] = True

    @model_validator(mode="after")
    def _fits(self) -> "ImageConfig":
        if self.form == "tokens" and self.context_tokens:
            raise ValueError("context_tokens are made of the pooled embedding; expected form vector, or none of them")
        return self

    def values(self, table: Table) -> list[str | int]:
        """Return "" for each of N pictures: the condition is made of the picture itself, not of text."""
        return [""] * len(table.captions)


class ImageProjection(ModelMixin, ConfigMixin):
    """The trained part: linear maps of an embedding to a vector and to tokens, and the learned null condition.

    Args:
        shape: shape of an embedding, (D,) or (L, D).
        vector_width: channels of the vector; None: there is none.
        token_width: channels of the tokens; None: there are none.
        context_tokens: number of tokens that are made of a pooled embedding.
        encoder_sha256: digest of the image encoder whose embeddings are mapped.
    """

    @register_to_config
    def __init__(
        self,
        *,
        shape: Sequence[int],
        vector_width: int | None,
        token_width: int | None,
        context_tokens: int,
        encoder_sha256: str,
    ) -> None:
        super().__init__()
        if vector_width is not None:
            self.vector, self.null_vector = nn.Linear(shape[-1], vector_width), _zeros(vector_width)
        if token_width is not None:
            count = context_tokens or 1
            self.tokens = nn.Linear(shape[-1], count * token_width)
            self.null_tokens = _zeros(count, token_width)

    def forward(self, embedding: Tensor, given: Tensor) -> Condition:
        """Return the condition of embeddings [B, D] or [B, L, D]; the learned null one where `given` [B] is False."""
        embedding, vector, tokens = embedding.float(), None, None
        if self.config["vector_width"] is not None:
            vector = torch.where(given[:, None], self.vector(embedding), self.null_vector)
        if (width := self.config["token_width"]) is not None:
            tokens = self.tokens(embedding).reshape(len(embedding), -1, width)
            tokens = torch.where(given[:, None, None], tokens, self.null_tokens)
        return Condition(tokens=tokens, vector=vector)


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))
