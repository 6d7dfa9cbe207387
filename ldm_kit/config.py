"""Configs: frozen pydantic trees, read strictly from YAML with dotted overrides.

Every class that can be configured has its config class beside it; this room holds what they share. Files are read
with `yaml.safe_load` (no tag runs code), unknown keys are refused with the nearest known ones named, and a run writes
its resolved config beside its results.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

C = TypeVar("C", bound=BaseModel)


class UserError(Exception):
    """A mistake of the user's, told in one sentence: what, where, and what was expected. Doors exit non-zero on it."""


class Config(BaseModel):
    """Base of every config: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def read(kind: type[C], path: Path | str, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file into `kind`, after applying overrides such as `optim.lr=3e-4`.

    Raises:
        UserError: no such file, broken YAML, an override that is not `key=value`, an unknown key (its neighbours are
            named), or a value of the wrong type or out of range. All faults are listed, one a line.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}; expected a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds a {type(tree).__name__}; expected a mapping of keys to values at the top")
    for override in overrides:
        assign(tree, override)
    return check(kind, tree, str(path))


def assign(tree: dict[str, Any], override: str) -> None:
    """Apply one dotted override, `a.b.c=value`, to a tree in place; the value is parsed as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"cannot understand the override {override!r}; expected key=value, such as optim.lr=3e-4")
    *parents, last = key.split(".")
    for name in parents:
        branch = tree.setdefault(name, {})
        if not isinstance(branch, dict):
            raise UserError(f"override {override!r}: {name!r} is a value ({branch!r}), not a section with keys")
        tree = branch
    try:
        tree[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: cannot read the value {text!r} as YAML") from None


def check(kind: type[C], tree: Any, where: str) -> C:
    """Validate a plain tree into `kind`, turning pydantic's report into sentences that name `where`."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        faults = [_sentence(kind, fault) for fault in error.errors(include_url=False)]
        raise UserError(f"{where}: " + "; ".join(faults)) from None


def write(config: BaseModel, path: Path) -> None:
    """Write the resolved config, every default included, as YAML that `read` takes back unchanged."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def _sentence(kind: type[BaseModel], fault: Any) -> str:
    place = [str(part) for part in fault["loc"]]
    dotted = ".".join(place)
    match fault["type"]:
        case "extra_forbidden":
            known = _keys_at(kind, place[:-1])
            near = difflib.get_close_matches(place[-1], known, n=3, cutoff=0.5) or known
            return f"unknown key {dotted!r}; nearest known: {', '.join(near)}"
        case "missing":
            return f"missing key {dotted!r}"
        case "value_error":
            text = str(fault["ctx"]["error"])
            return f"{dotted}: {text}" if dotted else text
        case _:
            message = fault["msg"][:1].lower() + fault["msg"][1:]
            return f"{dotted}: {message}, got {fault['input']!r:.80}"


def _keys_at(kind: type[BaseModel], place: Sequence[str]) -> list[str]:
    """Field names of the model(s) reached by a path; a union (tagged by its `kind`) offers all its members' fields."""
    models: list[type[BaseModel]] = [kind]
    for part in place:
        below = [
            m for model in models if part in model.model_fields for m in _models(model.model_fields[part].annotation)
        ]
        models = below or models  # a discriminator's tag is part of pydantic's path but no field
    return sorted({name for model in models for name in model.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]
