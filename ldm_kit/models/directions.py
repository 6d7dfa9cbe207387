"""Directions by name in the normalised space of a model's codes: looked up, saved beside the model, joined.

Two files: directions.safetensors holds the numbers (and, of a step between counterparts, their codes), directions.json
what they are called and how well they read pictures that they were not fitted to.
"""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import safetensors.torch
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from ldm_kit.config import Config, UserError
from ldm_kit.editing.fitting import Fit, difference
from ldm_kit.models.pairs import PairDirections
from ldm_kit.viz.png import write_atomic

FILE = "directions"
TO = " > "  # between two values of an attribute
_ENDS = ("before", "after")
_SHAPES = {"vectors": 2, "means": 2, "scales": 1, "biases": 1}


class About(Config):
    """What is known of one direction."""

    name: str = Field(description='"attribute", "attribute: value", or "attribute: value > value"')
    estimator: Literal["classifier", "few", "means", "pairs"] = Field(description="how it was found, `fitting`")
    typical: float = Field(description="strength that takes the mean of those without to the mean of those with it")
    positives: int = Field(ge=0, description="pictures with the attribute that it was fitted to")
    others: int = Field(ge=0, description="pictures without it, or unlabelled ones")
    auroc: float | None = Field(default=None, description="on pictures held out")
    average_precision: float | None = Field(default=None, description="on pictures held out")
    temperature: float | None = Field(default=None, gt=0, description="of counterparts' votes, `counterparts`")


class _Listed(Config):
    key: str
    directions: tuple[About, ...]


class Direction(NamedTuple):
    """One direction: a unit vector [D], its typical strength, and its log-odds scale * (vector . z) + bias."""

    name: str
    vector: Tensor
    typical: float
    scale: float
    bias: float
    counterparts: PairDirections | None = None

    def at(self, z: Tensor) -> "Direction":
        """The way from one picture's normalised code [D]: the step of its likes, where there are counterparts.

        Its typical strength is that step's length; without counterparts every picture goes the same way. What it is
        to go is not what it reads by: ask `logit` of the direction as it was learned.
        """
        if self.counterparts is None:
            return self
        step = self.counterparts.step(z[None])[0]
        length = float(step.norm())
        return self._replace(vector=step / max(length, 1e-12), typical=length / math.sqrt(len(step)))

    def logit(self, z: Tensor) -> Tensor:
        """Log-odds [N] that pictures have the attribute, of normalised codes [N, D]."""
        return self.scale * (z.float() @ self.vector) + self.bias


