"""Configs: frozen pydantic models, read strictly from YAML with dotted overrides.

Files are read with YAML's safe loader (no tag runs code), and an unknown key is an error that names similar known keys.
"""

import difflib
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

_CHATTER = r"^Input should be|^\w+ should have|, (unable to parse|got a number).*| after validation.*|, not \d+$"
C = TypeVar("C", bound=BaseModel)
Precision = Literal["no", "bf16", "fp16", "auto"]  # auto: bf16 where the device computes it natively, else no


class UserError(Exception):
    """Error of the user: the message says what is wrong, where, and what was expected. Commands exit with status 2."""


class OldNameWarning(FutureWarning):
    """Warning that a config key or flag was given under its name of the last release; the message has the new name."""


class Config(BaseModel):
    """Base class of all configs: immutable; refuses unknown keys, infinity and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _unwanted(tag: str, first: str) -> bool:
    return tag == "timestamp" or (tag == "bool" and first not in "tTfF")


class _Loader(yaml.SafeLoader):
    """Safe YAML loader that reads "no", "yes" and dates as strings, and refuses mappings in which a key comes twice."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        first: [(tag, form) for tag, form in rules if not _unwanted(tag.rsplit(":")[-1], first)]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} comes twice", node.start_mark)
        return super().construct_mapping(node, deep)


def parse(text: str) -> Any:
    """Parse YAML text into dicts, lists and scalars; raises yaml.YAMLError if the text is not valid."""
    try:
        return yaml.load(text, _Loader)
    except (ValueError, IndexError, RecursionError) as error:  # `!!int x`, or nested without end
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from None


def read(kind: type[C], path: Path | str, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file into an instance of the config class `kind`, after applying overrides such as `optim.lr=3e-4`.

    Raises:
        UserError: the file does not exist or is no valid YAML, an override is not `key=value`, a key is unknown, or a
            value has the wrong type or is out of range. The message lists all wrong keys, with similar known keys.
    """
    return check(kind, tree(path, overrides), str(path))


def tree(path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Load a YAML file as nested dicts, and apply overrides such as `optim.lr=3e-4`.

    Raises UserError if the file does not exist or is no valid YAML, or an override is malformed. No key is checked.
    """
    if isinstance(overrides, str):
        raise UserError(f"overrides is the single {overrides!r:.80}; expected a list of such")
    path = Path(path)
    try:
        content = parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}; expected a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a mapping of keys to values at the top")
    for override in overrides:
        assign(content, override)
    return content


def assign(tree: dict[str, Any], override: str) -> None:
    """Apply an override `a.b.c=value`, with a YAML value, to the nested dicts `tree`; UserError if it is malformed."""
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
        tree[last] = parse(text)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: cannot read the value {text!r} as YAML") from None


def check(kind: type[C], tree: Any, where: str) -> C:
    """Return `tree` validated as an instance of `kind`; warn of keys that have the names of the last release.

    Args:
        kind: the config class.
        tree: nested dicts, lists and scalars, as `parse` returns them.
        where: name of the file or object, for messages.

    Raises:
        UserError: there are unknown keys or wrong values; the message describes each.
    """
    tree, renames = rename_old_keys(kind, tree)
    if renames:
        names = ", ".join(f"{old} to {new}" for old, new in renames)
        warnings.warn(f"{where}: rename {names}; old names are read for one more release", OldNameWarning, 3)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        faults = [_sentence(kind, fault) for fault in error.errors(include_url=False)]
        raise UserError(f"{where}: " + "; ".join(faults)) from None


def rename_old_keys(kind: type[BaseModel], tree: Any) -> tuple[Any, list[tuple[str, str]]]:
    """Rename keys of the nested dicts `tree` from old names to present ones; return the new tree and (old, new) pairs.

    `kind` is the class that will validate the tree. If both names are present, the old one stays and is then refused.
    """
    if not isinstance(tree, Mapping):
        return tree, []
    new_names = {old: name for name, field in kind.model_fields.items() for old in _old_names(name, field)}
    result: dict[Any, Any] = {}
    renames: list[tuple[str, str]] = []
    for key, value in tree.items():
        name: Any = key if key in kind.model_fields else new_names.get(key, key)
        if name != key and name in tree:
            name = key
        elif name != key:
            renames.append((str(key), name))
        field = kind.model_fields.get(name)
        for model in _models(field.annotation) if field is not None else ():
            if not _tagged_otherwise(model, value):
                value, nested = rename_old_keys(model, value)
                renames += [(f"{name}.{old}", f"{name}.{new}") for old, new in nested]
        result[name] = value
    return result, renames


