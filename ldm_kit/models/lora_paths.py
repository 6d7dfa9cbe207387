"""Names of LoRA files as users write them, PATH or PATH:SCALE. This module imports no heavy library."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ldm_kit.config import UserError

WEIGHTS = "pytorch_lora_weights.safetensors"  # diffusers' name of a LoRA file


class LoraPath(NamedTuple):
    """A LoRA file, or the folder that holds one, and the scale by which its change of the weights is multiplied."""

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: "str | Path | LoraPath") -> "LoraPath":
        """Return what `PATH` or `PATH:SCALE` names; a path that exists is never split.

        Raises:
            UserError: the path is empty, or the scale is no finite number.
        """
        if isinstance(text, LoraPath):
            return text
        name, colon, scale = str(text).rpartition(":")
        if not str(text) or (colon and not name):
            raise UserError(f"LoRA {str(text)!r:.200} names no file; expected PATH or PATH:SCALE")
        if not colon or Path(text).exists():
            return cls(Path(text))
        try:
            value = float(scale)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(
                f"LoRA {str(text)!r:.200}: its scale {scale!r:.40} is no number; expected PATH or PATH:SCALE"
            )
        return cls(Path(name), value)

    @property
    def file(self) -> Path:
        """The file: the path itself, or in the folder of a model or a run the file that diffusers would look for.

        Raises:
            UserError: there is no such file.
        """
        for path in (self.path, self.path / WEIGHTS, self.path / "model" / WEIGHTS):
            if path.is_file():
                return path
        raise UserError(f"no LoRA in {self.path}; expected a .safetensors file, or a folder with {WEIGHTS}")


def lora_paths(texts: Iterable[str | Path | LoraPath]) -> list[LoraPath]:
    """Return what each of `texts`, PATH or PATH:SCALE, names; UserError: a scale is no finite number."""
    return [LoraPath.parse(text) for text in texts]
