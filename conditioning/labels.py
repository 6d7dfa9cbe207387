"""Condition on class labels, by one learned embedding per class.

The embedding is either a cross-attention token (Rombach et al. 2022, appendix E.2; the model cin256-v2), or a vector
that is added to the time embedding (ADM: Dhariwal & Nichol 2021).
"""

import operator
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from pydantic import Field
from torch import Tensor, nn

from conditioning.base import Condition, Conditioner, ConditionerConfig, ConditioningError, Inputs, Progress, check_raw
from conditioning.loaded import check_tensors

FOLDER = "class_encoder"
TOKEN_WIDTH = 512  # channels of a token whose config says none


class ClassConfig(ConditionerConfig, frozen=True, extra="forbid"):
    """Config of a conditioner with a learned embedding per class."""

    kind: Literal["class"] = Field("class", description="one learned embedding per class, and one for no class")
    form: Literal["token", "vector"] = Field(
        "token", description="token: the denoiser attends to it (LDM); vector: added to the time embedding (ADM)"
    )
    width: int | None = Field(
        None, ge=1, description="channels; left out: 512 for a token, the time embedding's for a vector"
    )

    source: ClassVar[str] = "class"

    def raw_values(self, captions: Sequence[str], labels: Sequence[int | None]) -> list[str | int]:
        """Return the class indices of a data set's N pictures; raises ConditioningError if a picture has none."""
        if any(label is None for label in labels):
            raise ConditioningError(
                "condition.kind is class, but some pictures have no label; expected one sub-folder per class, or "
                "labels in metadata.jsonl"
            )
        return [label for label in labels if label is not None]


class ClassEmbedder(ModelMixin, ConfigMixin):
    """Embedding table of K classes: labels [B] to embeddings [B, D]; row K is the learned null class.

    Args:
        classes: K class names, in the order of labels; the network's config.json keeps them.
        width: D, the channels of an embedding.
        form: how a denoiser takes the embedding, "token" or "vector".
        null: whether there is a null class; False for models that were trained on classes alone (the published ones of
            ADM), whose table ends at row K - 1.
    """

    @register_to_config
    def __init__(self, classes: Sequence[str], width: int, form: str = "token", null: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(classes) + null, width)

    def forward(self, labels: Tensor) -> Tensor:
        """Return the embeddings [B, D] of labels [B], ints in 0..K."""
        return self.embedding(labels)


