"""Check a network that was just loaded: its tensors, and the sizes that its config states."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from conditioning.loaded import describe_misfit
from ldm_kit.config import UserError

_SIZES = ("in_channels", "out_channels", "channels", "z_width", "sample_size")  # config keys that give shapes


def check_tensors(folder: Path, missing: Collection[str], unexpected: Collection[str] = ()) -> None:
    """Check that weights lack no tensor of their network, and have none that it does not know.

    Args:
        folder: the folder of the weights, for the message.
        missing: names of the tensors that the weights lack.
        unexpected: names of the tensors that the network does not have.

    Raises:
        UserError: there are such tensors; the message has their number and the first names of each kind.
    """
    if misfit := describe_misfit(folder, missing, unexpected):
        raise UserError(misfit)


def check_sizes(module: Any, where: str) -> None:
    """Check that `module`'s config has positive integers as sizes (`_SIZES`); turn a sample_size of [32, 32] into 32.

    Raises:
        UserError: a size is no positive integer (out_channels may be None); the message begins with `where`.
    """
    for key in [key for key in _SIZES if key in module.config]:
        value = module.config[key]
        if key == "sample_size" and isinstance(value, list | tuple) and len({*map(str, value)}) == 1:
            module.register_to_config(sample_size=value[0])
        value = module.config[key]
        if (type(value) is not int or value < 1) and (key, value) != ("out_channels", None):
            raise UserError(f"{where}: {key} is {value!r:.40}; expected a whole number of 1 or more")
