"""Reading of checkpoint files as data: safetensors, or torch's own format restricted to tensors, numbers and text.

Pickled code in a file is never run. A training checkpoint holds more than weights; only its tensors are returned.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.paths import check_writable


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file, or from a file of `torch.save` that holds nothing but named tensors.

    Raises:
        UserError: the file cannot be read, holds anything else, or can be read only by running pickled code.
    """
    content = _read(path)
    if not (
        isinstance(content, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    ):
        raise UserError(f"{path} holds no state dict; expected tensors by name")
    return content


def read_checkpoint(path: Path, weights: str) -> dict[str, Tensor]:
    """Read the tensors in a training checkpoint's `state_dict` or, if there is no such entry, in the whole checkpoint.

    The checkpoint may hold dicts of tensors: the tensor "b" of a dict "a" is returned under the name "a.b".

    Args:
        path: .safetensors, or a file of `torch.save`.
        weights: a Python expression for the weights in a loaded checkpoint `c`. Where the file needs pickled code to
            run, the error message shows a command with this expression, which extracts the weights.

    Raises:
        UserError: the file cannot be read, holds no named tensors, or can be read only by running pickled code.
    """
    name = path.name if re.fullmatch(r"[\w.-]+", path.name) else "FILE"  # for a shell command
    keep = f"c = torch.load({name!r}, map_location='cpu', weights_only=False); torch.save({weights}, 'weights.pt')"
    export = (
        f'; where you trust it, run python -c "import torch; {keep}" beside the code that wrote it, and convert that'
    )
    content = _read(path, export)
    tree = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = _flatten(tree) if isinstance(tree, Mapping) else {}
    if not tensors:
        raise UserError(f"{path} holds no state dict; expected tensors by name")
    return tensors


def _read(path: Path, export: str = "") -> Any:
    if not path.is_file():
        raise UserError(f"there is no file {path}; expected a checkpoint, .pt or .safetensors")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file ({error})") from None
    except Exception:  # of many unrelated classes: no archive, a broken one, or one that needs pickled code
        raise UserError(
            f"{path} holds no plain tensors that torch can read; pickled code is never run{export}"
        ) from None


def _flatten(tree: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors in a dict by name, and those of each dict inside it as `outer.inner`; ignore the rest."""
    tensors: dict[str, Tensor] = {}
    for name, value in tree.items():
        if isinstance(value, Tensor):
            tensors[str(name)] = value
        elif isinstance(value, Mapping):
            tensors |= {f"{name}.{inner}": tensor for inner, tensor in value.items() if isinstance(tensor, Tensor)}
    return tensors


def read_names(path: Path, count: int, what: str, things: str) -> list[str]:
    """Read a text file of exactly `count` different names, one a line.

    Args:
        path: the file, in UTF-8; empty lines are ignored.
        count: expected number of names: how many classes or attributes the network distinguishes.
        what: a word for one name in error messages, such as "class name".
        things: a word for what the network distinguishes in error messages, such as "classes".

    Raises:
        UserError: the file cannot be read, holds another number of names, or holds one name twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"cannot read {what}s from {path}; expected UTF-8 text, one name a line") from None
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != count:
        raise UserError(f"{path} has {len(names)} {what}s, but the network knows {count} {things}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path} has the {what} {twice[0]!r} twice; expected each once")
    return names


def check_unused(out: Path) -> None:
    """Check that the output folder `out` is new or empty and can be written; raises UserError if not."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; expected the name of a new folder")
    check_writable(out)
