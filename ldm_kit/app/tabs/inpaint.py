"""The tab Inpaint of a diffusion model: what the brush has painted over is sampled again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.components import Component
from PIL import Image

from conditioning.pictures import MASK
from ldm_kit.app.models import LoadedContext, OpenModel
from ldm_kit.app.options import MAX_PICTURES, MAX_PIXELS, AppOptions, check_limit
from ldm_kit.app.tabs.base import Tab, Values
from ldm_kit.app.tabs.fields import (
    GIVEN,
    chosen_guidance,
    count_field,
    fitted_picture,
    guidance_fields,
    guidance_updates,
    needed,
    pipeline_of,
    prompt_of,
    seed_fields,
    seed_of,
    slider,
)
from ldm_kit.config import UserError, check
from ldm_kit.data.image_files import decode
from ldm_kit.editing.editable import is_editable
from ldm_kit.editing.masks import read_mask
from ldm_kit.editing.prompt_edits import inpaint_picture
from ldm_kit.editing.sample_options import InpaintOptions
from ldm_kit.inference.generate import generate_with
from ldm_kit.inference.requests import GenerationRequest, OutputOptions
from ldm_kit.models.folder import autocast_dtype
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.provenance import provenance
from ldm_kit.viz.png import save_png

CANVAS = 512  # pixels along each side of the brush's canvas
_PAINTED = 32  # alpha, of 255, from which a pixel of the brush counts


class InpaintTab(Tab):
    """Inpaint with a model that was trained for it, as `sample.py` does, or with any other, as `edit.py inpaint`."""

    key, title, button = "inpaint", "Inpaint", "Inpaint"

    def available(self, model: OpenModel) -> bool:
        """Return whether the model is an inpainting model, or a diffusion model without a picture as condition."""
        pipeline = model.pipeline
        if pipeline is None or pipeline.conditioner.image_conditioner is not None:
            return False
        return _is_trained(pipeline) or (pipeline.picture is None and is_editable(pipeline))

    def build(self) -> dict[str, Component]:
        """Lay out the fields."""
        editor = gr.ImageEditor(
            label="Your picture; paint over what is to be made anew",
            type="filepath",
            sources=["upload", "clipboard"],
            format="png",
            layers=False,
            transforms=(),
            brush=gr.Brush(default_size=40, colors=["#6366f1"], color_mode="fixed"),
            eraser=gr.Eraser(default_size=40),
            height=400,
            canvas_size=(CANVAS, CANVAS),
            fixed_canvas=True,
            buttons=[],
            elem_id="inpaint-editor",
        )
        editor.upload(squared, editor, editor, queue=False, api_visibility="private", show_progress="hidden")
        fields: dict[str, Component] = {"editor": editor}
        fields["prompt"] = gr.Textbox(label="Prompt", lines=2, elem_id="inpaint-prompt")
        fields["class_name"] = gr.Dropdown(label="Class", elem_id="inpaint-class-name")
        with gr.Row():
            fields["count"] = count_field("inpaint")
            fields |= seed_fields("inpaint")
        fields |= guidance_fields("inpaint")
        fields["resample"] = slider("inpaint", "resample", "Repetitions of a step", (1, 10, 1), value=4)
        return fields

    def updates(self, model: OpenModel) -> dict[str, dict[str, Any]]:
        """Return the model's own settings; a trained model repeats no step."""
        pipeline = pipeline_of(model)
        return guidance_updates(pipeline, _bare()) | {"resample": {"visible": not _is_trained(pipeline)}}

    def run(self, model: OpenModel, values: Values, out: Path, options: AppOptions) -> str:
        """Inpaint what is painted over."""
        pipeline, count = pipeline_of(model), check_limit("count", int(values["count"]), MAX_PICTURES)
        uploaded = needed((values["editor"] or {}).get("background"), "a picture to inpaint")
        mask = painted(values["editor"], out / GIVEN / "mask.png")
        picture = reduced(uploaded, out / GIVEN / "painted.png")
        seed, prompt = seed_of(values, count), prompt_of(pipeline, values["prompt"], values["class_name"])
        chosen = chosen_guidance(pipeline, values, _bare())
        if _is_trained(pipeline):
            prompts = () if prompt is None else (prompt,)
            request = {"prompts": prompts, "count": count, "seed": seed} | _fitted(pipeline, picture, mask, out)
            origin = provenance(model.folder, autocast_dtype(options.precision, pipeline.device))
            written = OutputOptions(out=out, device=options.device, precision=options.precision)
            sampling = check(SamplingOptions, chosen, "the fields")
            generate_with(pipeline, check(GenerationRequest, request, "the fields"), sampling, written, origin)
            return ""
        resample = check_limit("resample", int(values["resample"]), 50)
        given = {"image": picture, "mask": mask, "prompt": prompt, "count": count, "seed": seed, "resample": resample}
        request = check(InpaintOptions, given | chosen, "the fields")
        inpaint_picture(LoadedContext.of(model, out, options), request)
        return ""


