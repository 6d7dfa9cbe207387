"""Build command lines from functions: each parameter is a flag, and a parameter of a `Config` class one flag per field.

A field of a `Config` class decides all about its flag:

- the field's name is the flag (`--guidance_scale`), its description the help, its constraints the range that help and
  errors show;
- `validation_alias=AliasChoices("new", "old")`: the flag `--old` is read for one more release, with a warning;
- `json_schema_extra={"positional": True}`: the field is a positional argument instead of a flag;
- `json_schema_extra={"flags": ["--class"]}`: further spellings of the flag;
- `json_schema_extra={"listed": True}`: the values of a tuple are one text, with commas between them;
- `json_schema_extra={"own": True}`: without the flag, the value is the one saved with the model, or else the default.
"""

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import AliasChoices, ValidationError
from pydantic.fields import FieldInfo

from ldm_kit.cli.errors import cli_errors, run_app, warn
from ldm_kit.config import Config, UserError

_CONTEXT = "command_context"  # parameter by which a flattened command gets typer's context
_RANGES = {"ge": "{} or more", "gt": "over {}", "le": "{} or less", "lt": "under {}"}


def run_cli(
    main: Callable[..., Any] | Sequence[Callable[..., Any]],
    arguments: Sequence[str] | None = None,
    name: str | None = None,
) -> NoReturn:
    """Run a function as a command-line program: its parameters are the flags, its docstring is the help.

    Args:
        main: the function; or several functions, each of which is a subcommand with the function's name. The first of
            several also runs where the command line names no subcommand.
        arguments: the command line without the program's name; None: that of this process.
        name: the program's name in its help; None: the name of this process's script.

    Raises:
        SystemExit: always; with status 2 after a mistake on the command line, named in one sentence on stderr.
    """
    commands = (main,) if callable(main) else main
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=len(commands) > 1)
    for command in commands:
        app.command()(flatten(command))
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(commands) > 1 and given and given[0] not in {"--help", *(command.__name__ for command in commands)}:
        given = [commands[0].__name__, *given]
    run_app(app, given, name)


def flatten(command: Callable[..., Any]) -> Callable[..., Any]:
    """Replace each parameter of a function whose type is a `Config` class by one parameter for each of its fields.

    The returned function builds the configs from the values that the user gave as flags, and calls `command` with them.
    A function without parameters of `Config` classes is returned unchanged.
    """
    hints = get_type_hints(command, include_extras=True)
    configs = {name: kind for name, kind in hints.items() if isinstance(kind, type) and issubclass(kind, Config)}
    if not configs:
        return command
    parameters = [_context_parameter()]
    for parameter in inspect.signature(command).parameters.values():
        kind = configs.get(parameter.name)
        plain = parameter.replace(
            kind=parameter.KEYWORD_ONLY, annotation=hints.get(parameter.name, parameter.annotation)
        )
        parameters += [plain] if kind is None else _parameters(kind)
    arguments_first = sorted(parameters, key=lambda parameter: not _is_argument(parameter))

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        context = values.pop(_CONTEXT)
        given = {name: value for name, value in values.items() if context.get_parameter_source(name).name != "DEFAULT"}
        with cli_errors():
            built = {name: build_config(kind, given) for name, kind in configs.items()}
        fields = {parameter.name for kind in configs.values() for parameter in _parameters(kind)}
        return command(**built, **{name: value for name, value in values.items() if name not in fields})

    run.__signature__ = inspect.Signature(arguments_first)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in arguments_first}
    return run


def build_config(kind: type[Config], values: Mapping[str, Any]) -> Any:
    """Build a config from the values that the user gave on the command line.

    Args:
        kind: the config's class.
        values: values by field name, or by a field's old name, which prints a warning; other names are ignored.

    Raises:
        UserError: the class does not allow a value; the message names the flag, the value and the range.
    """
    chosen: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        key, *old = _names(name, field)
        for alias in old:
            if alias in values:
                warn(f"--{alias} is now called --{name}; the old name is read for one more release")
                chosen[key] = values[alias]
        if name in values:
            chosen[key] = values[name]
    try:
        return kind.model_validate(chosen)
    except ValidationError as error:
        raise UserError(
            "; ".join(_sentence(kind, fault, chosen) for fault in error.errors(include_url=False))
        ) from None


def value_range(field: FieldInfo) -> str:
    """Return which values a config's field allows, in words: `0 to 1`, `1 or more`, `a, b or c`; "" if it takes any."""
    *others, last = [str(value) for value in _choices(field)] or [""]
    if others or last:
        return f"{', '.join(others)} or {last}" if others else last
    values = [(name, getattr(rule, name, None)) for rule in field.metadata for name in _RANGES]
    limits = {name: value for name, value in values if value is not None}
    if {"ge", "le"} <= limits.keys():
        return f"{limits['ge']:g} to {limits['le']:g}"
    return " and ".join(_RANGES[name].format(f"{limit:g}") for name, limit in limits.items())