@dataclass(frozen=True, eq=False)
class Directions:
    """K named directions of one model."""

    abouts: tuple[About, ...]
    vectors: Tensor  # [K, D], of length 1
    means: Tensor  # [K, D], of the normalised codes that have the attribute
    scales: Tensor  # [K]
    biases: Tensor  # [K]
    key: str  # of the model, `seam.key_of`
    counterparts: Mapping[str, PairDirections] = field(default_factory=dict)  # by name, of those learned from such

    @property
    def names(self) -> list[str]:
        """What they are called, in order."""
        return [about.name for about in self.abouts]

    def __getitem__(self, name: str) -> Direction:
        """The direction of that name; "attribute: a > b" is the way from one value to another.

        That is the mean step between counterparts where it was learned from such, back or forth, or else the difference
        of the two values' means.

        Raises:
            UserError: no such name; names the nearest, or all where they are few.
        """
        said = _plain(name)
        places = {_plain(known): i for i, known in enumerate(self.names)}
        if said in places:
            return self._at(places[said])
        head, _, values = said.partition(": ")
        before, arrow, after = values.partition(TO)
        if arrow and (back := f"{head}: {after}{TO}{before}") in places:
            return _reversed(self._at(places[back]), name)
        ends = [places.get(f"{head}: {value}") for value in (before, after)]
        if arrow and ends[0] is not None and ends[1] is not None and ends[0] != ends[1]:
            return _direction(name, difference(self.means[[ends[0]]], self.means[[ends[1]]]))
        raise UserError(f"unknown attribute {name!r:.80}; {self._near(said)}")

    def _at(self, i: int) -> Direction:
        about, pairs = self.abouts[i], self.counterparts.get(self.names[i])
        scale, bias = float(self.scales[i]), float(self.biases[i])
        return Direction(about.name, self.vectors[i], about.typical, scale, bias, pairs)

    def _near(self, said: str) -> str:
        if len(self.names) <= 12:
            return f"known are {', '.join(self.names)}"
        near = difflib.get_close_matches(said, self.names, n=5, cutoff=0.3) or self.names[:5]
        return f"the nearest of {len(self.names)} known ones are {', '.join(near)}"

    def joined(self, new: "Directions") -> "Directions":
        """These and the new ones, which take the place of those of the same name; both of one model."""
        kept = [i for i, about in enumerate(self.abouts) if about.name not in new.names]
        numbers = {name: torch.cat([getattr(self, name)[kept], getattr(new, name)]) for name in _SHAPES}
        abouts = (*(self.abouts[i] for i in kept), *new.abouts)
        pairs = {name: one for name, one in self.counterparts.items() if name not in new.names}
        return Directions(abouts, **numbers, key=self.key, counterparts={**pairs, **new.counterparts})

    def save(self, folder: Path) -> None:
        """Write both files into a folder, each whole or not at all."""
        numbers = {name: getattr(self, name).float().contiguous() for name in _SHAPES}
        for name, pairs in self.counterparts.items():
            numbers |= {f"{end} {name}": getattr(pairs, end).float().contiguous() for end in _ENDS}
        write_atomic(folder / f"{FILE}.safetensors", safetensors.torch.save(numbers, {"key": self.key}))
        listed = _Listed(key=self.key, directions=self.abouts).model_dump(mode="json")
        write_atomic(folder / f"{FILE}.json", (json.dumps(listed, indent=2, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, folder: Path, key: str) -> "Directions":
        """Read what `save` wrote for the model of that key.

        Raises:
            UserError: none there, damaged or not belonging together, or learned with another model.
        """
        try:
            listed = _Listed.model_validate_json((folder / f"{FILE}.json").read_bytes())
            found = safetensors.torch.load_file(folder / f"{FILE}.safetensors")
        except FileNotFoundError:
            raise UserError(f"{folder} holds no {FILE}; learn some first with edit.py learn") from None
        except (OSError, ValidationError, SafetensorError) as error:
            raise UserError(f"the {FILE} in {folder} are damaged ({str(error).splitlines()[0]}); learn anew") from None
        numbers = {name: value for name, value in found.items() if name in _SHAPES}
        shapes = {name: value.dim() for name, value in numbers.items()}
        pairs = _counterparts(listed.directions, found)
        misfit = shapes != _SHAPES or {len(value) for value in numbers.values()} != {len(listed.directions)}
        if misfit or pairs is None:
            raise UserError(f"{FILE}.json and {FILE}.safetensors in {folder} do not belong together; learn anew")
        if listed.key != key:
            raise UserError(f"the {FILE} in {folder} were learned with another model; learn anew with this one")
        return cls(listed.directions, **numbers, key=listed.key, counterparts=pairs)


def _counterparts(abouts: Sequence[About], found: Mapping[str, Tensor]) -> dict[str, PairDirections] | None:
    """Those of a file's tensors; None where one is missing or two do not match."""
    kept: dict[str, PairDirections] = {}
    for about in abouts:
        if about.temperature is not None:
            ends = [found.get(f"{end} {about.name}") for end in _ENDS]
            before, after = ends
            if before is None or after is None or before.dim() != 2 or before.shape != after.shape:
                return None
            kept[about.name] = PairDirections(before, after, about.temperature)
    return kept


def gathered(
    found: Sequence[tuple[About, Fit, Tensor]], key: str, counterparts: Mapping[str, PairDirections] | None = None
) -> Directions:
    """Directions of what is known of each, its fit, and the mean [D] of the codes that have the attribute."""
    lengths = torch.stack([fit.weight.norm() for _, fit, _ in found])
    vectors = torch.stack([fit.weight for _, fit, _ in found]) / lengths[:, None]
    means, biases = torch.stack([mean for _, _, mean in found]), torch.tensor([fit.bias for _, fit, _ in found])
    abouts, pairs = tuple(about for about, _, _ in found), dict(counterparts or {})
    return Directions(abouts, vectors.float(), means.float(), lengths.float(), biases, key, pairs)


def typical(fit: Fit, before: Tensor, after: Tensor) -> float:
    """Strength that takes the mean [D] of codes before to that of codes after, as far as the direction goes."""
    unit = fit.weight / fit.weight.norm()
    return float((after.double() - before.double()) @ unit) / math.sqrt(len(unit))


def _direction(name: str, fit: Fit) -> Direction:
    length = float(fit.weight.norm())
    strength = length / math.sqrt(len(fit.weight))
    return Direction(name, (fit.weight / length).float(), strength, length, fit.bias)


def _reversed(one: Direction, name: str) -> Direction:
    pairs = None if one.counterparts is None else one.counterparts.back()
    return Direction(name, -one.vector, one.typical, one.scale, -one.bias, pairs)


def _plain(name: str) -> str:
    """Spelling does not matter in case and spaces: "Skin  Tone:dark>light" is "skin tone: dark > light"."""
    text = " ".join(name.lower().split())
    for mark, shown in ((":", ": "), (">", TO)):
        text = shown.join(part.strip() for part in text.split(mark))
    return text
