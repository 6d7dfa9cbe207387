"""Class labels as one learned cross-attention token (Rombach et al. 2022, appendix E.2; the model cin256-v2)."""

import operator
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from conditioning.base import Condition, Conditioner, ConditioningError, Inputs, Progress

FOLDER = "class_encoder"


class ClassConfig(BaseModel):
    """A learned embedding per class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["class"] = Field("class", description="one learned token per class, and one for no class")
    width: int = Field(512, ge=1, description="channels of the token, the denoiser's cross-attention width")


class ClassEmbedder(ModelMixin, ConfigMixin):
    """Label [B] -> token [B, 1, D]; row K of the table is the learned null. The class names live in its config."""

    @register_to_config
    def __init__(self, classes: Sequence[str], width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(classes) + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        """labels: [B] ints in 0..K -> [B, 1, D]."""
        return self.embedding(labels)[:, None]


class ClassConditioner(Conditioner):
    """Class names or indices -> one cross-attention token; "" (or index K) is the learned null."""

    null = ""

    def __init__(self, class_encoder: ClassEmbedder) -> None:
        super().__init__()
        self.class_encoder = class_encoder
        self.classes: tuple[str, ...] = tuple(class_encoder.config["classes"])
        self.width = int(class_encoder.config["width"])
        self._index = {name: index for index, name in enumerate((*self.classes, self.null))}

    @classmethod
    def build(cls, config: ClassConfig, classes: Sequence[str]) -> "ClassConditioner":
        """A fresh table for `classes`; raises ConditioningError on none, on a repeated and on an empty name."""
        if not classes:
            raise ConditioningError('conditioning of kind "class" needs class names, got none')
        if "" in classes or len(set(classes)) < len(classes):
            raise ConditioningError(f"class names must be unique and not empty, got {list(classes)}")
        return cls(ClassEmbedder(list(classes), config.width))

    @classmethod
    def load(cls, folder: Path) -> "ClassConditioner":
        """From `folder`/class_encoder."""
        return cls(ClassEmbedder.from_pretrained(folder / FOLDER, use_safetensors=True, local_files_only=True))

    @property
    def trainable(self) -> dict[str, nn.Module]:
        """The embedding table."""
        return {FOLDER: self.class_encoder}

    def prepare(self, raw: Sequence[str | int], progress: Progress | None = None) -> Inputs:
        """Names or indices -> {"labels": [N] int64}; raises ConditioningError naming the nearest known class."""
        return {"labels": torch.tensor([self.index(value) for value in raw], dtype=torch.long)}

    def forward(self, labels: Tensor) -> Condition:
        """labels: [B] -> tokens [B, 1, D]."""
        return Condition(tokens=self.class_encoder(labels))

    def release(self) -> None:
        """Nothing to free."""

    def save(self, folder: Path) -> dict[str, tuple[str, str]]:
        """Write `folder`/class_encoder (config.json with the class names, and safetensors)."""
        self.class_encoder.save_pretrained(folder / FOLDER, safe_serialization=True)
        return {FOLDER: ("conditioning.labels", "ClassEmbedder")}

    def index(self, value: str | int) -> int:
        """The row of one class name or index; the null is row K. Raises ConditioningError if there is none."""
        if isinstance(value, str):
            return self._index[value] if value in self._index else self._unknown(value)
        index = operator.index(value)
        if not 0 <= index <= len(self.classes):
            raise ConditioningError(f"a class index must be 0..{len(self.classes)} (the last is the null), got {index}")
        return index

    def _unknown(self, name: str) -> int:
        near = get_close_matches(name, self.classes, n=3, cutoff=0.4) or self.classes[:3]
        raise ConditioningError(
            f"unknown class {name!r}: the nearest of {len(self.classes)} known classes are {', '.join(near)}"
        )
