"""A device with little memory, as if: layers that are given more than so many samples at once have none left."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ldm_kit import memory


@contextmanager
def room_for(most: int, kinds: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)) -> Iterator[list[int]]:
    """Let layers of these kinds run out of memory above `most` samples; yields how many each refused was given."""
    refused: list[int] = []

    def check(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, kinds) and len(inputs[0]) > most:
            refused.append(len(inputs[0]))
            raise torch.OutOfMemoryError("as if")

    handle = register_module_forward_pre_hook(check)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory, "free_memory", lambda: None)  # slow, and nothing is held
            yield refused
    finally:
        handle.remove()
