"""Join the conditions of several conditioners into one.

Tokens are joined along the length; those of fewer channels are padded with zeros, as Stable Diffusion 3 joins its
encoders' tokens (Esser et al. 2024, section 4). Vectors are joined along the channels, as in SDXL (Podell et al. 2024);
for a denoiser without attention they are added.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from conditioning.base import Inputs
from conditioning.condition import Condition, ConditioningError


def joined_widths(widths: Sequence[tuple[int | None, int | None]]) -> tuple[int | None, int | None]:
    """Return the widths of joined tokens and of joined vectors; None: there are none.

    Raises:
        ConditioningError: vectors of different widths would have to be added.
    """
    tokens, vectors = ([pair[k] for pair in widths if pair[k] is not None] for k in (0, 1))
    width = max((value for value in tokens if value is not None), default=None)
    if not vectors:
        return width, None
    if width is not None:
        return width, sum(value or 0 for value in vectors)
    if len({*vectors}) > 1:
        raise ConditioningError(f"vectors of widths {vectors} cannot be added; expected equal condition.width")
    return None, vectors[0]


def inputs_of(index: int, inputs: Mapping[str, Tensor]) -> Inputs:
    """Return those of the joined inputs that belong to the part `index`, by the names that the part gives them."""
    start = f"{index}."
    return {name.removeprefix(start): value for name, value in inputs.items() if name.startswith(start)}


def join_tokens(conditions: Sequence[Condition]) -> tuple[Tensor | None, Tensor | None]:
    """Return tokens [B, L1 + L2 + ..., D] and their mask; None twice if there are no tokens."""
    pairs = [(each.tokens, each.mask) for each in conditions if each.tokens is not None]
    if not pairs:
        return None, None
    width = max(tokens.shape[2] for tokens, _ in pairs)
    joined = torch.cat([F.pad(tokens, (0, width - tokens.shape[2])) for tokens, _ in pairs], dim=1)
    if all(mask is None for _, mask in pairs):
        return joined, None
    masks = [tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask for tokens, mask in pairs]
    return joined, torch.cat(masks, dim=1)
