"""What a denoiser is conditioned on: `Condition`, a batch of tokens, vectors or maps, and `ConditioningError`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_NAMES = ("tokens", "mask", "vector", "concat", "level", "sizes")


class ConditioningError(ValueError):
    """A mistake that the user can correct: an unknown class, an encoder that cannot be loaded, mismatched inputs."""


@dataclass(frozen=True, eq=False)
class Condition:
    """Tensors that a denoiser is conditioned on, for B samples. `Condition()`, without tensors, means unconditional.

    Shapes: L tokens of D channels; `concat` has the size h x w of the denoiser's input.

    Raises:
        ConditioningError: the tensors have different batch sizes, or the mask does not fit the tokens.
    """

    tokens: Tensor | None = None  # [B, L, D] cross-attention context
    mask: Tensor | None = None  # [B, L] bool, True = attend; None = attend to all
    vector: Tensor | None = None  # [B, D] added to the time embedding
    concat: Tensor | None = None  # [B, C, h, w] concatenated to the input
    level: Tensor | None = None  # [B] noise level of `concat`, embedded as the timestep is
    sizes: Tensor | None = None  # [B, 6] height and width of the original, top and left of the crop, height and width

    def __post_init__(self) -> None:
        sizes = {len(value) for value in self._fields() if value is not None}
        if len(sizes) > 1:
            raise ConditioningError(f"the tensors of a condition must have one batch size, got {sorted(sizes)}")
        if self.mask is not None and (self.tokens is None or self.mask.shape != self.tokens.shape[:2]):
            shape = None if self.tokens is None else tuple(self.tokens.shape)
            raise ConditioningError(f"a mask must be [B, L] over tokens, got {tuple(self.mask.shape)} over {shape}")

    def __len__(self) -> int:
        """Return the batch size B; 0 if there are no tensors."""
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
        """Return the condition of the samples in a slice of the batch, such as `condition[2:4]`."""
        return self._map(lambda value: value[index])

    def take(self, indices: Tensor | Sequence[int]) -> "Condition":
        """Return the samples at `indices` ([K] ints), in that order; an index may repeat."""
        indices = torch.as_tensor(indices, dtype=torch.long)
        return self._map(lambda value: value.index_select(0, indices.to(value.device)))

    def repeat(self, times: int) -> "Condition":
        """Return a batch with each sample `times` times in a row, as diffusers does for several images per prompt."""
        return self._map(lambda value: value.repeat_interleave(times, dim=0))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Condition":
        """Return the condition on `device`, with floating-point tensors cast to `dtype`; the mask stays bool."""
        return self._map(lambda value: value.to(device, dtype if value.is_floating_point() else None))

    def detach(self) -> "Condition":
        """Return the condition with its tensors detached from the autograd graph."""
        return self._map(Tensor.detach)

    def before(self, other: "Condition") -> "Condition | None":
        """Return one batch of 2 B samples: B of this condition, then B of `other`; None if their sizes differ."""
        return Condition.cat([self, other]) if len(self) == len(other) else None

    def expanded(self, count: int) -> "Condition":
        """Return `count` samples, from as many or from one; a condition without tensors is returned unchanged."""
        return self._map(lambda value: value.expand(count, *value.shape[1:]))

    def joined(self, other: "Condition") -> "Condition":
        """Return the tensors of this condition and of `other`, for the same samples.

        Raises:
            ConditioningError: both have a tensor of the same name.
        """
        pairs = [*zip(_NAMES, self._fields(), other._fields(), strict=True)]
        if both := [name for name, own, others in pairs if own is not None and others is not None]:
            raise ConditioningError(f"two conditions have {both[0]}, of which a denoiser takes one")
        return Condition(*(others if own is None else own for _, own, others in pairs))

    @staticmethod
    def cat(conditions: Sequence["Condition"]) -> "Condition":
        """Concatenate conditions along the batch; shorter token sequences are padded with zeros, which are masked.

        Raises:
            ConditioningError: one condition has a tensor (say, a vector) that another lacks.
        """
        present = {tuple(value is None for value in (c.tokens, *c._fields()[2:])) for c in conditions}
        if len(present) > 1:
            raise ConditioningError("conditions can be joined only if all of them have the same tensors")
        tokens, mask = _cat_tokens(conditions)
        rest = ([getattr(c, name) for c in conditions] for name in _NAMES[2:])
        return Condition(tokens, mask, *map(_cat, rest))

    def _fields(self) -> tuple[Tensor | None, ...]:
        return self.tokens, self.mask, self.vector, self.concat, self.level, self.sizes

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Condition":
        return Condition(*(None if value is None else function(value) for value in self._fields()))


def pad_length(value: Tensor, length: int) -> Tensor:
    """Pad `value` [B, L, ...] with zeros or False to [B, length, ...]; return it unchanged if it is longer."""
    if value.shape[1] >= length:
        return value
    return torch.cat([value, value.new_zeros(len(value), length - value.shape[1], *value.shape[2:])], dim=1)


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
