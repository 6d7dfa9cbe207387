"""Small classes by which training methods and the training program exchange data, batches and pictures."""

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
    """Functions that combine a tensor over a run's processes; the defaults, for one process, return it unchanged."""

    mean: Callable[[Tensor], Tensor] = itself  # returns the mean of all processes' tensors
    sum: Callable[[Tensor], Tensor] = itself  # returns the sum of all processes' tensors
    broadcast: Callable[[Tensor], Tensor] = itself  # returns the main process's tensor on every process


class TrainingData(NamedTuple):
    """The pictures of a run, and the sources of batches that are made from them."""

    pictures: Split  # training and held-out pictures
    batches: BatchSource  # training batches
    heldout: BatchSource | None = None  # held-out batches; None: nothing is held out


@dataclass(frozen=True)
class Grid:
    """A grid of sample pictures, as one image; the run writes it to pictures/NAME-STEP.png."""

    image: Image
    name: str = "samples"  # NAME in the file's name
