"""The card of a trained model: README.md in its folder, as the Hugging Face Hub shows it.

It says what the model is, its data and their licence, how it was trained, its measured figures with intervals, how to
use it here and in diffusers, and its limits. Only what the run's folder records is stated.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from ldm_kit.config import UserError
from ldm_kit.data.value_range import read_range
from ldm_kit.inference.card_facts import KINDS, Facts, figure_rows
from ldm_kit.viz.png import write_atomic

CARD, PICTURES = "README.md", "samples.png"
_PIPELINES = ("StableDiffusion", "LDM", "DDIM", "DDPM", "ConsistencyModel")
DIFFUSERS_CLASSES = {*(f"{name}Pipeline" for name in _PIPELINES), "AutoencoderKL", "VQModel"}


def write_card(facts: Facts, name: str, licence: str | None = None) -> Path:
    """Write README.md, and a grid of pictures if the run has one, into a finished run's model/; return README.md.

    Args:
        facts: the run.
        name: name of the model, as the title and the examples show it, such as owner/name.
        licence: the Hub's name of a licence, such as cc-by-4.0; None: that of the built-in data set.

    Raises:
        UserError: README.md is there and was not written by this function, or it cannot be written.
    """
    path = facts.model / CARD
    if path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{path} was not written by ldm-kit; move it away, and the card will be written")
    try:
        if facts.pictures is not None:
            write_atomic(facts.model / PICTURES, facts.pictures.read_bytes())
        write_atomic(path, card_text(facts, name, licence).encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def card_text(facts: Facts, name: str, licence: str | None = None) -> str:
    """Return a model card as Markdown with the Hub's metadata; see `write_card`."""
    sections = [_title, _data, _training, _figures, _use, _limits, _config]
    body = "\n\n".join("\n".join(section(facts, name)) for section in sections)
    return f"---\n{_metadata(facts, licence)}\n---\n{_MARK}\n\n{body}\n"


_MARK = "<!-- written by ldm-kit card -->"


def _metadata(facts: Facts, licence: str | None) -> str:
    kinds = _kinds(facts)
    image = "unconditional-image-generation" if kinds <= {"class"} else "image-to-image"
    image = "text-to-image" if kinds & {"text", "pretrained"} else image
    data = ModelCardData(
        license=licence or facts.source.licence or "unknown",
        library_name="diffusers" if facts.diffusers_class in DIFFUSERS_CLASSES else "ldm_kit",
        pipeline_tag=image if facts.method in ("latent", "consistency") else None,
        tags=["ldm_kit", "latent-diffusion", facts.method],
    )
    return data.to_yaml()


def _conditions(facts: Facts) -> list[Any]:
    """Return the config of each condition of a run."""
    condition: Any = getattr(facts.config, "condition", None)
    return [each for each in getattr(condition, "conditions", [condition]) if each is not None]


def _kinds(facts: Facts) -> set[str]:
    return {each.kind for each in _conditions(facts)} - {"none"}


def _title(facts: Facts, name: str) -> list[str]:
    config, kind = facts.config, KINDS.get(facts.method, f"a model of the method `{facts.method}`")
    conditions = [_CONDITIONS.get(each, each) for each in sorted(_kinds(facts))]
    under = f", conditioned on {' and on '.join(conditions)}" if conditions else ""
    parts = ", ".join(f"{_count(count)} in {name}" for name, count in facts.parameters.items() if name != ".")
    total = f"{_count(sum(facts.parameters.values()))} parameters" + (f" ({parts})" if parts else "")
    values = read_range(facts.model)
    units = "" if values is None else f" and {config.data.channels} channels of values in {values}"
    lines = [
        f"# {name}",
        "",
        f"{kind[0].upper()}{kind[1:]} for pictures of {config.data.resolution} px{units}{under}: {total}.",
    ]
    return lines if facts.pictures is None else [*lines, "", f"![the last grid of the training run]({PICTURES})"]