def _old_names(name: str, field: FieldInfo) -> list[str]:
    """Return the names that the config field `field`, now called `name`, had in the last release."""
    aliases = field.validation_alias
    names = aliases.choices if isinstance(aliases, AliasChoices) else ()
    return [str(choice) for choice in names if choice != name]


def _tagged_otherwise(kind: type[BaseModel], tree: Any) -> bool:
    """Return whether `tree`, by its tag (such as `source: folder`), is for another class of a union than `kind`."""
    tags = {
        name: get_args(f.annotation) for name, f in kind.model_fields.items() if get_origin(f.annotation) is Literal
    }
    single = {name: values[0] for name, values in tags.items() if len(values) == 1}
    return isinstance(tree, Mapping) and any(tree.get(name, value) != value for name, value in single.items())


def cache_dir() -> Path:
    """Return the folder that holds all caches: the environment variable LDM_KIT_CACHE, else ~/.cache/ldm_kit."""
    return Path(os.environ.get("LDM_KIT_CACHE") or Path.home() / ".cache" / "ldm_kit")


def write(config: BaseModel, path: Path) -> None:
    """Write a config, defaults included, as a YAML file from which `read` returns an equal config."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def _sentence(kind: type[BaseModel], fault: Any) -> str:
    path = [str(key) for key in fault["loc"]]
    dotted = ".".join(_without_tags(kind, path))
    match fault["type"]:
        case "extra_forbidden":
            names = _keys_at(kind, path[:-1])
            near = difflib.get_close_matches(path[-1], names, n=3, cutoff=0.5)
            return f"unknown key {dotted!r}; " + (
                f"nearest known: {_listed(near)}" if near else f"known: {_listed(names)}"
            )
        case "missing":
            return f"missing key {dotted!r}"
        case "union_tag_not_found":
            tag = fault["ctx"]["discriminator"].strip("'")
            return f"missing key {f'{dotted}.{tag}'!r}; expected one of {_listed(_tags(kind, path, tag))}"
        case "union_tag_invalid":
            tag, got = fault["ctx"]["discriminator"].strip("'"), fault["ctx"]["tag"]
            return f"unknown {dotted}.{tag} {got!r}; expected one of {_listed(_tags(kind, path, tag))}"
        case "value_error":
            text = re.sub("--(?=[a-z])", "", str(fault["ctx"]["error"]))  # an option's flag is a key here
            return f"{dotted}: {text}" if dotted else text
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{dotted}: expected a section with keys, got {fault['input']!r:.80}"
        case _:
            expected = re.sub(_CHATTER, "", fault["msg"]).strip().replace("valid tuple", "list")
            return f"{dotted}: expected {expected[:1].lower()}{expected[1:]}, got {fault['input']!r:.80}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _without_tags(kind: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Return the keys of a pydantic error's `path` in a config `kind`, without the union tags that pydantic inserts."""
    names: list[str] = []
    models: list[type[BaseModel]] = [kind]
    for key in path:
        fields = [model.model_fields[key] for model in models if key in model.model_fields]
        if not fields and len(models) > 1 and any(key in _literals(model) for model in models):
            continue
        models = [below for field in fields for below in _models(field.annotation)] or models * key.isdecimal()
        names.append(key)
    return names


def _keys_at(kind: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Return the keys allowed in the section at `path` of a config `kind`; tags in `path` select members of unions."""
    return sorted({name for model in _reached(kind, path) for name in model.model_fields})


def _tags(kind: type[BaseModel], path: Sequence[str], tag: str) -> list[str]:
    """Return the values allowed for the key `tag`, which selects a class of the union at `path` of a config `kind`."""
    members = [model.model_fields[tag].annotation for model in _reached(kind, path)]
    return [str(value) for annotation in members for value in get_args(annotation)]


def _reached(kind: type[BaseModel], path: Sequence[str]) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = [kind]
    for key in path:
        fields = [model.model_fields[key] for model in models if key in model.model_fields]
        tagged = [model for model in models if key in _literals(model)]
        models = [below for field in fields for below in _models(field.annotation)] or tagged or models
    return models


def _literals(model: type[BaseModel]) -> set[str]:
    """Return the values of a model's one-valued Literal fields, such as "folder" for `source: Literal["folder"]`."""
    allowed = [get_args(f.annotation) for f in model.model_fields.values() if get_origin(f.annotation) is Literal]
    return {values[0] for values in allowed if len(values) == 1}


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]
