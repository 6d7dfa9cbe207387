"""The interface between data and denoiser: `Condition`, the `Conditioner` that makes it, and `drop` for guidance."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel
from torch import Tensor, nn

Inputs = dict[str, Tensor]
"""Per-sample tensors [N, ...] by name, which a data cache stores: token ids, label ids, or states and their mask."""

Progress = Callable[[int, int], None]
"""A callback that `Conditioner.prepare` calls with (done, total)."""

Components = Mapping[str, tuple[str, tuple[str, ...]]]
"""Component folder of a saved model -> library and the classes that model_index.json may name for it."""


class ConditioningError(ValueError):
    """A mistake that the user can correct: an unknown class, an encoder that cannot be loaded, mismatched inputs."""


@dataclass(frozen=True, eq=False)
class Condition:
    """What a denoiser is conditioned on, for a batch of B samples; `Condition()` is no condition, of length 0.

    Raises:
        ConditioningError: fields of different batch sizes, or a mask that does not fit the tokens.
    """

    tokens: Tensor | None = None  # [B, L, D] cross-attention context
    mask: Tensor | None = None  # [B, L] bool, True = attend; None = attend to all
    vector: Tensor | None = None  # [B, D] added to the time embedding
    concat: Tensor | None = None  # [B, C, h, w] concatenated to the input

    def __post_init__(self) -> None:
        sizes = {len(value) for value in self._fields() if value is not None}
        if len(sizes) > 1:
            raise ConditioningError(f"the tensors of a condition must have one batch size, got {sorted(sizes)}")
        if self.mask is not None and (self.tokens is None or self.mask.shape != self.tokens.shape[:2]):
            shape = None if self.tokens is None else tuple(self.tokens.shape)
            raise ConditioningError(f"a mask must be [B, L] over tokens, got {tuple(self.mask.shape)} over {shape}")

    def __len__(self) -> int:
        """Return the batch size; 0 without a condition."""
        return next((len(value) for value in self._fields() if value is not None), 0)

    @property
    def pooled(self) -> Tensor | None:
        """One vector [B, D] for a network without attention: `vector`, else the mean of the tokens, else None.

        The mean is over unmasked tokens (Reimers and Gurevych 2019), and zero where all are masked.
        """
        if self.vector is not None or self.tokens is None:
            return self.vector
        if self.mask is None:
            return self.tokens.mean(dim=1)
        weights = self.mask[..., None].to(self.tokens.dtype)
        return (self.tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)

    def __getitem__(self, index: slice) -> "Condition":
        """Return a slice of the batch."""
        return self._map(lambda value: value[index])

    def take(self, indices: Tensor | Sequence[int]) -> "Condition":
        """Return the samples at `indices` ([K] ints), in that order; an index may repeat."""
        indices = torch.as_tensor(indices, dtype=torch.long)
        return self._map(lambda value: value.index_select(0, indices.to(value.device)))

    def repeat(self, times: int) -> "Condition":
        """Repeat each sample `times` times, copies adjacent, as diffusers does for several images per prompt."""
        return self._map(lambda value: value.repeat_interleave(times, dim=0))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Condition":
        """Move to a device, and cast floating-point tensors to `dtype`; the mask stays bool."""
        return self._map(lambda value: value.to(device, dtype if value.is_floating_point() else None))

    def detach(self) -> "Condition":
        """Return the same condition without gradient."""
        return self._map(Tensor.detach)

    def before(self, other: "Condition") -> "Condition | None":
        """Return this condition followed by `other` as one batch if both have one size, else None."""
        return Condition.cat([self, other]) if len(self) == len(other) else None

    @staticmethod
    def cat(conditions: Sequence["Condition"]) -> "Condition":
        """Join conditions along the batch; shorter token sequences are padded with masked zeros.

        Raises:
            ConditioningError: one condition has a tensor (say, a vector) that another lacks.
        """
        present = {tuple(value is None for value in (c.tokens, c.vector, c.concat)) for c in conditions}
        if len(present) > 1:
            raise ConditioningError("conditions can be joined only if all of them have the same tensors")
        tokens, mask = _cat_tokens(conditions)
        return Condition(tokens, mask, _cat([c.vector for c in conditions]), _cat([c.concat for c in conditions]))

    def _fields(self) -> tuple[Tensor | None, ...]:
        return self.tokens, self.mask, self.vector, self.concat

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Condition":
        return Condition(*(None if value is None else function(value) for value in self._fields()))


class ConditionerConfig(BaseModel, ABC, frozen=True, extra="forbid"):
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
                f"condition.kind is {self.kind}, but no picture has a caption; expected text in metadata.jsonl"
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

    @property
    def pooled_width(self) -> int | None:
        """D of `Condition.pooled`; None where there is nothing to pool."""
        return self.width if self.vector_width is None else self.vector_width

    @property
    def cache_key(self) -> tuple[Any, ...] | None:
        """What `prepare` depends on beside its input (JSON values), where its result is worth a cache on disk."""
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


def texts(raw: Sequence[str | int]) -> list[str]:
    """Return `raw` as captions; raises ConditioningError naming the first value that is not a string."""
    for value in raw:
        if not isinstance(value, str):
            raise ConditioningError(f"a caption must be a string, got {value!r} of type {type(value).__name__}")
    return [str(value) for value in raw]


def pad_length(value: Tensor, length: int) -> Tensor:
    """Pad [B, L, ...] to [B, length, ...] with zeros (False) at the end; return it unchanged if it is long enough."""
    if value.shape[1] >= length:
        return value
    return torch.cat([value, value.new_zeros(len(value), length - value.shape[1], *value.shape[2:])], dim=1)


def _replace(key: str, value: Tensor, null: Tensor, dropped: Tensor, masked: bool) -> Tensor:
    null = null.to(value.device, value.dtype)
    if masked and value.ndim > 1:
        length = max(value.shape[1], null.shape[1])
        value, null = pad_length(value, length), pad_length(null, length)
    if value.shape[1:] != null.shape[1:] or len(null) not in (1, len(value)):
        raise ConditioningError(f"null {key!r} {tuple(null.shape)} does not fit inputs {tuple(value.shape)}")
    dropped = dropped.to(value.device).reshape(-1, *[1] * (value.ndim - 1))
    return torch.where(dropped, null, value)


def _cat(values: Sequence[Tensor | None]) -> Tensor | None:
    present = [value for value in values if value is not None]
    return torch.cat(present) if present else None


def _cat_tokens(conditions: Sequence[Condition]) -> tuple[Tensor | None, Tensor | None]:
    pairs = [(c.tokens, c.mask) for c in conditions if c.tokens is not None]
    length = max((tokens.shape[1] for tokens, _ in pairs), default=0)
    if all(mask is None and tokens.shape[1] == length for tokens, mask in pairs):
        return _cat([tokens for tokens, _ in pairs]), None
    masks = [tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask for tokens, mask in pairs]
    return torch.cat([pad_length(t, length) for t, _ in pairs]), torch.cat([pad_length(m, length) for m in masks])
