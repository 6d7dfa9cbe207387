"""Constructor arguments of the networks that this package defines.

The fields of a run's config have diffusers' names. The constructors, and so config.json of saved models, keep older
names; `SAVED` maps a field's name to the constructor's.
"""

from typing import Any

from pydantic import BaseModel

SAVED = {"attention_levels": "attention", "layers_per_block": "layers", "norm_num_groups": "groups"}


def network_arguments(config: BaseModel) -> dict[str, Any]:
    """Return the constructor arguments of a network, by name: the fields of its `config`, renamed as `SAVED` says."""
    return {SAVED.get(name, name): value for name, value in config.model_dump().items()}