_CONDITIONS = {
    "text": "text, by an encoder that was trained along",
    "pretrained": "text, by a frozen pretrained encoder",
    "class": "classes",
    "image": "the embedding of a picture",
    "inpainting": "a picture and a mask of what is made anew",
    "super_resolution": "a small picture",
    "grey": "a grey picture",
    "column": "a further picture",
}


def _data(facts: Facts, name: str) -> list[str]:
    source = facts.source
    lines = ["## Data", "", f"Trained on {source.what}."]
    if source.attribution:
        lines.append(source.attribution)
    if source.licence is None:
        lines.append("The licence of the pictures is not recorded in the run; whoever publishes this model states it.")
    return lines


def _training(facts: Facts, name: str) -> list[str]:
    config = facts.config
    lines = ["## Training", ""]
    lines.append(
        f"{config.train.steps:,} steps of {config.train.batch_size} pictures, seed {config.seed}, with ldm_kit."
    )
    if autoencoder := getattr(config, "autoencoder", None):
        lines.append(
            f"It denoises latents of the autoencoder in `{Path(autoencoder).name}`, which is part of the model."
            if isinstance(autoencoder, str)
            else f"Autoencoder: {autoencoder.kind}."
        )
    for encoder in (each.model for each in _conditions(facts) if each.kind == "pretrained"):
        named = _without_paths(encoder)
        lines.append(f"The text encoder `{named}` is not part of it: it has to be installed beside it.")
    return lines


def _figures(facts: Facts, name: str) -> list[str]:
    lines = ["## Figures", ""]
    if not facts.metrics and not facts.evaluations:
        return [*lines, "None: nothing was held out, and `ldm-kit evaluate` was not run."]
    if facts.metrics:
        values = [f"{name.removeprefix('heldout_').replace('_', ' ')} {v:.4g}" for name, v in facts.metrics.items()]
        lines.append(f"Held-out pictures at the end of training: {', '.join(values)}. One training.")
    for evaluation in facts.evaluations:
        reference, net = evaluation.get("reference", {}), evaluation.get("features", {})
        against = f"Against {reference.get('count', '?')} pictures of the split {reference.get('split', '?')}"
        intervals = "95 % intervals over the pictures of one training"
        lines += ["", f"{against}, features of {net.get('name', '?')}; {intervals}."]
        lines += ["", "| measure | value | 95 % interval |", "|---|---|---|", *figure_rows(evaluation)]
    return lines


def _use(facts: Facts, name: str) -> list[str]:
    lines = ["## Use", "", "```python", "from huggingface_hub import snapshot_download", "from ldm_kit import load", ""]
    lines += [f'model = load(snapshot_download("{name}"))', "```"]
    if facts.method == "autoencoder":
        lines = ["## Use"]
    if facts.diffusers_class in DIFFUSERS_CLASSES:
        variable = "autoencoder" if facts.method == "autoencoder" else "pipeline"
        lines += ["", "In plain diffusers:", "", "```python", f"from diffusers import {facts.diffusers_class}", ""]
        lines += [f'{variable} = {facts.diffusers_class}.from_pretrained("{name}")', "```"]
    return lines


def _limits(facts: Facts, name: str) -> list[str]:
    lines = ["## Limits", "", "It knows only what its training pictures show, in their proportions, with their errors."]
    if facts.method == "latent":
        lines.append("Whether it copies training pictures is measured by `ldm-kit memorisation`.")
    return lines


def _config(facts: Facts, name: str) -> list[str]:
    content: Mapping[str, Any] = facts.config.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump(_without_paths(content), sort_keys=False, default_flow_style=None, width=100).rstrip()
    return ["<details><summary>Config of the run</summary>", "", "```yaml", text, "```", "</details>"]


def _without_paths(value: Any) -> Any:
    """Return a config with absolute paths cut to their last name: they say where its author works."""
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return _FOLDERS.sub("", value) if isinstance(value, str) and "://" not in value else value


_FOLDERS = re.compile(r"(?:^|(?<=[@:/]))/(?:[^/]+/)*(?=[^/])")
"""The folders of an absolute path, which may stand after a name, as in timm:NAME@PATH or open_clip:NAME/PATH."""


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 100_000 else f"{number:,}"
