"""Constructor arguments of the networks that this package defines.

A run's config names them as diffusers does. The constructors, and so config.json of saved folders, keep older names.
"""

from typing import Any

from pydantic import BaseModel

SAVED = {"attention_levels": "attention", "layers_per_block": "layers", "norm_num_groups": "groups"}


def network_arguments(config: BaseModel) -> dict[str, Any]:
    """Return a network's constructor arguments: the fields of its config, renamed by `SAVED` where it has an entry."""
    return {SAVED.get(name, name): value for name, value in config.model_dump().items()}
