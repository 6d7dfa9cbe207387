"""The tabs Interpolate and Mix of a semantic model, each with two pictures."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from ldm_kit.app.models import LoadedContext, OpenModel
from ldm_kit.app.options import AppOptions, check_limit
from ldm_kit.app.tabs.base import Tab, Values
from ldm_kit.app.tabs.fields import (
    chosen_steps,
    needed,
    picture_field,
    semantic_of,
    semantic_steps,
    slider,
    step_updates,
)
from ldm_kit.config import check
from ldm_kit.editing.attributes import mix_pictures
from ldm_kit.editing.interpolation import interpolate_pictures
from ldm_kit.editing.options import InterpolationOptions, MixOptions

MOST = 24  # most pictures of an interpolation


class InterpolateTab(Tab):
    """Interpolate between two pictures, as `edit.py interpolate` does."""

    key, title, button = "interpolate", "Interpolate", "Interpolate"

    def available(self, model: OpenModel) -> bool:
        """Return whether the model is semantic."""
        return model.semantic is not None

    def build(self) -> dict[str, Component]:
        """Lay out the fields."""
        with gr.Row():
            fields: dict[str, Component] = {
                "first": picture_field("First picture", "interpolate-first"),
                "last": picture_field("Last picture", "interpolate-last"),
            }
        fields["count"] = slider("interpolate", "count", "Pictures", (2, MOST, 1), value=8)
        fields["trajectory"] = gr.Checkbox(
            label="Trajectory", info="mix a PDAE's gradients in every step", elem_id="interpolate-trajectory"
        )
        return fields | semantic_steps("interpolate")

    def updates(self, model: OpenModel) -> dict[str, dict[str, Any]]:
        """Return the model's own steps."""
        semantic = semantic_of(model)
        return {"trajectory": {"visible": semantic.decoder.stops, "value": False}, **step_updates(semantic)}

    def run(self, model: OpenModel, values: Values, out: Path, options: AppOptions) -> str:
        """Interpolate."""
        pictures = (needed(values["first"], "the first picture"), needed(values["last"], "the last picture"))
        given = {"image": pictures, "count": check_limit("count", int(values["count"]), MOST, 2)}
        given |= {"mode": "trajectory" if values["trajectory"] else "latent", **chosen_steps(values)}
        interpolate_pictures(LoadedContext.of(model, out, options), check(InterpolationOptions, given, "the fields"))
        return ""


class MixTab(Tab):
    """Decode the semantic code of one picture with the stochastic code of another, as `edit.py mix` does."""

    key, title, button = "mix", "Mix", "Mix"

    def available(self, model: OpenModel) -> bool:
        """Return whether the model is semantic."""
        return model.semantic is not None

    def build(self) -> dict[str, Component]:
        """Lay out the fields."""
        with gr.Row():
            fields: dict[str, Component] = {
                "content": picture_field("What it shows", "mix-content"),
                "details": picture_field("Details", "mix-details"),
            }
        return fields | semantic_steps("mix")

    def updates(self, model: OpenModel) -> dict[str, dict[str, Any]]:
        """Return the model's own steps."""
        return step_updates(semantic_of(model))

    def run(self, model: OpenModel, values: Values, out: Path, options: AppOptions) -> str:
        """Mix the pictures."""
        given: dict[str, Any] = {
            "content": needed(values["content"], "the picture whose content is taken"),
            "details": needed(values["details"], "the picture whose details are taken"),
            **chosen_steps(values),
        }
        mix_pictures(LoadedContext.of(model, out, options), check(MixOptions, given, "the fields"))
        return ""
