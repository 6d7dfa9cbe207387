"""Say which options of sampling a saved model decided."""

from collections.abc import Mapping
from typing import Any


def own_settings(options: Mapping[str, Any]) -> str:
    """Return a sentence that lists options taken from a saved model, with their values; empty if there are none."""
    listed = ", ".join(f"{name} {_shown(value)}" for name, value in options.items() if value is not None)
    return f"the model's own settings: {listed}" if listed else ""


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
