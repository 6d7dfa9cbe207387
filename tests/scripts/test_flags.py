"""Flags: those that messages and pages name exist, and one name means one thing in every command."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

import pytest
from pydantic.fields import FieldInfo

from ldm_kit.app import options as app
from ldm_kit.cli import flags
from ldm_kit.config import Config
from ldm_kit.convert import options as conversions
from ldm_kit.editing.commands import COMMANDS
from ldm_kit.inference import requests
from ldm_kit.models.options import SamplingOptions

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    [
        *(path for package in ("ldm_kit", "autoencoder", "conditioning") for path in (ROOT / package).rglob("*.py")),
        *(ROOT / name for name in ("train_ae.py", "train_ldm.py", "sample.py", "edit.py")),
    ]
)
PLAIN = {"model", "fast", "resume", "help", "device", "prompts", "fresh", "old", "measure"}
PLAIN |= {"minutes", "quality", "resolution", "licence", "private", "yes"}  # of ldm-kit new, card and push
PLAIN |= {"single_file"}  # of ldm-kit export
"""Parameters of commands that are no fields, and the example of cli/flags.py."""
OTHERS = {"num_processes", "num_machines", "machine_rank", "multi_gpu", "mixed_precision", "dynamo_backend"}
"""Those of accelerate."""
FLAG = re.compile(r"(?<![\w-])--([a-z]\w*[a-z0-9])\b")


def option_models() -> Iterator[type[Config]]:
    """Every config whose fields are flags."""
    for command in COMMANDS:
        yield from (kind for kind in command.__annotations__.values() if isinstance(kind, type))
    yield SamplingOptions
    for module in (app, requests, conversions):
        yield from (
            kind
            for kind in vars(module).values()
            if isinstance(kind, type) and issubclass(kind, Config) and kind.__module__ == module.__name__
        )


KINDS = sorted({kind for kind in option_models() if issubclass(kind, Config)}, key=lambda kind: kind.__name__)


def spelt(name: str, field: FieldInfo) -> Iterator[str]:
    yield from (name, f"no_{name}", *flags._names(name, field))
    yield from (flag.removeprefix("--") for flag in flags._extra(field).get("flags", ()))


def test_messages_name_flags_that_exist():
    known = {flag for kind in KINDS for name, field in kind.model_fields.items() for flag in spelt(name, field)}
    assert {"steps", "no_metadata", "class", "worse", "classifier_scale", "image_size"} <= known
    unknown = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = set(FLAG.findall(node.value)) - known - PLAIN - OTHERS
                unknown += [f"{path.relative_to(ROOT)}:{node.lineno}: --{flag}" for flag in named]
    for path in [
        ROOT / "docs" / "editing.md",
        ROOT / "docs" / "quickstart.md",
        *(ROOT / "docs" / "concepts").glob("*.md"),
    ]:
        named = set(FLAG.findall(path.read_text(encoding="utf-8"))) - known - PLAIN - OTHERS
        unknown += [f"{path.relative_to(ROOT)}: --{flag}" for flag in named]
    assert not unknown, "\n".join(unknown)


def meaning(field: FieldInfo) -> Any:
    return field.annotation, flags.value_range(field)


DIFFERENT = {  # flags that mean another thing in another command, which their help says
    "strength": "how far an attribute is moved, or a share of the times",
    "image": "one picture, or the two of an interpolation; of a model without a picture, none",
    "mask": "needed to inpaint a picture; of models of other kinds, none",
    "clip": "of a picture or of a code",
    "count": "pictures; at least two of an interpolation; of a likelihood, all if left out",
    "attribute": "those to change; the one that samples must have",
    "images": "needed, or one source of several",
    "prompt": "needed by reprompt alone",
    "details": "the picture whose x_T is taken, or whether x_T is saved",
    "image_size": "needed, or read from the file",
    "heads": "of either project's networks",
    "codes": "a file of them; of an evaluation, how many are measured",
    "edits": "none, or at least one where --measures names them",
    "decode_steps": "with one default, or that of the model that is evaluated",
    "out": "a file or folder with one default, or one that depends on what is evaluated",
}


def test_a_flag_has_one_rule():
    rules: dict[str, dict[Any, list[str]]] = {}
    for kind in KINDS:
        for name, field in kind.model_fields.items():
            rules.setdefault(name, {}).setdefault(meaning(field), []).append(kind.__name__)
    several = {name: by_rule for name, by_rule in rules.items() if len(by_rule) > 1}
    assert several.keys() <= DIFFERENT.keys(), {name: several[name] for name in several.keys() - DIFFERENT.keys()}
    assert DIFFERENT.keys() <= several.keys(), "no longer different"


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_have_one_range(seed):
    from pydantic import ValidationError

    needed = {"image": "a.png", "mask": "m.png", "codes": "c", "source": "a", "prompt": "b", "dataset": "faces"}
    needed["target"] = "c"
    seeded = [kind for kind in KINDS if "seed" in kind.model_fields]
    assert len(seeded) >= 5
    for kind in seeded:
        fields = kind.model_fields
        given = {name: value for name, value in needed.items() if name in fields and fields[name].annotation is not int}
        if "image" in fields and get_origin(fields["image"].annotation) is tuple:
            given["image"] = ("a.png", "b.png")
        count = 2 if "count" in kind.model_fields else 1
        kind(**given, seed=2**64 - count, **({"count": count} if count > 1 else {}))
        with pytest.raises(ValidationError, match=r"seed"):
            kind(**given, seed=seed)
