"""Training methods, one file each, looked up by the `method` of a config.

`method: NAME` is the module `ldm_kit.methods.NAME`, or else the entry point NAME of the group `ldm_kit.methods` in an
installed package, which names a subclass of `ldm_kit.methods.base.Method`. A config can import nothing else.
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
    """Return the method class of a name.

    Args:
        name: a config's `method`.
        where: what messages name.

    Raises:
        UserError: no method has this name, or the package that has it cannot be imported or names something else.
    """
    if (own := _own_method(name)) is not None:
        return own
    for entry in _entry_points():
        if entry.name == name:
            return _load(entry, where)
    raise UserError(f"{where}: unknown method {name!r}; expected one of {', '.join(method_names())}")


def method_names() -> list[str]:
    """Return the names of all methods: ours, then those of installed packages."""
    own = [name for name in _modules() if _own_method(name) is not None]
    return [*own, *sorted({entry.name for entry in _entry_points()} - {*own})]


def method_of(tree: Mapping[str, Any]) -> str:
    """Return the method that a plain config asks for.

    Without the key `method` a section `autoencoder` (a first stage's architecture) asks for autoencoder, all else for
    latent.
    """
    return tree.get("method") or ("autoencoder" if isinstance(tree.get("autoencoder"), Mapping) else "latent")


def check_run(tree: Mapping[str, Any], where: str, method: str | None = None) -> "RunConfig":
    """Validate a plain config by the config class of its method.

    Args:
        tree: the config, as YAML gives it.
        where: what messages name.
        method: the method to take; None: the tree's own.

    Raises:
        UserError: an unknown method, or as `ldm_kit.config.check`.
    """
    name = method or method_of(tree)
    return configs.check(find_method(name, where).Config, {"method": name, **tree}, where)


def read_run(path: Path | str, overrides: Sequence[str] = (), method: str | None = None) -> Any:
    """Read the config of a run from a YAML file with overrides such as `optim.lr=3e-4`.

    Args:
        path: the YAML file.
        overrides: dotted keys and their values.
        method: the method to take; None: the file's own.

    Raises:
        UserError: as `ldm_kit.config.read`, and for an unknown method.
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
