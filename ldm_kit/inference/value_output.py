"""Write samples of a model of values (16 bits or floats, any channels) in the units of its training data."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ldm_kit.data.value_range import ValueRange
from ldm_kit.viz.png import save_png, write_atomic

ARRAYS, LEVELS = "npy", "png16"  # sub-folders for the values, and for the levels of samples with one channel


def save_values(picture: Tensor, values: ValueRange, preview: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a sample in the units of the data; if it has one channel, also as a PNG of 16 bits.

    The array is float32 [C, H, W], in `npy/NAME.npy` beside the preview NAME.png. The PNG, in `png16/NAME.png`, has the
    lowest value of the range as 0 and the highest as 65535.

    Args:
        picture: uint16 [C, H, W].
        values: what the lowest and the highest level stand for.
        preview: path of the sample's preview.
        metadata: metadata of the PNG; None: none.
    """
    buffer = io.BytesIO()
    np.save(buffer, values.values(picture).numpy(), allow_pickle=False)
    write_atomic(preview.parent / ARRAYS / f"{preview.stem}.npy", buffer.getvalue())
    if len(picture) == 1:
        image = Image.fromarray(np.ascontiguousarray(picture[0].numpy()))  # mode I;16
        save_png(image, preview.parent / LEVELS / preview.name, metadata)
