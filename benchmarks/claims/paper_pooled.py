"""Pooled captions: within a context, a text encoder hands on the mean of its states as a single token.

A U-Net that attends to one token gives it all weight at every position, so that each attention block adds one vector
that is a linear map of the mean. The networks and their sizes are those of cross-attention to all states.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from torch import Tensor

from conditioning.condition import Condition
from conditioning.text import TextConditioner


@contextmanager
def pooled_captions() -> Iterator[None]:
    """Return a context in which every `TextConditioner` gives the mean of its L states [B, L, D] as tokens [B, 1, D].

    No saved model says that it was trained so, because plain Stable Diffusion pipelines would give it all states; it
    must be sampled within this context too.
    """
    encode = TextConditioner.forward

    def mean(self: TextConditioner, ids: Tensor) -> Condition:
        pooled = encode(self, ids).pooled
        assert pooled is not None
        return Condition(tokens=pooled[:, None])

    with mock.patch.object(TextConditioner, "forward", mean):
        yield
