"""Fields that several tabs have, and how their values are read."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from conditioning.base import Conditioner
from ldm_kit.app.models import LoadedContext, OpenModel
from ldm_kit.app.options import (
    MAX_PICTURES,
    MAX_PIXELS,
    MAX_STEPS,
    AppOptions,
    check_limit,
    check_prompts,
    whole_number,
)
from ldm_kit.app.tabs.base import Values
from ldm_kit.config import UserError
from ldm_kit.data.image_files import decode
from ldm_kit.editing.image_io import read_picture
from ldm_kit.editing.sample_options import GuidedOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.sampler_options import check_seed, check_seeds
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.viz.grid import to_image
from ldm_kit.viz.png import save_png

GIVEN = "given"  # sub-folder of a result for the pictures that it is made from
MAX_SCALE = 20.0  # greatest guidance scale of the sliders
_NAMES = {"steps": "decoding steps", "invert_steps": "inversion steps"}
_USUAL_STEPS = 250  # greatest number of steps of a field, unless the model's own number is greater
_SEEDS = 2**32  # a random seed is under it, short enough to be written down


def count_field(key: str) -> Component:
    """Return the field with the number of pictures."""
    return slider(key, "count", "Pictures", (1, MAX_PICTURES, 1), value=4)


def seed_fields(key: str) -> dict[str, Component]:
    """Return the field `seed`, which is text so that no digit is lost, with a button for a random one."""
    button = gr.Button("Random", size="sm", elem_id=f"{key}-random")
    seed = gr.Textbox("0", label="Seed", max_lines=1, elem_id=f"{key}-seed", min_width=150, buttons=[button])
    button.click(lambda: str(secrets.randbelow(_SEEDS)), None, seed, queue=False, api_visibility="private")
    return {"seed": seed}


def slider(key: str, name: str, label: str, span: tuple[float, float, float], **more: Any) -> Component:
    """Return a slider; `span` is its least and greatest value and its step."""
    low, high, step = span
    identity = f"{key}-{name.replace('_', '-')}"
    return gr.Slider(low, high, step=step, label=label, elem_id=identity, min_width=150, buttons=[], **more)


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
    return slider(key, name, label, (1, MAX_STEPS, 1), value=20)


def most_steps(timesteps: int, own: int) -> int:
    """Return the greatest number of a field of steps, for a schedule of `timesteps` and a model's own number."""
    return min(MAX_STEPS, timesteps, max(_USUAL_STEPS, own))


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
    conditioner = prompted(pipeline)
    if conditioner is None or conditioner.modality != "classes":
        return None
    return tuple(conditioner.classes) if hasattr(conditioner, "classes") else None


def prompted(pipeline: Pipeline) -> Any:
    """Return the conditioner that takes a user's prompts or classes, the prior's if there is one; None: none does."""
    conditioner = pipeline.conditioner if pipeline.prior is None else pipeline.prior.prior.conditioner
    return conditioner if takes_prompts(conditioner) else None


def takes_prompts(conditioner: Conditioner) -> bool:
    """Return whether a conditioner takes prompts or classes: it does not if it is for an image alone, or for none."""
    return conditioner.null is not None and conditioner.image_conditioner is not conditioner


def semantic_steps(key: str) -> dict[str, Component]:
    """Return the fields with the numbers of steps of inversion and decoding."""
    with gr.Accordion("More settings", open=False, elem_id=f"{key}-more"), gr.Row():
        return {
            "steps": steps_field(key, "Decoding steps"),
            "invert_steps": steps_field(key, "Inversion steps", "invert_steps"),
        }


def step_updates(model: SemanticModel) -> dict[str, dict[str, Any]]:
    """Return the model's own numbers of steps as values, and the most that its noise schedule allows."""
    saved, most = model.saved, model.decoder.most_steps
    names = {"steps": "decode_steps", "invert_steps": "encode_steps"}
    limit = min(most, MAX_STEPS)
    return {field: {"value": min(saved.steps(name, most), limit), "maximum": limit} for field, name in names.items()}


