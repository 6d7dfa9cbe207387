"""Helpers for networks: count the weights, make them contiguous, hold evaluation mode."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def contiguous_weights(*modules: nn.Module) -> Iterator[None]:
    """Make weights and buffers of `modules` contiguous within this context, as safetensors requires.

    On leaving the context, each tensor gets its former memory layout (such as channels-last) back.
    """
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    laid_out = [(tensor, tensor.data) for tensor in tensors if not tensor.is_contiguous()]
    for tensor, data in laid_out:
        tensor.data = data.contiguous()
    try:
        yield
    finally:
        for tensor, data in laid_out:
            tensor.data = data


def millions(*modules: nn.Module) -> str:
    """Return the number of trained parameters of all `modules` as text, in millions, such as "1.2 M"."""
    return f"{sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad) / 1e6:.1f} M"


@contextlib.contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Hold `modules` in evaluation mode within this context; then restore the mode of each."""
    were = [(child, child.training) for module in modules for child in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for child, training in were:
            child.training = training
