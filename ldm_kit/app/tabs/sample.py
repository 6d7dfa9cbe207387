"""The tab Sample of a diffusion model: prompts or classes, seeds, guidance, sampler."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from conditioning.combined_config import BAR
from conditioning.pictures import MASK
from ldm_kit.app.models import OpenModel
from ldm_kit.app.options import MAX_PICTURES, MAX_STEPS, AppOptions, check_limit, check_prompts
from ldm_kit.app.tabs.base import Tab, Values
from ldm_kit.app.tabs.fields import (
    GIVEN,
    MAX_SCALE,
    class_choices,
    classes_of,
    count_field,
    fitted_picture,
    is_guided,
    most_steps,
    needed,
    picture_field,
    pipeline_of,
    prompted,
    seed_fields,
    seed_of,
    slider,
    steps_field,
    takes_prompts,
)
from ldm_kit.config import UserError, check
from ldm_kit.inference.generate import generate_with
from ldm_kit.inference.requests import GenerationRequest, OutputOptions
from ldm_kit.models.folder import autocast_dtype
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.provenance import provenance
from ldm_kit.models.sizes import MOST, side_step
from ldm_kit.solvers.table import sampler_names

_OPTIONS = ("guidance_scale", "negative_prompt", "solver", "steps", "noise_level")  # fields of SamplingOptions
_SIDES, _OF_PRIOR = ("height", "width"), ("prior_steps", "prior_guidance_scale")  # further ones
_WHOLE = ("steps", "noise_level", "prior_steps", *_SIDES)
MOST_SIDES = 4  # limit of height and width, in sides of the pictures that the model was trained on


class SampleTab(Tab):
    """Sample pictures of prompts or classes, as `sample.py` does."""

    key, title, button = "sample", "Sample", "Sample"

    def available(self, model: OpenModel) -> bool:
        """Return whether the model is a diffusion model that is given no mask."""
        pipeline = model.pipeline
        return pipeline is not None and (pipeline.picture is None or MASK not in pipeline.picture.given)

    def build(self) -> dict[str, Component]:
        """Lay out the fields."""
        fields: dict[str, Component] = {
            "prompt": gr.Textbox(label="Prompt", lines=3, max_lines=6, info="one a line", elem_id="sample-prompt"),
            "class_name": gr.Dropdown(label="Class", elem_id="sample-class-name"),
            "image": picture_field("Picture", "sample-image"),
        }
        with gr.Row():
            fields["count"] = count_field("sample")
            fields |= seed_fields("sample")
        with gr.Row():
            fields["steps"] = steps_field("sample")
            fields["guidance_scale"] = slider("sample", "guidance_scale", "Guidance scale", (0, MAX_SCALE, 0.1))
        with gr.Accordion("More settings", open=False, elem_id="sample-more"):
            fields["negative_prompt"] = gr.Textbox(
                label="Negative prompt", info="what to guide away from", elem_id="sample-negative-prompt"
            )
            fields["solver"] = gr.Dropdown(sampler_names(), label="Sampler", elem_id="sample-solver")
            fields["guidance_scales"] = gr.Textbox(
                label="Guidance scales", info="one for each condition, with commas", elem_id="sample-guidance-scales"
            )
            with gr.Row():
                for name, label in (("interval_low", "Guide from t / T"), ("interval_high", "Guide to t / T")):
                    fields[name] = slider("sample", name, label, (0, 1, 0.01))
            fields["noise_level"] = slider("sample", "noise_level", "Noise level", (0, 999, 1))
            with gr.Row():
                for name in _SIDES:
                    fields[name] = slider("sample", name, f"{name.capitalize()} in pixels", (1, MOST, 1))
            with gr.Row():
                fields["prior_steps"] = steps_field("sample", "Steps of the prior", "prior_steps")
                fields["prior_guidance_scale"] = slider(
                    "sample", "prior_guidance_scale", "Guidance scale of the prior", (0, MAX_SCALE, 0.1)
                )
        return fields

    def updates(self, model: OpenModel) -> dict[str, dict[str, Any]]:
        """Return the model's own settings as values, and hide the fields that it has no use for."""
        pipeline = pipeline_of(model)
        values, classes = defaults_of(pipeline), classes_of(pipeline)
        guided = is_guided(pipeline)
        several, free = pipeline.conditioner.drops > 1, not pipeline.takes_scale
        texts = prompted(pipeline) is not None and classes is None
        low, high = (pipeline.saved.guidance_range.min_scale, pipeline.saved.guidance_range.max_scale)
        scales = {} if free else {"minimum": low, "maximum": min(high, MAX_SCALE)}
        parts = getattr(pipeline.conditioner, "sources", ())
        info = f"one a line: {f' {BAR} '.join(parts)}" if len(parts) > 1 else "one a line"
        shown = {
            "prompt": texts,
            "class_name": classes is not None,
            "image": pipeline.picture is not None or _varies_given(pipeline),
            "negative_prompt": guided and texts and free and takes_prompts(pipeline.conditioner),
            "guidance_scale": guided,
            "guidance_scales": guided and several and free,
            "interval_low": guided,
            "interval_high": guided,
            "noise_level": pipeline.picture is not None and pipeline.picture.takes_level,
            **dict.fromkeys(_SIDES, pipeline.picture is None),
            "prior_steps": pipeline.prior is not None,
            "prior_guidance_scale": pipeline.prior is not None and prompted(pipeline) is not None,
        }
        updates: dict[str, dict[str, Any]] = {name: {"visible": visible} for name, visible in shown.items()}
        for name, value in values.items():
            updates.setdefault(name, {})["value"] = value
        step, side = side_step(pipeline), pipeline.resolution
        for name in _SIDES:
            updates[name] |= {"minimum": min(step, side), "maximum": MOST_SIDES * side, "step": step}
        if pipeline.prior is not None:
            times = pipeline.prior.prior.schedule_config.num_train_timesteps
            updates["prior_steps"] |= {"maximum": most_steps(times, values["prior_steps"])}
        updates["prompt"] |= {"info": info}
        updates["guidance_scale"] |= scales
        updates["steps"] |= {"maximum": most_steps(pipeline.schedule_config.num_train_timesteps, values["steps"])}
        updates["class_name"] |= class_choices(classes)
        if values["solver"] not in sampler_names():
            updates["solver"] |= {"choices": [*sampler_names(), values["solver"]]}
        return updates

    def summary(self, values: Values) -> Values:
        """Return the values without those that change nothing."""
        interval = (values["interval_low"], values["interval_high"])
        left_out = {"interval_low", "interval_high"} if interval == (0, 1) else set[str]()
        left_out |= set() if values["image"] else {"noise_level"}
        left_out |= {name for name in _SIDES if not values[name]}
        return {name: value for name, value in values.items() if name not in left_out}

    def run(self, model: OpenModel, values: Values, out: Path, options: AppOptions) -> str:
        """Sample the pictures with the functions of `sample.py`."""
        pipeline = pipeline_of(model)
        prompts = _prompts(pipeline, values)
        count = check_limit("count", int(values["count"]), MAX_PICTURES)
        check_limit("the number of pictures, prompts times count,", max(1, len(prompts)) * count, MAX_PICTURES)
        check_limit("steps", int(values["steps"]), MAX_STEPS)
        if pipeline.prior is not None:
            check_limit("steps of the prior", int(values["prior_steps"]), MAX_STEPS)
        for name in _SIDES:
            check_limit(name, int(values[name] or pipeline.resolution), MOST_SIDES * pipeline.resolution)
        given = {"prompts": prompts, "count": count, "seed": seed_of(values, count)}
        if pipeline.picture is not None:
            path = needed(values["image"], "a picture: this model makes its own of it")
            side = pipeline.picture.side(pipeline.resolution)
            given["image"] = fitted_picture(path, side, pipeline.channels, out / GIVEN / "picture.png")
        elif _varies_given(pipeline):
            given["image"] = needed(values["image"], "a picture: this model makes variations of it")
        request = check(GenerationRequest, given, "the fields")
        sampling = check(SamplingOptions, _chosen(pipeline, values), "the fields")
        written = OutputOptions(out=out, device=options.device, precision=options.precision)
        origin = provenance(model.folder, autocast_dtype(options.precision, pipeline.device))
        generate_with(pipeline, request, sampling, written, origin)
        return ""


