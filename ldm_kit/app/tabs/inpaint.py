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
from ldm_kit.app.options import MAX_PICTURES, AppOptions, check_limit
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

_PAINTED = 32  # alpha, of 255, from which a pixel of the brush counts


class InpaintTab(Tab):
    """Inpaint with a model that was trained for it, as `sample.py` does, or with any other, as `edit.py inpaint`."""

    key, title, button = "inpaint", "Inpaint", "Inpaint"

    def available(self, model: OpenModel) -> bool:
        """Return whether the model is an inpainting model, or a diffusion model without a picture as condition."""
        pipeline = model.pipeline
        return pipeline is not None and (pipeline.picture is None or _is_trained(pipeline))

    def build(self) -> dict[str, Component]:
        """Lay out the fields."""
        fields: dict[str, Component] = {
            "editor": gr.ImageEditor(
                label="Your picture; paint over what is to be made anew",
                type="filepath",
                sources=["upload", "clipboard"],
                format="png",
                layers=False,
                transforms=(),
                brush=gr.Brush(default_size=40, colors=["#6366f1"], color_mode="fixed"),
                eraser=gr.Eraser(default_size=40),
                height=360,
                canvas_size=(512, 512),
                fixed_canvas=True,
                buttons=[],
                elem_id="inpaint-editor",
            )
        }
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
        picture = needed((values["editor"] or {}).get("background"), "a picture to inpaint")
        mask = painted(values["editor"], picture, out / GIVEN / "mask.png")
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


def painted(editor: Mapping[str, Any], picture: Path, out: Path) -> Path:
    """Write a mask, white where the brush has painted and black elsewhere, to `out`; return its path.

    Args:
        editor: paths of the layers that the brush has painted, `layers`.
        picture: the picture under them, which has the same size.
        out: a PNG.

    Raises:
        UserError: nothing is painted.
    """
    size = decode(picture).image.size
    mask = np.zeros((size[1], size[0]), dtype=bool)
    for layer in editor.get("layers") or ():
        with Image.open(layer) as image:
            alpha = image.convert("RGBA").getchannel("A").resize(size, Image.Resampling.NEAREST)
        mask |= np.asarray(alpha) >= _PAINTED
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
