"""Files of weights, read as data: safetensors, or torch's own format restricted to tensors, numbers and text.

What else lies in a file is never run. Checkpoints of a training hold more than weights; of those the tensors are taken.
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


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a .safetensors file, or from one of torch's that holds tensors alone.

    Raises:
        UserError: it cannot be read, holds anything else, or would need pickled code to run.
    """
    state = _read(path)
    if not (isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())):
        raise UserError(f"{path} holds no state dict; expected tensors by name")
    return state


def read_checkpoint(path: Path, weights: str) -> dict[str, Tensor]:
    """All tensors of a training's checkpoint: of its `state_dict`, if it has one; else those of dicts in it as a.b.

    Args:
        path: .safetensors, or what `torch.save` wrote.
        weights: Python that takes the weights out of `c`, the whole checkpoint: what a user may run himself.

    Raises:
        UserError: it cannot be read, holds no tensors by name, or would need pickled code to run.
    """
    name = path.name if re.fullmatch(r"[\w.-]+", path.name) else "FILE"  # it is to be typed into a shell
    keep = f"c = torch.load({name!r}, map_location='cpu', weights_only=False); torch.save({weights}, 'weights.pt')"
    export = (
        f'; where you trust it, run python -c "import torch; {keep}" beside the code that wrote it, and convert that'
    )
    found = _read(path, export)
    inner = found.get("state_dict", found) if isinstance(found, dict) else {}
    tensors = _flat(inner) if isinstance(inner, Mapping) else {}
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
    except Exception:  # of many unrelated classes: no archive, a broken one, or one that asks for code
        raise UserError(
            f"{path} holds no plain tensors that torch can read; pickled code is never run{export}"
        ) from None


def _flat(tree: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a dict under their names, and those of dicts in it under both names."""
    found: dict[str, Tensor] = {}
    for name, value in tree.items():
        if isinstance(value, Tensor):
            found[str(name)] = value
        elif isinstance(value, Mapping):
            found |= {f"{name}.{inner}": part for inner, part in value.items() if isinstance(part, Tensor)}
    return found


def names_in(path: Path, count: int, what: str, things: str) -> list[str]:
    """The lines of a text file, which are `count` names, each once, of things that the network knows.

    Raises:
        UserError: it cannot be read, or holds other names; says it of `what`, one of them, and of `things`.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"cannot read {what}s from {path}; expected UTF-8 text, one name a line") from None
    found = [line.strip() for line in lines if line.strip()]
    if len(found) != count:
        raise UserError(f"{path} has {len(found)} {what}s, but the network knows {count} {things}")
    if twice := [name for name in found if found.count(name) > 1]:
        raise UserError(f"{path} has the {what} {twice[0]!r} twice; expected each once")
    return found


def refuse_used(out: Path) -> None:
    """Refuse to write over anything; raises UserError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; expected the name of a new folder")
