"""Interface between data and denoiser: a `Conditioner` turns captions or labels into a denoiser's `Condition`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from conditioning.bpe import report_truncated
from conditioning.condition import Condition, ConditioningError, pad_length
from conditioning.continuing import Continuing

if TYPE_CHECKING:
    from conditioning.pictures import PictureCondition

Inputs = dict[str, Tensor]
"""Prepared inputs of a conditioner, which a data cache stores: tensors [N, ...] by name, such as token or label ids."""

Progress = Callable[[int, int], None]
"""A callback that `Conditioner.prepare` calls with (number of samples done, number of samples)."""

InBatches = Callable[[int, Callable[[range], Any]], Iterator[Any]]
"""A function of (number of samples, function from the indices of a batch to its result) that yields the results."""

OnTruncated = Callable[[int, int, int], None]
"""A function of (number of captions that were cut, number of all captions, most tokens of a caption)."""

Components = Mapping[str, tuple[str, tuple[str, ...]]]
"""Component folder of a saved model -> (library, classes that model_index.json may name for this folder)."""


def in_batches(count: int, compute: Callable[[range], Any]) -> Iterator[Any]:
    """Yield `compute(indices)` for consecutive batches of 64 of the indices 0 to `count` - 1."""
    return (compute(range(start, min(start + 64, count))) for start in range(0, count, 64))


class Table(NamedTuple):
    """What the N pictures of a data set bring along: captions, classes, and the columns of their metadata."""

    captions: Sequence[str]  # "" where a picture has none
    labels: Sequence[int | None]  # class indices, None where a picture has none
    classes: Sequence[str]  # class names that the labels index
    column: Callable[[str], Sequence[str]]  # the values of a column by its name, "" where a picture has none


class ConditionerConfig(BaseModel, ABC, frozen=True, extra="forbid", allow_inf_nan=False):
    """Base of the `condition:` section of a run's config; each conditioner's subclass adds its own fields.

    A subclass narrows `kind` to a Literal with a default; a run's config selects the conditioner by this value.
    `unconditional` is True if models with this config take no condition.
    """

    kind: str
    dropout: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of samples trained without this condition, beside the share condition_dropout trained "
        "without any; left out: condition_dropout if there are several conditions, else 0",
    )

    unconditional: ClassVar[bool] = False
    """Whether the model is unconditional, so that guidance and prompts make no sense."""

    source: ClassVar[str] = "caption"
    """Where the values come from, as messages call it; conditions of equal sources share the part of a prompt."""

    @property
    def prompts(self) -> "ConditionerConfig":
        """The config of the captions or classes, without that of a picture: here this config."""
        return self

    @property
    def picture(self) -> "PictureCondition | None":
        """The picture condition; here None."""
        return None

    @property
    def members(self) -> "tuple[ConditionerConfig, ...]":
        """The configs of the conditions that are dropped each by itself: here this config alone, if it is one."""
        return () if self.unconditional else (self,)

    def values(self, table: Table) -> list[str | int]:
        """Return the values of N pictures that `Conditioner.prepare` takes; here `raw_values` of captions and labels.

        Raises:
            ConditioningError: the data set lacks what the condition needs.
        """
        return self.raw_values(table.captions, table.labels)

    def raw_values(self, captions: Sequence[str], labels: Sequence[int | None]) -> list[str | int]:
        """Return the values of a data set's N pictures that `Conditioner.prepare` takes: here the captions.

        Subclasses that condition on classes return the labels instead.

        Args:
            captions: captions of N pictures, "" where a picture has none.
            labels: class indices of N pictures, None where a picture has none.

        Raises:
            ConditioningError: the data set lacks captions or labels that the condition needs.
        """
        if captions and not any(captions):
            raise ConditioningError(
                f"condition.kind is {self.kind}, but no picture has a caption; expected text in metadata.jsonl, or "
                "a text file beside each picture (0.txt beside 0.png)"
            )
        return list(captions)


class CaptionConfig(ConditionerConfig, frozen=True, extra="forbid"):
    """Base of configs of text encoders, which may read another text than the caption."""

    column: str | None = Field(
        default=None, min_length=1, description="metadata column with the text; left out: the caption"
    )

    @property
    def source(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where the text comes from: "caption", or the name of the column."""
        return self.column or "caption"

    def values(self, table: Table) -> list[str | int]:
        """Return the captions of N pictures, or their texts in `column`; "" where a picture has none.

        Raises:
            ConditioningError: no picture has a caption, or a text in the column.
        """
        if self.column is None:
            return self.raw_values(table.captions, table.labels)
        texts = [*table.column(self.column)]
        if texts and not any(texts):
            raise ConditioningError(f"condition.column is {self.column}, but no picture's metadata has such a text")
        return [*texts]


