"""Write docs/api.md: every public name with its signature and the first sentence of its docstring.

python docs/generate_api.py            writes the page
"""

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "api.md"
GROUPS: dict[str, list[str]] = {
    "Train": [
        "train", "Method", "RunConfig", "from_tensor", "Split", "PictureSet", "Record", "FactorSet", "known_factors",
    ],
    "Load, sample, save, evaluate": [
        "load", "Pipeline", "Cascade", "SemanticModel", "NoisyClassifier", "SamplingOptions", "ResolvedOptions",
        "evaluate",
    ],
    "Noise schedules and predictions": [
        "Schedule", "ScheduleConfig", "Prediction", "Denoiser", "NetworkDenoiser",
    ],
    "Samplers": ["sample", "State", "SAMPLERS", "NamedSampler"],
    "Guidance": [
        "ClassifierFree", "Interval", "Rescaled", "Autoguidance", "ClassifierGradient", "ClassifierGuided", "Clipped",
        "Thresholded",
    ],
    "Configs and errors": ["Config", "UserError"],
}  # fmt: skip
VALUES = {
    "KL_PRESETS": "Published KL autoencoders by name, as configs.",
    "VQ_PRESETS": "Published VQ autoencoders by name, as configs.",
    "SAMPLERS": "Samplers by name: `dict[str, NamedSampler]`, which extensions may add to.",
    "CONDITIONERS": "Every conditioner class: the built-in ones, then those of installed packages.",
    "ConditioningConfig": "The `condition:` section of a config: the union of all conditioners' configs, by `kind`.",
    "Inputs": "Prepared conditions, `dict[str, Tensor]` of [N, ...] each.",
    "Progress": "A callback that takes (done, total).",
    "AutoencoderConfig": "The `autoencoder:` section of a config: KL or VQ, by `kind`.",
    "SemanticConfig": "The `encoder:` section of a semantic method's config, by `kind`.",
}
"""What is said of names that have no docstring."""

HEAD = """# Public names

Written by `python docs/generate_api.py`. `help(name)` prints the whole docstring: arguments, shapes, ranges, errors and
sources. Everything in a group can be imported from the package that its heading names; what is not listed may change
without notice.
"""


def first_sentence(value: Any) -> str:
    """Return the first sentence of a docstring, on one line."""
    text = " ".join(inspect.cleandoc(value.__doc__ or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[^.][.])\s+(?=[A-Z`])", text)[0]


def kind_of(value: Any) -> str:
    """Return what a name stands for, as the table calls it."""
    if inspect.isclass(value):
        return "error" if issubclass(value, BaseException) else "class"
    return "function" if inspect.isroutine(value) else "value"


def module_of(value: Any) -> str:
    """Return the module that defines a class or a function; empty for a value."""
    return f"`{value.__module__}`" if inspect.isclass(value) or inspect.isroutine(value) else ""


def row(package: Any, name: str) -> str:
    """Return one line of a table."""
    value = getattr(package, name)
    described = first_sentence(value) if module_of(value) else VALUES.get(name, "")
    return f"| `{name}` | {kind_of(value)} | {described.replace('|', chr(92) + '|')} | {module_of(value)} |"


def table(package: Any, names: list[str]) -> str:
    """Return the table of some names of a package."""
    return "\n".join(["| name | | | defined in |", "|---|---|---|---|", *(row(package, name) for name in names)])


def page() -> str:
    """Return the whole page; raises ValueError for a public name of ldm_kit in no group."""
    ldm_kit = import_module("ldm_kit")
    grouped = {name for names in GROUPS.values() for name in names}
    if grouped != set(ldm_kit.__all__):
        raise ValueError(f"names in GROUPS and ldm_kit.__all__ differ: {sorted(grouped ^ set(ldm_kit.__all__))}")
    sections = [f"## ldm_kit: {title}\n\n{table(ldm_kit, names)}\n" for title, names in GROUPS.items()]
    for name in ("autoencoder", "conditioning"):
        package = import_module(name)
        sections.append(f"## {name}\n\n{table(package, list(package.__all__))}\n")
    return "\n".join([HEAD, *sections])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
