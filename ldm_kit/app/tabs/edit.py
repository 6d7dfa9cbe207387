"""The tab Edit of a semantic model: a picture, a slider for each chosen attribute, and a strip of strengths."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from ldm_kit.app.models import LoadedContext, OpenModel
from ldm_kit.app.options import AppOptions
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
from ldm_kit.config import UserError, check
from ldm_kit.editing.attributes import change_attributes
from ldm_kit.editing.options import MAX_STRENGTH, ChangeOptions

SLIDERS = 6  # most attributes at once
STRIP = (-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6)  # strengths of the strip's pictures
_STEP = 0.05  # of a slider
_SLIDERS = tuple(f"strength_{number}" for number in range(1, SLIDERS + 1))


class EditTab(Tab):
    """Change attributes of a picture, as `edit.py change` does."""

    key, title, button = "edit", "Edit", "Edit"
    live = ("attributes", *_SLIDERS, "strip")

    def available(self, model: OpenModel) -> bool:
        """Return whether attribute directions were learned for the model."""
        return model.semantic is not None and model.attributes is not None

    def build(self) -> dict[str, Component]:
        """Lay out the fields."""
        fields: dict[str, Component] = {"image": picture_field("Your picture", "edit-image")}
        fields["attributes"] = gr.Dropdown(
            label="Attributes", multiselect=True, max_choices=SLIDERS, elem_id="edit-attributes"
        )
        fields["assigned"] = gr.JSON(visible=False, elem_id="edit-assigned")
        for name in _SLIDERS:
            fields[name] = slider("edit", name, name, (-MAX_STRENGTH, MAX_STRENGTH, _STEP), value=0.0, visible=False)
        with gr.Row():
            fields["live"] = gr.Checkbox(
                value=True, label="Live", info="edit as a slider is moved", elem_id="edit-live"
            )
            fields["strip"] = gr.Checkbox(
                value=False, label="Strip", info="one picture for each of seven strengths", elem_id="edit-strip"
            )
        fields |= semantic_steps("edit")
        return fields

    def updates(self, model: OpenModel) -> dict[str, dict[str, Any]]:
        """Return the model's attributes as choices, without any chosen."""
        if model.attributes is None:
            return {}
        hidden = {name: {"visible": False, "value": 0.0} for name in _SLIDERS}
        chosen = {"attributes": {"choices": model.attributes.names, "value": []}, "assigned": {"value": []}}
        return {**chosen, **hidden, **step_updates(semantic_of(model))}

    def slots(self, values: Values, model: OpenModel) -> dict[str, dict[str, Any]]:
        """Give each chosen attribute a slider, at its strength so far or, if it is new, at its typical strength."""
        names, strengths = _names(values), _strengths(values)
        sliders: dict[str, dict[str, Any]] = {name: {"visible": False, "value": 0.0} for name in _SLIDERS}
        for slot, name in zip(_SLIDERS, names, strict=False):
            strength = strengths.get(name, _typical(model, name))
            sliders[slot] = {"visible": True, "label": name, "value": strength}
        return {**sliders, "assigned": {"value": names, "visible": False}}

    def summary(self, values: Values) -> Values:
        """Return the strength of each attribute, and the steps."""
        strengths = _strengths(values)
        shown = {name: "strip" if values["strip"] else strengths.get(name, 0.0) for name in _names(values)}
        return {**shown, "steps": values["steps"], "inversion steps": values["invert_steps"]}

    def is_live(self, values: Values) -> bool:
        """Return whether there is a picture and an attribute, and the user wants to see each change at once."""
        moved = values["strip"] or any(_strengths(values).get(name) for name in _names(values))
        return bool(values["live"] and values["image"] and values["attributes"] and moved)

    def run(self, model: OpenModel, values: Values, out: Path, options: AppOptions) -> str:
        """Change the attributes by the sliders' strengths, or by those of the strip."""
        given: dict[str, Any] = {"image": needed(values["image"], "a picture to edit"), **chosen_steps(values)}
        names = _names(values)
        if not names:
            raise UserError("no attribute is chosen; expected one or more")
        if len(names) > SLIDERS:
            raise UserError(f"{len(names)} attributes are chosen; expected {SLIDERS} or fewer")
        given["attribute"] = tuple(names)
        if values["strip"]:
            given["strip"] = ",".join(f"{strength:g}" for strength in STRIP)
        else:
            strengths = tuple(_strengths(values).get(name, 0.0) for name in names)
            if not any(strengths):
                raise UserError("every slider is at 0, which changes nothing; expected another strength")
            given["strength"] = strengths
        change_attributes(LoadedContext.of(model, out, options), check(ChangeOptions, given, "the fields"))
        return ""


def _names(values: Values) -> list[str]:
    """Return the names of the chosen attributes."""
    return [str(name) for name in values["attributes"] or ()]


def _strengths(values: Values) -> dict[str, float]:
    """Return the sliders' strengths by the names of the attributes to which they were assigned."""
    order = [str(name) for name in values["assigned"] or ()]
    return {name: float(values[slot]) for slot, name in zip(_SLIDERS, order, strict=False)}


def _typical(model: OpenModel, name: str) -> float:
    """Return an attribute's typical strength in steps of the slider, at least one of them."""
    if model.attributes is None:
        return 0.0
    steps = round(model.attributes[name].typical / _STEP)
    return max(-MAX_STRENGTH, min(MAX_STRENGTH, round((steps or 1) * _STEP, 2)))
