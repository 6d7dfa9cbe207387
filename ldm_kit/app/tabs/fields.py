"""Fields that several tabs have, and how their values are read."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from ldm_kit.app.options import MAX_PICTURES, MAX_PIXELS, MAX_STEPS, whole_number
from ldm_kit.app.tabs.base import Values
from ldm_kit.config import UserError
from ldm_kit.data.image_files import decode
from ldm_kit.editing.image_io import read_picture
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.sampler_options import check_seed, check_seeds
from ldm_kit.viz.grid import to_image
from ldm_kit.viz.png import save_png

_SEEDS = 2**32  # a random seed is under it, short enough to be written down


def count_field(key: str) -> Component:
    """Return the field with the number of pictures."""
    return gr.Slider(1, MAX_PICTURES, value=4, step=1, label="Pictures", elem_id=f"{key}-count", min_width=150)


def seed_fields(key: str) -> dict[str, Component]:
    """Return the field `seed`, which is text so that no digit is lost, with a button for a random one."""
    with gr.Column(min_width=150, elem_classes="seed"):
        seed = gr.Textbox("0", label="Seed", max_lines=1, elem_id=f"{key}-seed")
        button = gr.Button("Random", size="sm", elem_id=f"{key}-random")
    button.click(lambda: str(secrets.randbelow(_SEEDS)), None, seed, queue=False, api_visibility="private")
    return {"seed": seed}


def seed_of(values: Values, count: int) -> int:
    """Return the first seed of `count` pictures; UserError: it is none."""
    seed = whole_number("the seed", values["seed"])
    try:
        check_seed(seed)
        check_seeds(seed, count)
    except ValueError as error:
        raise UserError(f"the seed is {seed}; {str(error).rpartition('; ')[2]}") from None
    return seed


def steps_field(key: str, label: str = "Steps", name: str = "steps") -> Component:
    """Return a field with a number of steps."""
    return gr.Slider(1, MAX_STEPS, value=20, step=1, label=label, elem_id=f"{key}-{name}", min_width=150)


def picture_field(label: str, identity: str) -> Component:
    """Return a field for a picture, whose value is the path of the uploaded file."""
    return gr.Image(
        label=label,
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        height=220,
        buttons=[],
        elem_id=identity,
    )


def needed(path: Any, what: str) -> Path:
    """Return the path of an uploaded picture, of not too many pixels; UserError: there is none, or it is too large."""
    if not path:
        raise UserError(f"expected {what}")
    decode(Path(path), MAX_PIXELS)
    return Path(path)


def fitted_picture(path: Path, side: int, channels: int, out: Path) -> Path:
    """Write a picture, scaled and cropped to a square of `side` pixels, to the PNG `out`; return its path."""
    save_png(to_image(read_picture(path, side, channels)), out)
    return out


def classes_of(pipeline: Pipeline) -> Sequence[str] | None:
    """Return the class names that a model samples from; None: it takes no class, or text beside it."""
    conditioner: Any = pipeline.conditioner
    return tuple(conditioner.classes) if conditioner.modality == "classes" and hasattr(conditioner, "classes") else None