def _parameters(kind: type[Config]) -> Iterator[inspect.Parameter]:
    """Yield the command-line parameters of the config class `kind`: one for each field and, hidden, each old name."""
    for name, field in kind.model_fields.items():
        annotation, old = _annotation(field), _names(name, field)[1:]
        default = field.get_default(call_default_factory=True)
        if field.is_required():
            default = None if old else inspect.Parameter.empty
        yield _parameter(name, Annotated[annotation, _typer_info(name, field)], default)
        for alias in old:
            yield _parameter(alias, Annotated[annotation | None, typer.Option(*_spellings(alias, field), hidden=True)])


def _parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    if isinstance(default, tuple) and get_origin(get_args(annotation)[0]) is list:
        default = list(default)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _context_parameter() -> inspect.Parameter:
    return inspect.Parameter(_CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)


def _is_argument(parameter: inspect.Parameter) -> bool:
    extras = get_args(parameter.annotation)[1:] if get_origin(parameter.annotation) is Annotated else ()
    return any(isinstance(extra, typer.models.ArgumentInfo) for extra in extras)


def _typer_info(name: str, field: FieldInfo) -> Any:
    allowed, choices = value_range(field), [str(value) for value in _choices(field)]
    text = field.description or ""
    if allowed and not choices and allowed not in text:
        text = f"{text} ({allowed})" if text else allowed
    if _extra(field).get("positional"):
        return typer.Argument(help=text)
    metavar = "|".join(choices) or None
    spellings = [*_spellings(name, field), *_extra(field).get("flags", ())]
    return typer.Option(*spellings, help=text, metavar=metavar, show_default=_shown_default(field))


def _shown_default(field: FieldInfo) -> bool | str:
    """Return typer's `show_default` of a field: True to show the default; a text if a model's own value comes first."""
    if not _extra(field).get("own"):
        return True
    default = field.get_default(call_default_factory=True)
    return "the model's own" + ("" if default is None else f", else {_shown(default).strip(chr(39))}")


def _spellings(name: str, field: FieldInfo) -> list[str]:
    return [f"--{name}/--no_{name}" if _annotation(field) in (bool, bool | None) else f"--{name}"]


def _annotation(field: FieldInfo) -> Any:
    """Return the type of a config's field in a form that typer takes as a flag's type.

    A Literal becomes the type of its values; a Sequence, or a tuple of any length, becomes a list.
    """
    kind, optional = _without_none(field.annotation)
    if _extra(field).get("listed"):
        kind = str
    elif get_origin(kind) is Literal:
        kind = type(get_args(kind)[0])
    elif get_origin(kind) in (list, Sequence) or (get_origin(kind) is tuple and get_args(kind)[1:] == (...,)):
        kind = list[get_args(kind)[0]]
    return kind | None if optional else kind


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation, False
    members = [member for member in get_args(annotation) if member is not type(None)]
    if len(members) != 1:
        raise TypeError(f"a flag has one type, or one type and None; got {annotation}")
    return members[0], True


def _choices(field: FieldInfo) -> tuple[Any, ...]:
    kind, _ = _without_none(field.annotation)
    return get_args(kind) if get_origin(kind) is Literal else ()


def _extra(field: FieldInfo) -> Mapping[str, Any]:
    extra: Any = field.json_schema_extra
    return extra if isinstance(extra, Mapping) else {}


def _names(name: str, field: FieldInfo) -> list[str]:
    """Return the names under which pydantic reads `field`, named `name`: the present name, then earlier ones."""
    aliases = field.validation_alias
    return [str(choice) for choice in aliases.choices] if isinstance(aliases, AliasChoices) else [name]


def _sentence(kind: type[Config], fault: Any, values: Mapping[str, Any]) -> str:
    """Return a validation error of pydantic as a sentence that names the flag and its value, if one was given.

    The text of an error that is about several fields is returned unchanged.

    Args:
        kind: the config's class.
        fault: one of `ValidationError.errors()`.
        values: the values that were validated, by field name.
    """
    text = str(fault["ctx"]["error"]) if fault["type"] == "value_error" else fault["msg"]
    fields = {alias: name for name, field in kind.model_fields.items() for alias in [name, *_names(name, field)]}
    name = next((fields[key] for key in fault["loc"] if key in fields), None)
    if name is None:
        return text
    field = kind.model_fields[name]
    flag = name.upper() if _extra(field).get("positional") else f"--{name}"
    if fault["type"] == "missing":
        return f"missing option {flag}; {field.description}"
    if fault["type"] != "value_error":
        text = f"expected {value_range(field) or text.removeprefix('Input should be ')}"
        text += f" ({field.description})" if field.description else ""
    value = next(values[key] for key in fault["loc"] if key in values)
    return f"{flag} is {_shown(value)}; {text}"


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    return repr(value) if isinstance(value, str) else str(value)
