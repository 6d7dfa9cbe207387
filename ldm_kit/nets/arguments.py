"""Argument names of our networks, which saved folders (config.json) keep while a run's config has diffusers' names."""

from typing import Any

from pydantic import BaseModel

SAVED = {"attention_levels": "attention", "layers_per_block": "layers", "norm_num_groups": "groups"}


def network_arguments(config: BaseModel) -> dict[str, Any]:
    """Return the arguments of a network's class: a config's fields, under the names that saved folders have."""
    return {SAVED.get(name, name): value for name, value in config.model_dump().items()}
