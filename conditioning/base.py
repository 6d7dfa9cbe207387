"""Interface between data and denoiser: a `Conditioner` turns captions or labels into a denoiser's `Condition`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from conditioning.bpe import report_truncated
from conditioning.condition import Condition, ConditioningError, pad_length
from conditioning.config import CaptionConfig as CaptionConfig
from conditioning.config import ConditionerConfig
from conditioning.config import Table as Table
from conditioning.continuing import Continuing
from conditioning.reading import PictureReading

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


class Conditioner(Continuing, PictureReading, nn.Module, ABC):
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