def chosen_steps(values: Values) -> dict[str, int]:
    """Return the numbers of steps of inversion and decoding; UserError: they are too many."""
    return {name: check_limit(_NAMES[name], int(values[name]), MAX_STEPS) for name in ("steps", "invert_steps")}


def semantic_of(model: OpenModel) -> SemanticModel:
    """Return the semantic model; UserError: it is none."""
    return LoadedContext.of(model, Path(), AppOptions()).load_semantic_model()


def pipeline_of(model: OpenModel) -> Pipeline:
    """Return the diffusion model; UserError: it has a semantic encoder."""
    return LoadedContext.of(model, Path(), AppOptions()).load_pipeline()


def guidance_fields(key: str) -> dict[str, Component]:
    """Return the fields of steps and guidance of tabs that sample a picture again."""
    with gr.Row():
        fields = {"steps": steps_field(key)}
        fields["guidance_scale"] = slider(key, "guidance_scale", "Guidance scale", (0, MAX_SCALE, 0.1))
    fields["negative_prompt"] = gr.Textbox(label="Negative prompt", elem_id=f"{key}-negative-prompt")
    return fields


def guidance_updates(pipeline: Pipeline, options: GuidedOptions) -> dict[str, dict[str, Any]]:
    """Return values, ranges and visibility of `guidance_fields` and of `prompt` or `class_name` for a model."""
    resolved, classes = options.resolve(pipeline), classes_of(pipeline)
    conditional, guided = pipeline.conditioner.null is not None, is_guided(pipeline)
    span = pipeline.saved.guidance_range
    scales = {"minimum": span.min_scale, "maximum": min(span.max_scale, MAX_SCALE)} if pipeline.takes_scale else {}
    most = most_steps(pipeline.schedule_config.num_train_timesteps, resolved.steps)
    return {
        "steps": {"value": resolved.steps, "maximum": most},
        "guidance_scale": {"value": resolved.guidance_scale, "visible": guided, **scales},
        "negative_prompt": {
            "value": resolved.negative_prompt or "",
            "visible": guided and classes is None and not pipeline.takes_scale,
        },
        "prompt": {"visible": conditional and classes is None},
        "class_name": {"visible": classes is not None, **class_choices(classes)},
    }


def class_choices(classes: Sequence[str] | None) -> dict[str, Any]:
    """Return properties of a field for a class; {} without classes."""
    return {} if classes is None else {"choices": [*classes], "value": classes[0]}


def chosen_guidance(pipeline: Pipeline, values: Values, options: GuidedOptions) -> dict[str, Any]:
    """Return those of steps, guidance scale and negative prompt that the user has changed.

    `options` are those of the command without a value; what is not changed keeps the value saved with the model.
    """
    check_limit("steps", int(values["steps"]), MAX_STEPS)
    check_prompts(values["negative_prompt"] or "")
    resolved = options.resolve(pipeline)
    given = {"steps": int(values["steps"]), "guidance_scale": values["guidance_scale"]}
    given["negative_prompt"] = values["negative_prompt"] or None
    return {name: value for name, value in given.items() if value != getattr(resolved, name)}


def prompt_of(pipeline: Pipeline, text: str | None, class_name: Any, what: str = "the prompt") -> str | None:
    """Return the prompt or class; None for an unconditional model; UserError: the prompt, called `what`, is missing."""
    if pipeline.conditioner.null is None:
        return None
    if classes_of(pipeline) is not None:
        return str(class_name)
    prompts = check_prompts(" ".join((text or "").split()))
    if not prompts:
        raise UserError(f"{what} is empty; expected what the picture shows, such as a caption of the training")
    return prompts[0]


def is_guided(pipeline: Pipeline) -> bool:
    """Return whether a model can be guided by a scale."""
    trained = pipeline.takes_scale or pipeline.saved.trains_null
    return pipeline.conditioner.null is not None and trained
