"""The seam: what a denoiser is given (`Condition`), who makes it (`Conditioner`), and how it is dropped (`drop`)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]
"""Per-sample tensors [N, ...] that a data cache stores: token ids, label ids, or frozen states and their mask."""

Progress = Callable[[int, int], None]
"""Called with (done, total) while `Conditioner.prepare` works."""


class ConditioningError(ValueError):
    """A mistake that the user can mend: an unknown class, an encoder that cannot be had, mismatched inputs."""


@dataclass(frozen=True, eq=False)
class Condition:
    """What a denoiser attends to; `Condition()` is none at all (its length is 0)."""

    tokens: Tensor | None = None  # [B, L, D] cross-attention context
    mask: Tensor | None = None  # [B, L] bool, True = attend; None = attend to all
    vector: Tensor | None = None  # [B, D] added to the time embedding
    concat: Tensor | None = None  # [B, C, h, w] concatenated to the input

    def __post_init__(self) -> None:
        sizes = {len(value) for value in self._fields() if value is not None}
        if len(sizes) > 1:
            raise ConditioningError(f"the parts of a condition must have one batch size, got {sorted(sizes)}")
        if self.mask is not None and (self.tokens is None or self.mask.shape != self.tokens.shape[:2]):
            shape = None if self.tokens is None else tuple(self.tokens.shape)
            raise ConditioningError(f"a mask must be [B, L] over tokens, got {tuple(self.mask.shape)} over {shape}")

    def __len__(self) -> int:
        """The batch size, 0 when there is no condition at all."""
        return next((len(value) for value in self._fields() if value is not None), 0)

    @property
    def pooled(self) -> Tensor | None:
        """One vector [B, D] for a denoiser that does not attend: its own, or the mean of the tokens; None without both.

        The mean is over what the mask lets through (Reimers and Gurevych 2019), of zeros where that is nothing.
        """
        if self.vector is not None or self.tokens is None:
            return self.vector
        if self.mask is None:
            return self.tokens.mean(dim=1)
        shown = self.mask[..., None].to(self.tokens.dtype)
        return (self.tokens * shown).sum(dim=1) / shown.sum(dim=1).clamp_min(1)

    def __getitem__(self, index: slice) -> "Condition":
        """A slice of the batch."""
        return self._map(lambda value: value[index])

    def take(self, indices: Tensor | Sequence[int]) -> "Condition":
        """The samples at `indices` ([K] ints), in that order; an index may come twice."""
        indices = torch.as_tensor(indices, dtype=torch.long)
        return self._map(lambda value: value.index_select(0, indices.to(value.device)))

    def repeat(self, times: int) -> "Condition":
        """Each sample `times` times, neighbours equal, as diffusers does for several images per prompt."""
        return self._map(lambda value: value.repeat_interleave(times, dim=0))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Condition":
        """On another device; `dtype` is for the floating parts, the mask stays bool."""
        return self._map(lambda value: value.to(device, dtype if value.is_floating_point() else None))

    def detach(self) -> "Condition":
        """Without gradient."""
        return self._map(Tensor.detach)

    def before(self, other: "Condition") -> "Condition | None":
        """Both as one batch, where they have one size; else None."""
        return Condition.cat([self, other]) if len(self) == len(other) else None

    @staticmethod
    def cat(conditions: Sequence["Condition"]) -> "Condition":
        """One batch of all; shorter token sequences are padded with masked zeros.

        Raises ConditioningError when one condition has a part that another lacks.
        """
        present = {tuple(value is None for value in (c.tokens, c.vector, c.concat)) for c in conditions}
        if len(present) > 1:
            raise ConditioningError("conditions can be joined only if all of them have the same parts")
        tokens, mask = _cat_tokens(conditions)
        return Condition(tokens, mask, _cat([c.vector for c in conditions]), _cat([c.concat for c in conditions]))

    def _fields(self) -> tuple[Tensor | None, ...]:
        return self.tokens, self.mask, self.vector, self.concat

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Condition":
        return Condition(*(None if value is None else function(value) for value in self._fields()))


class Conditioner(nn.Module, ABC):
    """Raw captions or labels -> cached inputs -> `Condition`. Its parameters are the jointly trained part."""

    null: str | None
    """The raw value that means "nothing said": "" for text and labels, None where there is no condition."""

    width: int | None
    """D of the tokens [B, L, D], which the denoiser's cross-attention must have; None without tokens."""

    vector_width: int | None = None
    """D of the vector [B, D] that is added to the denoiser's time embedding; None without one."""

    @property
    def pooled_width(self) -> int | None:
        """D of `Condition.pooled`; None where there is nothing to pool."""
        return self.width if self.vector_width is None else self.vector_width

    @property
    @abstractmethod
    def trainable(self) -> dict[str, nn.Module]:
        """Component folder -> network that is trained jointly; empty for frozen encoders."""

    @abstractmethod
    def prepare(self, raw: Sequence[str | int], progress: Progress | None = None) -> Inputs:
        """Captions or labels -> per-sample tensors [N, ...] on the CPU; frozen encoders run here, without gradient."""

    @abstractmethod
    def forward(self, *args: Any, **inputs: Any) -> Condition:
        """Prepared inputs of a batch, by name -> condition; differentiable, called every step."""

    @abstractmethod
    def release(self) -> None:
        """Free what only `prepare` needs (a frozen encoder); `prepare` brings it back when called again."""

    @abstractmethod
    def save(self, folder: Path) -> dict[str, tuple[str, str]]:
        """Write component folders into `folder`; returns their entries for model_index.json."""

    def null_inputs(self, count: int = 1) -> Inputs:
        """The null of training and of sampling alike: literally `prepare([null] * count)`."""
        return self.prepare([] if self.null is None else [self.null] * count)


def drop(inputs: Inputs, null: Inputs, dropped: Tensor) -> Inputs:
    """Replace *all* inputs of the dropped samples by the null (classifier-free guidance, Ho and Salimans 2022).

    inputs: [B, ...] each; null: `null_inputs()`, one row (or B); dropped: [B] bool.
    Masked sequences of unequal length are padded to the longer one. Raises ConditioningError on unequal keys or shapes.
    """
    if inputs.keys() != null.keys():
        raise ConditioningError(f"inputs {sorted(inputs)} and null inputs {sorted(null)} must have the same keys")
    return {key: _choose(key, inputs[key], null[key], dropped, "mask" in inputs) for key in inputs}


def texts(raw: Sequence[str | int]) -> list[str]:
    """`raw` as captions; raises ConditioningError naming the first value that is not a string."""
    for value in raw:
        if not isinstance(value, str):
            raise ConditioningError(f"a caption must be a string, got {value!r} of type {type(value).__name__}")
    return [str(value) for value in raw]


def pad_length(value: Tensor, length: int) -> Tensor:
    """[B, L, ...] -> [B, length, ...] with zeros (False) at the end; unchanged when it is long enough."""
    if value.shape[1] >= length:
        return value
    return torch.cat([value, value.new_zeros(len(value), length - value.shape[1], *value.shape[2:])], dim=1)


def _choose(key: str, value: Tensor, null: Tensor, dropped: Tensor, masked: bool) -> Tensor:
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