def squared(editor: Mapping[str, Any] | None) -> Any:
    """Return what the brush's editor shows of an uploaded picture: its centre, enlarged to the canvas if it is small.

    Each pixel becomes a square of pixels, so that `reduced` gives the picture back exactly.
    """
    path = (editor or {}).get("background")
    try:
        image = decode(Path(path), MAX_PIXELS).image if path else None
    except UserError:
        image = None
    if image is None:
        return gr.skip()  # the button's sentence says what is wrong
    side, scale = min(image.size), max(1, CANVAS // min(image.size))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box, size = (left, top, left + side, top + side), (side * scale, side * scale)
    return {"background": image.resize(size, Image.Resampling.NEAREST, box), "layers": [], "composite": None}


def reduced(path: Path, out: Path) -> Path:
    """Return the path of a picture without enlargement by whole factors, written to `out`; `path` if there is none."""
    image = decode(path, MAX_PIXELS).image
    pixels = np.asarray(image.convert("RGBA"))
    for scale in range(min(image.size) // 2, 1, -1):
        if image.width % scale or image.height % scale:
            continue
        small = pixels[::scale, ::scale]
        if np.array_equal(small.repeat(scale, 0).repeat(scale, 1), pixels):
            save_png(image.resize((small.shape[1], small.shape[0]), Image.Resampling.NEAREST), out)
            return out
    return path


def painted(editor: Mapping[str, Any], out: Path) -> Path:
    """Write a mask, white where the brush has painted and black elsewhere, to `out`; return its path.

    Args:
        editor: paths of the layers that the brush has painted, `layers`, all of one size.
        out: a PNG.

    Raises:
        UserError: nothing is painted.
    """
    layers: list[Any] = []
    for path in editor.get("layers") or ():
        with Image.open(path) as image:
            layers.append(np.asarray(image.convert("RGBA").getchannel("A")) >= _PAINTED)
    mask = np.logical_or.reduce(layers) if layers else np.zeros((1, 1), dtype=bool)
    if not mask.any():
        raise UserError("nothing is painted; expected the brush over what is to be made anew")
    save_png(Image.fromarray(mask.astype(np.uint8) * 255), out)
    return out


def _is_trained(pipeline: Pipeline) -> bool:
    return pipeline.picture is not None and MASK in pipeline.picture.given


def _fitted(pipeline: Pipeline, picture: Path, mask: Path, out: Path) -> dict[str, Path]:
    """Return paths of a picture and its mask at the size that an inpainting model takes."""
    side = pipeline.resolution
    scaled = read_mask(mask, side, picture)
    small = out / GIVEN / "mask-small.png"
    save_png(Image.fromarray(scaled.numpy().astype(np.uint8) * 255), small)
    fitted = fitted_picture(picture, side, pipeline.channels, out / GIVEN / "picture.png")
    return {"image": fitted, "mask": small}


def _bare() -> InpaintOptions:
    return InpaintOptions(image=Path(), mask=Path())
