"""The tabs Reprompt and Variations of a diffusion model: a picture is inverted, or noised, and sampled again."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from ldm_kit.app.models import LoadedContext, OpenModel
from ldm_kit.app.options import MAX_PICTURES, AppOptions, check_limit
from ldm_kit.app.tabs.base import Tab, Values
from ldm_kit.app.tabs.fields import (
    chosen_guidance,
    class_choices,
    classes_of,
    count_field,
    guidance_fields,
    guidance_updates,
    needed,
    picture_field,
    pipeline_of,
    prompt_of,
    seed_fields,
    seed_of,
    slider,
)
from ldm_kit.config import check
from ldm_kit.editing.editable import is_editable
from ldm_kit.editing.prompt_edits import img2img_picture, reprompt_picture
from ldm_kit.editing.sample_options import Img2ImgOptions, RepromptOptions
from ldm_kit.models.consistency_names import SOLVER


class RepromptTab(Tab):
    """Invert a picture under its prompt and sample it under another, as `edit.py reprompt` does."""

    key, title, button = "reprompt", "Reprompt", "Reprompt"

    def available(self, model: OpenModel) -> bool:
        """Return whether the model samples from prompts or classes alone, and has an inverse."""
        pipeline = model.pipeline
        if pipeline is None or pipeline.picture is not None or not is_editable(pipeline):
            return False
        if pipeline.conditioner.null is None:
            return False
        return pipeline.saved.sampling.get("solver") != SOLVER

    def build(self) -> dict[str, Component]:
        """Lay out the fields."""
        fields: dict[str, Component] = {"image": picture_field("Your picture", "reprompt-image")}
        fields["source"] = gr.Textbox(label="Prompt of the picture", lines=2, elem_id="reprompt-source")
        fields["prompt"] = gr.Textbox(label="New prompt", lines=2, elem_id="reprompt-prompt")
        with gr.Row():
            fields["source_class"] = gr.Dropdown(label="Class of the picture", elem_id="reprompt-source-class")
            fields["class_name"] = gr.Dropdown(label="New class", elem_id="reprompt-class-name")
        with gr.Row():
            fields["strength"] = slider("reprompt", "strength", "Strength", (0.05, 1, 0.05), value=1.0)
            fields["refine"] = slider("reprompt", "refine", "Refinements of a step", (0, 5, 1), value=0)
        return fields | guidance_fields("reprompt")

    def updates(self, model: OpenModel) -> dict[str, dict[str, Any]]:
        """Return the model's own settings, and fields for a prompt or a class."""
        pipeline = pipeline_of(model)
        updates, classes = guidance_updates(pipeline, _bare()), classes_of(pipeline)
        most = pipeline.schedule_config.num_train_timesteps - 1
        updates["steps"] |= {"maximum": min(updates["steps"]["maximum"], most)}
        updates["steps"]["value"] = min(updates["steps"]["value"], most)
        updates["source"] = dict(updates["prompt"])
        updates["source_class"] = {"visible": classes is not None, **class_choices(classes)}
        return updates

    def run(self, model: OpenModel, values: Values, out: Path, options: AppOptions) -> str:
        """Reprompt the picture; the sentence has the error of the inversion."""
        pipeline = pipeline_of(model)
        given: dict[str, Any] = {
            "image": needed(values["image"], "a picture to reprompt"),
            "source": prompt_of(pipeline, values["source"], values["source_class"], "the prompt of the picture"),
            "prompt": prompt_of(pipeline, values["prompt"], values["class_name"], "the new prompt"),
            "strength": float(values["strength"]),
            "refine": check_limit("refine", int(values["refine"]), 20, 0),
            **chosen_guidance(pipeline, values, _bare()),
        }
        given["steps"] = int(values["steps"])
        context = LoadedContext.of(model, out, options)
        _, error = reprompt_picture(context, check(RepromptOptions, given, "the fields"))
        return f"{error}"


class Img2ImgTab(Tab):
    """Noise a picture and sample it again from there, as `edit.py img2img` does."""

    key, title, button = "img2img", "Variations", "Make variations"

    def available(self, model: OpenModel) -> bool:
        """Return whether the model is a diffusion model without a picture as condition."""
        pipeline = model.pipeline
        return pipeline is not None and pipeline.picture is None and is_editable(pipeline)

    def build(self) -> dict[str, Component]:
        """Lay out the fields."""
        fields: dict[str, Component] = {"image": picture_field("Your picture", "img2img-image")}
        fields["prompt"] = gr.Textbox(label="Prompt", lines=2, elem_id="img2img-prompt")
        fields["class_name"] = gr.Dropdown(label="Class", elem_id="img2img-class-name")
        with gr.Row():
            fields["count"] = count_field("img2img")
            fields |= seed_fields("img2img")
        fields["strength"] = slider("img2img", "strength", "Strength", (0.05, 1, 0.05), value=0.6)
        return fields | guidance_fields("img2img")

    def updates(self, model: OpenModel) -> dict[str, dict[str, Any]]:
        """Return the model's own settings, and a field for a prompt or a class."""
        pipeline = pipeline_of(model)
        return guidance_updates(pipeline, Img2ImgOptions(image=Path()))

    def run(self, model: OpenModel, values: Values, out: Path, options: AppOptions) -> str:
        """Sample the variations."""
        pipeline, count = pipeline_of(model), check_limit("count", int(values["count"]), MAX_PICTURES)
        given: dict[str, Any] = {
            "image": needed(values["image"], "a picture to vary"),
            "prompt": prompt_of(pipeline, values["prompt"], values["class_name"]),
            "count": count,
            "seed": seed_of(values, count),
            "strength": float(values["strength"]),
            **chosen_guidance(pipeline, values, Img2ImgOptions(image=Path())),
        }
        img2img_picture(LoadedContext.of(model, out, options), check(Img2ImgOptions, given, "the fields"))
        return ""


def _bare() -> RepromptOptions:
    return RepromptOptions(image=Path(), source="", prompt="")
