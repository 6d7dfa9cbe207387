"""Import packages that only an extra of ldm_kit installs."""

import importlib
from collections.abc import Mapping
from typing import Any

from ldm_kit.config import UserError


def import_extra(module: str, package: str, extra: str, user: str) -> Any:
    """Import a module of a package that an extra installs, and return it.

    Args:
        module: the module, such as "sklearn.ensemble".
        package: the package's name in pip, such as "scikit-learn".
        extra: the extra of ldm_kit that installs the package.
        user: what needs the package, for the message.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{user} needs the package {package}; pip install 'ldm_kit[{extra}]'") from None


def check_extra(packages: Mapping[str, str], extra: str, user: str) -> None:
    """Check that all packages of an extra are installed; raises UserError as `import_extra` does.

    Args:
        packages: the package's name in pip, by the name of its module.
        extra: the extra of ldm_kit that installs them.
        user: what needs them, for the message.
    """
    for module, package in packages.items():
        import_extra(module, package, extra, user)