class Conditioner(Continuing, nn.Module, ABC):
    """Base of conditioners: turn captions or labels into prepared inputs (`prepare`), and these into a `Condition`.

    Prepared inputs can be cached; `forward` makes the condition from them in every step. The parameters of a
    conditioner are trained jointly with the denoiser. A new kind of condition needs only a subclass, which states its
    config, the folders that it saves, and how it is loaded. Register the subclass by a line in
    `conditioning.factory.BUILT_IN`, or, in another package, by an entry point of the group `ldm_kit.conditioners`.
    """

    Config: ClassVar[type[ConditionerConfig]]
    """Class of the config that `build` takes."""

    modality: str
    """What the model is conditioned on, as messages call it: "text", "classes", "no condition"."""

    marker: ClassVar[str | None]
    """File or folder that only saved models with this conditioner have; None for no condition."""

    components: ClassVar[Components] = MappingProxyType({})
    """For each component folder that `save` writes: (library, names of the classes that may be loaded from it)."""

    null: str | None
    """Raw value (caption or class) of the null condition: "" for text and classes, None for no condition."""

    width: int | None
    """D of the tokens [B, L, D], the width of the denoiser's cross-attention; None: there are no tokens."""

    vector_width: int | None = None
    """D of the vector [B, D] that is added to the denoiser's time embedding; None: there is no vector."""

    repeats: ClassVar[bool] = False
    """Whether a model may have several of this class: `save`, `load` and others then take a suffix of the folders."""

    in_batches: InBatches = staticmethod(in_batches)
    """Function by which `prepare` encodes many captions in batches; callers may set one that halves the batches when
    memory runs out."""

    on_truncated: OnTruncated = staticmethod(report_truncated)
    """Function that `prepare` calls with the number of captions that it cut; callers may set one, to report once."""

    @property
    def pooled_width(self) -> int | None:
        """Channels D of the vector `Condition.pooled` [B, D]; None if the condition has neither tokens nor a vector."""
        return self.width if self.vector_width is None else self.vector_width

    @property
    def cache_key(self) -> tuple[Any, ...] | None:
        """Key of cached prepared inputs: JSON values that, with the raw captions or labels, determine them.

        None: prepared inputs are not cached on disk.
        """
        return None

    @property
    def encoder_digest(self) -> str | None:
        """Hash of the contents of the frozen encoder's and its tokenizer's files; None: `prepare` uses neither."""
        return None

    @property
    @abstractmethod
    def trainable(self) -> dict[str, nn.Module]:
        """Networks trained jointly with the denoiser, by the component folder in which `save` puts each.

        Empty for frozen encoders.
        """

    @classmethod
    @abstractmethod
    def build(
        cls, config: Any, *, captions: Sequence[str] = (), classes: Sequence[str] = (), time_width: int | None = None
    ) -> Self:
        """Build a new conditioner for a new model.

        Args:
            config: an instance of the class `Config`.
            captions: training captions, for instance to train a tokenizer on.
            classes: class names, in the order of labels.
            time_width: channels of the denoiser's time embedding, to which a vector is added.

        Raises:
            ConditioningError: an argument that the conditioner needs is missing, or a pretrained encoder cannot be
                loaded.
        """

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, suffix: str = "") -> Self:
        """Load the conditioner that `save` wrote into `folder`; a subclass with `repeats` takes a suffix of its names.

        Raises:
            ConditioningError: weights are missing, or the pretrained encoder that the folder refers to is missing or
                has changed.
        """

    @abstractmethod
    def save(self, folder: Path, suffix: str = "") -> dict[str, tuple[str, str]]:
        """Write component folders into `folder`; return the (library, class) of each, for diffusers' model_index.json.

        Examples of component folders are text_encoder and tokenizer. A subclass with `repeats` ends all names with
        `suffix`, such as "_2" for the second conditioner of this class in a model.
        """

    @abstractmethod
    def prepare(self, raw: Sequence[str | int], progress: Progress | None = None) -> Inputs:
        """Turn N captions or labels into tensors [N, ...] on the CPU; frozen encoders run here, without gradients.

        Args:
            raw: the N captions, or class names or indices.
            progress: called now and then with the number of samples done and their total.

        Raises:
            ConditioningError: a value is no caption or no known class.
        """

    @abstractmethod
    def forward(self, *args: Any, **inputs: Any) -> Condition:
        """Return the condition of a batch of B samples from the prepared inputs [B, ...], by their names in `prepare`.

        Subclasses have the inputs as named parameters. Called in every training or sampling step; differentiable.
        """

    @abstractmethod
    def release(self) -> None:
        """Free what only `prepare` needs, such as a frozen encoder; the next call of `prepare` loads it again."""

    def null_inputs(self, count: int = 1) -> Inputs:
        """Return the prepared inputs, [count, ...] each, of `count` null conditions, for training and for sampling."""
        return self.prepare([] if self.null is None else [self.null] * count)

    @property
    def drops(self) -> int:
        """Number of conditions, each of which is dropped by itself: here 1, or 0 where there is none."""
        return 0 if self.null is None else 1

    def drop(self, inputs: Inputs, null: Inputs, dropped: Tensor) -> Inputs:
        """Replace prepared inputs by those of the null condition.

        Args:
            inputs: prepared inputs by name, [B, ...] each.
            null: `null_inputs()`, of one row or B rows.
            dropped: bool [B, P], True where condition p of the `drops` conditions of a sample is dropped.
        """
        return drop(inputs, null, dropped.any(1))

    def class_names(self, prompts: Sequence[str | int]) -> list[str] | None:
        """Return the class name of each prompt; None if prompts are captions, which name no class.

        `prompts` are raw values as `prepare` takes them: here captions; class names or indices in a subclass.
        """
        return None


