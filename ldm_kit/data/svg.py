"""Rasterise SVG drawings with resvg."""

import importlib
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def rasterise(resolution: int, background: str, **drawing: Any) -> Tensor:
    """Return an SVG drawing as pixels, uint8 [3, R, R].

    Args:
        resolution: pixels along each side, R.
        background: colour behind the drawing, as #rrggbb.
        drawing: `svg_string`, the drawing itself, or `svg_path`, its file.
    """
    png = importlib.import_module("resvg_py").svg_to_bytes(
        background=background, width=resolution, height=resolution, skip_system_fonts=True, **drawing
    )
    with Image.open(io.BytesIO(png)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
