"""The result of an evaluation: a table as text, and a JSON file that is never overwritten."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ldm_kit.config import UserError
from ldm_kit.models.measures import Figure
from ldm_kit.paths import check_writable_file
from ldm_kit.viz.png import write_atomic


@dataclass(frozen=True)
class Evaluation:
    """Measured values with their intervals, and all that they depend on; `str(result)` is a Markdown table.

    Attributes:
        figures: the values, in the table's order.
        settings: what was judged, reference, feature network with sha256, seed and so on, as JSON values.
        warnings: sentences on what limits the values.
    """

    figures: tuple[Figure, ...]
    settings: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Figure:
        """Return the figure of a measure, by the name that --measures takes; KeyError: it was not measured."""
        figures = {figure.name: figure for figure in self.figures}
        return figures[name]

    def __iter__(self) -> Iterator[Figure]:
        return iter(self.figures)

    @property
    def json(self) -> dict[str, Any]:
        """The whole result as JSON values."""
        version: str = import_module("ldm_kit").__version__  # an import of the public API from below would be a cycle
        measures = {figure.name: figure.json for figure in self.figures}
        return {"Software": f"ldm_kit {version}", **self.settings, "measures": measures, "warnings": [*self.warnings]}

    def write(self, path: Path) -> Path:
        """Write the result to a new JSON file, and return its path; UserError: it exists, or cannot be written."""
        return write_json(path, self.json)

    @property
    def judged_line(self) -> str:
        """A line of the table's head: what was judged."""
        judged = self.settings["judged"]
        return f"{judged['kind']} {judged['path']}, {judged['count']} pictures, sha256 {_short(judged)}"

    @property
    def setting_lines(self) -> list[str]:
        """Lines of the table's head: reference, features, seed, and how pictures were sampled."""
        judged, reference, net = (self.settings[name] for name in ("judged", "reference", "features"))
        lines = [
            f"reference: {reference['name']}, split {reference['split']}, {reference['count']} pictures",
            f"features: {net['name']}, sha256 {net['sha256'][:12]}; pictures resized {net['resize']}",
            f"seed {self.settings['seed']}, {self.settings['bootstrap']} bootstrap draws",
        ]
        if "sampling" in judged:
            options = judged["sampling"]
            lines.append(
                f"sampled in {options['steps']} steps of {options['solver']}, guidance {options['guidance_scale']:g}"
            )
        if "reconstruction" in judged:
            options = judged["reconstruction"]
            lines.append(f"encoded to x_T in {options['encode_steps']} steps, decoded in {options['decode_steps']}")
        return lines

    def __str__(self) -> str:
        lines = [self.judged_line, *self.setting_lines, "95 % intervals over the pictures of this one model"]
        head = "| name | measure | value | 95 % interval | better | pictures |\n|---|---|---|---|---|---|"
        return "\n".join([*lines, "", head, *map(_row, self.figures), *(f"warning: {text}" for text in self.warnings)])


def write_json(path: Path, tree: Mapping[str, Any]) -> Path:
    """Write JSON values to a new file, and return its path; UserError: it exists, or cannot be written."""
    check_writable_file(path)
    try:
        write_atomic(path, (json.dumps(tree, indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise UserError(f"the result cannot be written to {path}: {error.strerror or error}") from None
    return path


def _short(judged: Mapping[str, Any]) -> str:
    return str(judged.get("model") or judged.get("sha256") or "unknown")[:12]


def _row(figure: Figure) -> str:
    interval = "-" if figure.interval is None else "[" + ", ".join(map(format_number, figure.interval)) + "]"
    better = "-" if figure.better == "neither" else figure.better
    return (
        f"| {figure.name} | {figure.title} | {format_number(figure.value)} | {interval} | {better} | {figure.counts} |"
    )


def format_number(value: float | None) -> str:
    """Return a value with four digits or, if it is small, three, without an exponent; "-" if there is none."""
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:.0f}"
    if 1e-9 < abs(value) < 0.001:
        return f"{value:.{2 - math.floor(math.log10(abs(value)))}f}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.4g}"