class ClassConditioner(Conditioner):
    """Turn a class name or index into a cross-attention token or a vector; "" or index K is the learned null class.

    Args:
        class_encoder: the embedding table of K classes, whose config has the class names.
    """

    Config = ClassConfig
    modality = "classes"
    marker = FOLDER
    components = MappingProxyType({FOLDER: ("conditioning.labels", ("ClassEmbedder",))})
    null = ""
    repeats = True

    def __init__(self, class_encoder: ClassEmbedder) -> None:
        super().__init__()
        config = class_encoder.config
        self.class_encoder = class_encoder
        self.classes: tuple[str, ...] = tuple(config["classes"])
        self.form: str = config["form"]
        width = int(config["width"])
        self.width, self.vector_width = (width, None) if self.form == "token" else (None, width)
        self._index = {name: index for index, name in enumerate((*self.classes, self.null))}

    @classmethod
    def build(
        cls, config: ClassConfig, *, classes: Sequence[str] = (), time_width: int | None = None, **data: Any
    ) -> "ClassConditioner":
        """Build a new embedding table for `classes`.

        If the config sets no width, a token has 512 channels and a vector has `time_width`, like the denoiser's time
        embedding. `data` is ignored.

        Raises:
            ConditioningError: there is no class, a name is repeated or empty, or the width of a vector is unknown.
        """
        _check_names(classes)
        width = config.width or (TOKEN_WIDTH if config.form == "token" else time_width)
        if width is None:
            raise ConditioningError("classes as a vector need a width, that of the U-Net's time embedding; got none")
        return cls(ClassEmbedder(list(classes), width, config.form))

    @classmethod
    def of_table(cls, table: Tensor, classes: Sequence[str]) -> "ClassConditioner":
        """Return the conditioner of a published model's class embeddings [K, D], vectors without a null class.

        `classes` are the names of the K classes.
        """
        embedder = ClassEmbedder([*classes], table.shape[1], form="vector", null=False)
        embedder.load_state_dict({"embedding.weight": table})
        return cls(embedder)

    @classmethod
    def widths(cls, config: ClassConfig, time_width: int | None) -> tuple[int | None, int | None]:
        """Return the width of an embedding, as that of tokens or that of a vector."""
        if config.form == "token":
            return config.width or TOKEN_WIDTH, None
        return None, config.width or time_width

    def fits(self, config: ClassConfig) -> bool:
        """Return whether `config` has the form and the width of this table; a vector's width may be left out."""
        width = config.width or (TOKEN_WIDTH if config.form == "token" else self.vector_width)
        return config.form == self.form and width == (self.width or self.vector_width)

    @torch.no_grad()
    def with_classes(self, classes: Sequence[str]) -> tuple[Self, str | None]:
        """Return a table of `classes`: those of the same name keep their vectors.

        New classes get the vector of the null class, so that at first they are no class. Where this table has no null
        class, they and the new null class get the mean of the vectors.

        Raises:
            ConditioningError: there is no class, or a name is repeated or empty.
        """
        _check_names(classes)
        old, null = self.class_encoder.embedding.weight, self.class_encoder.config["null"]
        table = ClassEmbedder([*classes], old.shape[1], self.form)
        rows = {name: old[index] for index, name in enumerate(self.classes)}
        start = old[-1] if null else old.mean(0)
        table.embedding.weight.copy_(torch.stack([rows.get(name, start) for name in (*classes, "")]))
        if (tuple(classes), True) == (self.classes, null):
            return type(self)(table), None
        first = "of the null class" if null else "that is the mean of all, as does a null class"
        same = len(rows.keys() & {*classes})
        note = f"{same} of the {len(classes)} classes keep their vectors, others begin with the vector {first}"
        return type(self)(table), note

    @classmethod
    def load(cls, folder: Path, suffix: str = "") -> "ClassConditioner":
        """Load the embedding table from `folder`/class_encoder, with `suffix` after the name.

        Raises:
            ConditioningError: the saved class names or form are invalid, or the weights lack the table.
        """
        return cls._open(folder / f"{FOLDER}{suffix}", whole=False)

    @classmethod
    def load_whole(cls, folder: Path, suffix: str = "") -> "ClassConditioner":
        """Load what `load` loads; raises ConditioningError also if the weights have tensors of no use."""
        return cls._open(folder / f"{FOLDER}{suffix}", whole=True)

    @classmethod
    def _open(cls, folder: Path, *, whole: bool) -> "ClassConditioner":
        kind: Any = ClassEmbedder
        encoder, report = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        check_tensors(folder, report, whole=whole)
        classes, form = encoder.config["classes"], encoder.config["form"]
        if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
            raise ConditioningError(f"{folder}: classes are {classes!r:.80}; expected a list of names")
        if form not in ("token", "vector"):
            raise ConditioningError(f"{folder}: form is {form!r:.40}; expected token or vector")
        _check_names(classes)
        return cls(encoder)

    @property
    def trainable(self) -> dict[str, nn.Module]:
        """The embedding table, trained jointly with the denoiser, by the folder in which it is saved."""
        return {FOLDER: self.class_encoder}

    def prepare(self, raw: Sequence[str | int], progress: Progress | None = None) -> Inputs:
        """Turn N class names or indices into {"labels": int64 [N]}; `progress` is not called.

        Raises:
            ConditioningError: a class is unknown; the message names the nearest ones.
        """
        check_raw(raw)
        return {"labels": torch.tensor([self.index(value) for value in raw], dtype=torch.long)}

    def forward(self, labels: Tensor) -> Condition:
        """Return the embeddings of labels [B], as a condition with tokens [B, 1, D] or a vector [B, D]."""
        rows = self.class_encoder(labels)
        return Condition(tokens=rows[:, None]) if self.form == "token" else Condition(vector=rows)

    def release(self) -> None:
        """Do nothing: there is nothing to free."""

    def save(self, folder: Path, suffix: str = "") -> dict[str, tuple[str, str]]:
        """Write the embedding table into `folder`/class_encoder: config.json with the class names, and safetensors.

        `suffix` is the end of the folder's name.
        """
        self.class_encoder.save_pretrained(folder / f"{FOLDER}{suffix}", safe_serialization=True)
        return {f"{FOLDER}{suffix}": ("conditioning.labels", "ClassEmbedder")}

    def index(self, value: str | int) -> int:
        """Return the table row of a class name or index; "" and K are the null class.

        Raises:
            ConditioningError: the class is unknown, or it is the null class and the model has none.
        """
        if isinstance(value, str):
            index = self._index[value] if value in self._index else self._unknown(value)
        else:
            index = operator.index(value)
        if not 0 <= index <= len(self.classes):
            raise ConditioningError(f"a class index must be 0..{len(self.classes)} (the last is the null), got {index}")
        if index == len(self.classes) and not self.class_encoder.config["null"]:
            raise ConditioningError(
                "this model never learned a null class, which guidance compares with; expected a class and a guidance "
                "scale of 1"
            )
        return index

    def class_names(self, prompts: Sequence[str | int]) -> list[str] | None:
        """Return the class name of each of `prompts`, class names or indices; "" for the null class.

        Raises:
            ConditioningError: a class is unknown.
        """
        names = [*self.classes, ""]
        return [names[self.index(prompt)] for prompt in prompts]

    def _unknown(self, name: str) -> int:
        near = get_close_matches(name, self.classes, n=3, cutoff=0.4) or self.classes[:3]
        raise ConditioningError(
            f"unknown class {name!r}: the nearest of {len(self.classes)} known classes are {', '.join(near)}"
        )


def _check_names(classes: Sequence[str]) -> None:
    if not classes:
        raise ConditioningError('conditioning of kind "class" needs class names, got none')
    if "" in classes or len(set(classes)) < len(classes):
        raise ConditioningError(f"class names must be unique and not empty, got {list(classes)}")
