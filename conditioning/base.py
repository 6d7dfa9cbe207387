"""The interface between data and denoiser: the `Conditioner` that makes a `Condition`, and `drop` for guidance."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from conditioning.condition import Condition, ConditioningError, pad_length

Inputs = dict[str, Tensor]
"""Per-sample tensors [N, ...] by name, which a data cache stores: token ids, label ids, or states and their mask."""

Progress = Callable[[int, int], None]
"""A callback that `Conditioner.prepare` calls with (done, total)."""

InBatches = Callable[[int, Callable[[range], Any]], Iterator[Any]]
"""A function of how many samples there are and of what is computed for the indices of a batch; yields the results."""

Components = Mapping[str, tuple[str, tuple[str, ...]]]
"""Component folder of a saved model -> library and the classes that model_index.json may name for it."""


def in_batches(count: int, compute: Callable[[range], Any]) -> Iterator[Any]:
    """Yield what `compute` returns for the indices of each batch of 64."""
    return (compute(range(start, min(start + 64, count))) for start in range(0, count, 64))


class ConditionerConfig(BaseModel, ABC, frozen=True, extra="forbid", allow_inf_nan=False):
    """The `condition:` section of a run's config; a conditioner's own fields are added by its subclass.

    A subclass narrows `kind` to a Literal with a default, by which a config names it.
    """

    kind: str

    unconditional: ClassVar[bool] = False
    """Whether the model has no condition, so that guidance and prompts make no sense."""

    def raw_values(self, captions: Sequence[str], labels: Sequence[int | None]) -> list[str | int]:
        """Return what `Conditioner.prepare` takes for pictures: their captions, unless a subclass uses labels.

        Args:
            captions: N captions, "" where there is none.
            labels: N class indices, None where there is none.

        Raises:
            ConditioningError: what the condition needs is missing from the data.
        """
        if captions and not any(captions):
            raise ConditioningError(
                f"condition.kind is {self.kind}, but no picture has a caption; expected text in metadata.jsonl, or "
                "a text file beside each picture (0.txt beside 0.png)"
            )
        return list(captions)


class Conditioner(nn.Module, ABC):
    """Turn raw captions or labels into cached inputs, and inputs into a `Condition`.

    Its parameters are the part that is trained jointly with the denoiser. A subclass is all that a new kind of
    condition needs: it states its config, the folders it saves, and how it is loaded. It is made known by a line in
    `conditioning.factory.BUILT_IN`, or by an entry point of the group `ldm_kit.conditioners` in another package.
    """

    Config: ClassVar[type[ConditionerConfig]]
    """The config that builds it."""

    modality: ClassVar[str]
    """What it is conditioned on, as messages call it: "text", "classes", "no condition"."""

    marker: ClassVar[str | None]
    """File or folder by which a saved model is known to have this conditioner; None for no condition."""

    components: ClassVar[Components] = MappingProxyType({})
    """Component folders that `save` writes, with library and classes that may be loaded from them."""

    null: str | None
    """The raw value of the unconditional case: "" for text and labels, None where there is no condition."""

    width: int | None
    """D of the tokens [B, L, D], which the denoiser's cross-attention must have; None without tokens."""

    vector_width: int | None = None
    """D of the vector [B, D] that is added to the denoiser's time embedding; None without one."""

    in_batches: InBatches = staticmethod(in_batches)
    """How `prepare` goes through many captions with a frozen encoder; callers may set one that survives a lack of
    memory."""

    @property
    def pooled_width(self) -> int | None:
        """D of `Condition.pooled`; None where there is nothing to pool."""
        return self.width if self.vector_width is None else self.vector_width

    @property
    def cache_key(self) -> tuple[Any, ...] | None:
        """What `prepare` depends on beside its input (JSON values), where its result is worth a cache on disk."""
        return None

    @property
    def encoder_digest(self) -> str | None:
        """Hash of a frozen encoder and its tokenizer, wherever they lie; None: `prepare` uses neither."""
        return None

    @property
    @abstractmethod
    def trainable(self) -> dict[str, nn.Module]:
        """Component folder -> network that is trained jointly; empty for frozen encoders."""

    @classmethod
    @abstractmethod
    def build(
        cls, config: Any, *, captions: Sequence[str] = (), classes: Sequence[str] = (), time_width: int | None = None
    ) -> Self:
        """Build a fresh conditioner.

        Args:
            config: its `Config`.
            captions: training captions, for instance to train a tokenizer on.
            classes: class names, in the order of labels.
            time_width: channels of the denoiser's time embedding, to which a vector is added.

        Raises:
            ConditioningError: what it needs is missing, or a pretrained encoder cannot be loaded.
        """

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """Load the conditioner that `save` wrote into `folder`.

        Raises:
            ConditioningError: weights are missing, or a referenced encoder is missing or has changed.
        """

    @abstractmethod
    def save(self, folder: Path) -> dict[str, tuple[str, str]]:
        """Write component folders into `folder`; return their entries (library, class) for model_index.json."""

    @abstractmethod
    def prepare(self, raw: Sequence[str | int], progress: Progress | None = None) -> Inputs:
        """Turn N captions or labels into tensors [N, ...] on the CPU; frozen encoders run here, without gradient.

        Raises:
            ConditioningError: a value that is no caption or no known class.
        """

    @abstractmethod
    def forward(self, *args: Any, **inputs: Any) -> Condition:
        """Turn the prepared inputs of a batch, given by name, into a condition; differentiable, called every step."""

    @abstractmethod
    def release(self) -> None:
        """Free what only `prepare` needs (a frozen encoder); the next call of `prepare` loads it again."""

    def null_inputs(self, count: int = 1) -> Inputs:
        """Return `prepare([null] * count)`, the inputs of the null condition in training and sampling alike."""
        return self.prepare([] if self.null is None else [self.null] * count)

    def class_names(self, prompts: Sequence[str | int]) -> list[str] | None:
        """Return the class name that each prompt stands for; None where prompts of this kind name no class."""
        return None


def drop(inputs: Inputs, null: Inputs, dropped: Tensor) -> Inputs:
    """Replace *all* inputs of the dropped samples by the null, for classifier-free guidance.

    Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", algorithm 1.

    Args:
        inputs: prepared inputs, [B, ...] each; masked sequences are padded where the null's are longer.
        null: `Conditioner.null_inputs()`, of one row or B.
        dropped: [B] bool, True where the condition is dropped.

    Returns:
        Inputs of the same names, [B, ...] each.

    Raises:
        ConditioningError: unequal names or shapes.
    """
    if inputs.keys() != null.keys():
        raise ConditioningError(f"inputs {sorted(inputs)} and null inputs {sorted(null)} must have the same keys")
    return {key: _replace(key, inputs[key], null[key], dropped, "mask" in inputs) for key in inputs}


def check_raw(raw: Sequence[str | int]) -> None:
    """Check that captions or labels are a list: a single string would be taken as a list of its letters.

    Raises:
        ConditioningError: it is a string.
    """
    if isinstance(raw, str):
        raise ConditioningError(f"expected a list of captions or classes, got the single {raw!r:.80}; put it in a list")


def texts(raw: Sequence[str | int]) -> list[str]:
    """Return `raw` as captions that tokenizers take, each lone surrogate as U+FFFD.

    Raises:
        ConditioningError: a value that is not a string; names the first.
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