def drop(inputs: Inputs, null: Inputs, dropped: Tensor) -> Inputs:
    """Replace *all* prepared inputs of the dropped samples by the null condition's, for classifier-free guidance.

    Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", algorithm 1.

    Args:
        inputs: prepared inputs by name, [B, ...] each. Token sequences with a mask are padded to the length of the null
            condition's if that is longer.
        null: `Conditioner.null_inputs()`, of one row or B rows.
        dropped: [B] bool, True where the condition is dropped.

    Returns:
        Inputs of the same names, [B, ...] each.

    Raises:
        ConditioningError: `inputs` and `null` have different names or shapes.
    """
    if inputs.keys() != null.keys():
        raise ConditioningError(f"inputs {sorted(inputs)} and null inputs {sorted(null)} must have the same keys")
    return {key: _replace(key, inputs[key], null[key], dropped, "mask" in inputs) for key in inputs}


def check_raw(raw: Sequence[str | int]) -> None:
    """Check that captions or labels are a list: a single string would be taken as a list of its letters.

    Raises:
        ConditioningError: `raw` is a string.
    """
    if isinstance(raw, str):
        raise ConditioningError(f"expected a list of captions or classes, got the single {raw!r:.80}; put it in a list")


def texts(raw: Sequence[str | int]) -> list[str]:
    """Return the captions `raw` as tokenizers accept them: lone surrogates, which no encoding has, become U+FFFD.

    Raises:
        ConditioningError: a value is not a string; the message names the first such value.
    """
    check_raw(raw)
    for value in raw:
        if not isinstance(value, str):
            raise ConditioningError(f"a caption must be a string, got {value!r} of type {type(value).__name__}")
    return [str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace") for value in raw]


def _replace(key: str, value: Tensor, null: Tensor, dropped: Tensor, masked: bool) -> Tensor:
    null = null.to(value.device, value.dtype)
    if masked and value.ndim > 1:
        length = max(value.shape[1], null.shape[1])
        value, null = pad_length(value, length), pad_length(null, length)
    if value.shape[1:] != null.shape[1:] or len(null) not in (1, len(value)):
        raise ConditioningError(f"null {key!r} {tuple(null.shape)} does not fit inputs {tuple(value.shape)}")
    dropped = dropped.to(value.device).reshape(-1, *[1] * (value.ndim - 1))
    return torch.where(dropped, null, value)
