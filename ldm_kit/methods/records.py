"""Records that methods and the program that trains them exchange."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from PIL.Image import Image
from torch import Tensor

from autoencoder.codebook import itself
from ldm_kit.data.images import Split
from ldm_kit.training.task import BatchSource


@dataclass(frozen=True)
class Collectives:
    """Reductions over the processes of a run; the defaults are those of a single process."""

    mean: Callable[[Tensor], Tensor] = itself
    sum: Callable[[Tensor], Tensor] = itself
    broadcast: Callable[[Tensor], Tensor] = itself  # the main process's tensor


class TrainingData(NamedTuple):
    """The pictures of a run, and the batches that are made of them."""

    pictures: Split
    batches: BatchSource
    heldout: BatchSource | None = None  # batches of held-out samples; None: nothing is held out


@dataclass(frozen=True)
class Grid:
    """A sheet of sample pictures; the run keeps it as pictures/NAME-STEP.png."""

    image: Image
    name: str = "samples"