def defaults_of(pipeline: Pipeline) -> dict[str, Any]:
    """Return the values of the sampling fields with which a model is sampled if none is changed."""
    resolved = SamplingOptions().resolve(pipeline)
    low, high = resolved.guidance_interval
    scales = ",".join(f"{scale:g}" for scale in resolved.guidance_scales or ())
    values = {name: getattr(resolved, name) for name in _OPTIONS}
    values |= dict(zip(_SIDES, resolved.size(pipeline), strict=True))
    if (prior := pipeline.prior) is not None:
        times, conditioned = prior.prior.schedule_config.num_train_timesteps, prompted(pipeline) is not None
        values |= dict(zip(_OF_PRIOR, pipeline.saved.of_prior(None, None, times, conditioned), strict=True))
    return {**values, "guidance_scales": scales, "interval_low": low, "interval_high": high} | {
        "negative_prompt": resolved.negative_prompt or "",
        "noise_level": 20 if resolved.noise_level is None else resolved.noise_level,
    }


def _chosen(pipeline: Pipeline, values: Values) -> dict[str, Any]:
    """Return the sampling options that the user has changed; the others keep the values saved with the model."""
    defaults = defaults_of(pipeline)
    names = (*_OPTIONS, *(() if pipeline.picture is not None else _SIDES), *_OF_PRIOR)
    own = [name for name in names if name in defaults and values[name] is not None]
    given = {name: values[name] for name in own if values[name] != defaults[name]}
    given = {name: int(value) if name in _WHOLE else value for name, value in given.items()}
    if given.get("negative_prompt") == "":
        given["negative_prompt"] = None
    if values["guidance_scales"] and values["guidance_scales"] != defaults["guidance_scales"]:
        given["guidance_scales"] = values["guidance_scales"]
    interval = (values["interval_low"], values["interval_high"])
    if interval != (defaults["interval_low"], defaults["interval_high"]):
        given["guidance_interval"] = interval
    return given


def _varies_given(pipeline: Pipeline) -> bool:
    """Return whether a model makes variations of a picture that the user gives."""
    return pipeline.conditioner.image_conditioner is not None and pipeline.prior is None


def _prompts(pipeline: Pipeline, values: Values) -> tuple[str, ...]:
    if prompted(pipeline) is None:
        return ()
    if classes_of(pipeline) is not None:
        return (str(values["class_name"]),)
    check_prompts(values["negative_prompt"] or "")
    prompts = check_prompts(values["prompt"] or "")
    if not prompts:
        raise UserError("the prompt is empty; expected what the picture shows, such as a caption of the training")
    return prompts
