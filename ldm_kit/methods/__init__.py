"""Training methods, one module each; a config's key `method` names the one to use.

`method: NAME` stands for the subclass of `ldm_kit.methods.base.Method` in the module `ldm_kit.methods.NAME`. If there
is no such module, it stands for the subclass that an installed package registers as entry point NAME of the group
`ldm_kit.methods`. A config cannot make anything else be imported.
"""

import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_kit import config as configs
from ldm_kit.config import UserError

if TYPE_CHECKING:
    from ldm_kit.methods.base import Method
    from ldm_kit.methods.run_config import RunConfig

GROUP = "ldm_kit.methods"


def find_method(name: str, where: str = "config") -> "type[Method[Any]]":
    """Return the `Method` subclass that a config's `method` names.

    Args:
        name: value of the key `method`.
        where: the config's file or another name for the config, with which error messages begin.

    Raises:
        UserError: no method has this name; or an installed package registers the name, but the class cannot be
            imported or is no `Method`.
    """
    if (own := _own_method(name)) is not None:
        return own
    for entry in _entry_points():
        if entry.name == name:
            return _load(entry, where)
    raise UserError(f"{where}: unknown method {name!r}; expected one of {', '.join(method_names())}")


def method_names() -> list[str]:
    """Return the names of all methods: those of ldm_kit, then those that installed packages register."""
    own = [name for name in _modules() if _own_method(name) is not None]
    return [*own, *sorted({entry.name for entry in _entry_points()} - {*own})]


def method_of(tree: Mapping[str, Any]) -> str:
    """Return the name of the method that a config asks for; `tree` is the config as nested mappings.

    Without the key `method`, a config whose `autoencoder` is a section (an architecture to train) asks for the method
    autoencoder, and any other config asks for latent.
    """
    return tree.get("method") or ("autoencoder" if isinstance(tree.get("autoencoder"), Mapping) else "latent")


def check_run(tree: Mapping[str, Any], where: str, method: str | None = None) -> "RunConfig":
    """Return a config, validated and with defaults filled in by the config class of its method.

    Args:
        tree: the config as nested mappings, such as YAML is parsed into.
        where: the config's file or another name for the config, with which error messages begin.
        method: name of the method; None: the one that the config asks for, see `method_of`.

    Raises:
        UserError: the method is unknown, or the config has unknown keys or wrong values.
    """
    name = method or method_of(tree)
    return configs.check(find_method(name, where).Config, {"method": name, **tree}, where)


def read_run(path: Path | str, overrides: Sequence[str] = (), method: str | None = None) -> Any:
    """Return the validated config of a run, read from a YAML file.

    Args:
        path: the YAML file.
        overrides: dotted keys with values that replace the file's, such as `optim.lr=3e-4`.
        method: name of the method; None: the one that the file asks for, see `method_of`.

    Raises:
        UserError: the file or an override cannot be read, or `check_run` refuses the config.
    """
    return check_run(configs.tree(path, overrides), str(path), method)


@cache
def _modules() -> tuple[str, ...]:
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def _own_method(name: str) -> "type[Method[Any]] | None":
    if name not in _modules():
        return None
    module = import_module(f"{__name__}.{name}")
    return next((value for value in vars(module).values() if _is_method(value, module.__name__)), None)


def _is_method(value: Any, module: str | None = None) -> bool:
    from ldm_kit.methods.base import Method

    return (
        isinstance(value, type)
        and issubclass(value, Method)
        and not inspect.isabstract(value)
        and module in (None, value.__module__)
    )


def _entry_points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _load(entry: EntryPoint, where: str) -> "type[Method[Any]]":
    try:
        value = entry.load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where}: method {entry.name!r} is {entry.value}, which cannot be imported: {error}") from None
    if not _is_method(value):
        raise UserError(
            f"{where}: method {entry.name!r} is {entry.value}; expected a class of ldm_kit.methods.base.Method"
        )
    return value
