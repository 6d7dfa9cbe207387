"""The tab Sample of a semantic model with a prior: new codes, and the pictures decoded from them."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from ldm_kit.app.models import LoadedContext, OpenModel
from ldm_kit.app.options import MAX_PICTURES, MAX_STEPS, AppOptions, check_limit, check_prompts
from ldm_kit.app.tabs.base import Tab, Values
from ldm_kit.app.tabs.fields import (
    MAX_SCALE,
    class_choices,
    count_field,
    most_steps,
    seed_fields,
    seed_of,
    semantic_of,
    slider,
    steps_field,
)
from ldm_kit.config import check
from ldm_kit.editing.sample_options import SamplePriorOptions
from ldm_kit.editing.sample_prior import sample_prior


class PriorTab(Tab):
    """Sample pictures from the prior of a semantic model, as `edit.py sample` does."""

    key, title, button = "prior", "Sample", "Sample"

    def available(self, model: OpenModel) -> bool:
        """Return whether the model has a prior."""
        return model.semantic is not None and model.semantic.prior is not None

    def build(self) -> dict[str, Component]:
        """Lay out the fields."""
        fields: dict[str, Component] = {
            "prompt": gr.Textbox(label="Prompt", info="empty: none", elem_id="prior-prompt"),
            "class_name": gr.Dropdown(label="Class", elem_id="prior-class-name"),
        }
        with gr.Row():
            fields["count"] = count_field("prior")
            fields |= seed_fields("prior")
        with gr.Row():
            fields["steps"] = steps_field("prior", "Steps of the code")
            fields["decode_steps"] = steps_field("prior", "Decoding steps", "decode_steps")
        fields["guidance_scale"] = slider("prior", "guidance_scale", "Guidance scale", (0, MAX_SCALE, 0.1))
        return fields

    def updates(self, model: OpenModel) -> dict[str, dict[str, Any]]:
        """Return the prior's own settings as values."""
        semantic = semantic_of(model)
        if semantic.prior is None:
            return {}
        conditioner: Any = semantic.prior.conditioner
        classes = tuple(conditioner.classes) if conditioner.modality == "classes" else None
        times, conditional = semantic.prior.schedule_config.num_train_timesteps, conditioner.null is not None
        steps, scale = semantic.saved.of_prior(None, None, times, conditional)
        most = semantic.decoder.most_steps
        decode = semantic.saved.sections.get("prior", {}).get("decode_steps")
        decode = semantic.saved.steps("decode_steps", most) if decode is None else min(int(decode), most)
        return {
            "prompt": {"visible": conditional and classes is None},
            "class_name": {"visible": classes is not None, **class_choices(classes)},
            "steps": {"value": steps, "maximum": most_steps(times, steps)},
            "decode_steps": {"value": decode, "maximum": most_steps(most, decode)},
            "guidance_scale": {"value": scale, "visible": conditional},
        }

    def run(self, model: OpenModel, values: Values, out: Path, options: AppOptions) -> str:
        """Sample the pictures."""
        count = check_limit("count", int(values["count"]), MAX_PICTURES)
        given: dict[str, Any] = {"count": count, "seed": seed_of(values, count)}
        for name in ("steps", "decode_steps"):
            given[name] = check_limit(name.replace("_", " "), int(values[name]), MAX_STEPS)
        fields = self.updates(model)
        if fields["class_name"]["visible"]:
            given["prompt"] = values["class_name"]
        elif fields["prompt"]["visible"] and (prompts := check_prompts(values["prompt"] or "")):
            given["prompt"] = prompts[0]
        if values["guidance_scale"] != fields["guidance_scale"]["value"] and "prompt" in given:
            given["guidance_scale"] = values["guidance_scale"]
        context = LoadedContext.of(model, out, options)
        sample_prior(context, check(SamplePriorOptions, given, "the fields"))
        return ""
