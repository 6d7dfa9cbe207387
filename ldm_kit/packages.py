"""Import packages that only an extra (optional dependencies, `pip install ldm_kit[EXTRA]`) of ldm_kit installs."""

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
        user: name of the feature that needs the package, for the error message.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{user} needs the package {package}; pip install 'ldm_kit[{extra}]'") from None


def check_extra(packages: Mapping[str, str], extra: str, user: str) -> None:
    """Check that packages which an extra of ldm_kit installs can be imported; raises UserError if one is missing.

    Args:
        packages: each package's name in pip, by the name of its module, such as {"sklearn": "scikit-learn"}.
        extra: the extra that installs them.
        user: name of the feature that needs them, for the error message.
    """
    for module, package in packages.items():
        import_extra(module, package, extra, user)
