"""No config and no set of options takes infinity or NaN, in whatever field a number is read."""

import importlib
import math
import pkgutil
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

import autoencoder
import conditioning
import ldm_kit


def models() -> list[type[BaseModel]]:
    """Every pydantic model of the packages."""
    for package in (ldm_kit, autoencoder, conditioning):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)

    def below(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
        for sub in kind.__subclasses__():
            yield sub
            yield from below(sub)

    ours = {kind for kind in below(BaseModel) if kind.__module__.partition(".")[0] in PACKAGES}
    return sorted(ours, key=lambda kind: f"{kind.__module__}.{kind.__name__}")


PACKAGES = ("ldm_kit", "autoencoder", "conditioning")


def numbers(annotation: Any) -> Iterator[Any]:
    """Return values of a field's type with a hole, None, for each number in it."""
    if annotation is float:
        yield lambda value: value
    for inner in get_args(annotation):
        for build in numbers(inner):
            length = sum(argument is not Ellipsis for argument in get_args(annotation))
            origin = getattr(annotation, "__origin__", None)
            if origin is dict:
                yield lambda value, build=build: {"key": build(value)}
            elif origin in (tuple, list):
                yield lambda value, build=build, n=length: [build(value)] * n
            else:
                yield build


def test_no_field_takes_what_is_not_finite():
    taken, fields = [], 0
    for kind in models():
        for name, field in kind.model_fields.items():
            for build in numbers(field.annotation):
                fields += 1
                for value in (math.inf, -math.inf, math.nan):
                    try:
                        kind.model_validate({name: build(value)})
                    except ValidationError as error:
                        if not any(fault["type"] == "finite_number" for fault in error.errors()):
                            taken.append((kind.__name__, name, value, error.errors()[0]["msg"]))
                    else:
                        taken.append((kind.__name__, name, value, "taken"))
    assert not taken
    assert fields > 60, "floats are found"


@pytest.mark.parametrize("text", [".inf", "-.inf", ".nan", "1e999"])
def test_a_config_names_the_number(text):
    from ldm_kit.config import UserError, assign, check
    from ldm_kit.methods.autoencoder_config import AutoencoderRun

    tree: dict[str, Any] = {}
    assign(tree, f"loss.kl_weight={text}")
    with pytest.raises(UserError, match=r"loss.kl_weight: expected a .*(finite )?number, got"):
        check(AutoencoderRun, tree, "here")
