"""Named attribute directions in the space of a model's normalised codes: look up, save with the model, load, merge.

They are saved in two files: directions.safetensors holds the tensors (with the codes of pairs, for directions learned
from pairs), directions.json holds each direction's name and how well it classifies held-out pictures.
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
from ldm_kit.models.linear_fit import Fit, mean_difference
from ldm_kit.models.manifest import update_manifest, verify_folder
from ldm_kit.models.pairs import PairDirections
from ldm_kit.viz.png import write_atomic

FILE = "directions"  # both files' name before the ending
TO = " > "  # stands between two values of an attribute in a direction's name
_AGAIN = "remove that folder and learn them again"
_PAIR_SIDES = ("before", "after")
_DIMENSIONS = {"vectors": 2, "means": 2, "scales": 1, "biases": 1}  # number of dimensions of each saved tensor


class DirectionRecord(Config):
    """What directions.json holds about one attribute direction: name, how it was fitted, how well it classifies.

    `estimator`: logistic regression (classifier), few-shot discriminant (few), difference of means (means; of pairs).
    """

    name: str = Field(description='"attribute", "attribute: value", or "attribute: value > value"')
    estimator: Literal["classifier", "few", "means", "pairs"] = Field(description="how the direction was fitted")
    typical: float = Field(description="strength of the edit between the mean codes without and with the attribute")
    positives: int = Field(ge=0, description="number of fitted pictures with the attribute")
    others: int = Field(ge=0, description="number of fitted pictures without the attribute, or not labelled")
    auroc: float | None = Field(default=None, description="area under the ROC curve on held-out pictures")
    average_precision: float | None = Field(default=None, description="average precision on held-out pictures")
    temperature: float | None = Field(default=None, gt=0, description="softmax temperature over pairs, `models.pairs`")


class _DirectionsFile(Config):
    key: str
    directions: tuple[DirectionRecord, ...]


class Direction(NamedTuple):
    """A direction along which normalised codes z [D] are moved to change an attribute.

    The log-odds that the picture with code z has the attribute are scale * (vector . z) + bias.
    """

    name: str  # name of the attribute, such as "glasses" or "skin tone: light > dark"
    vector: Tensor  # [D], of length 1
    typical: float  # strength, in units of sqrt(D), between the mean codes without and with the attribute
    scale: float  # factor in the log-odds scale * (vector . z) + bias
    bias: float  # constant term of the log-odds
    pairs: PairDirections | None = None  # pairs from which the direction was learned; None: not learned from pairs

    def at_code(self, z: Tensor) -> "Direction":
        """Return the direction to take from one normalised code z [D].

        A direction learned from pairs has a step for each code, `PairDirections.step(z)`. The result has the
        step scaled to length 1 as `vector`, and the step's length / sqrt(D) as `typical`. Any other direction is
        returned as it is. Scale and bias do not belong to the new vector, so call `logit` of the original direction.
        """
        if self.pairs is None:
            return self
        step = self.pairs.step(z[None])[0]
        length = float(step.norm())
        return self._replace(vector=step / max(length, 1e-12), typical=length / math.sqrt(len(step)))

    def logit(self, z: Tensor) -> Tensor:
        """Return the log-odds [N] that pictures with the normalised codes z [N, D] have the attribute."""
        return self.scale * (z.float() @ self.vector) + self.bias


@dataclass(frozen=True, eq=False)
class Directions:
    """K named attribute directions of one model; `directions[name]` looks one up."""

    records: tuple[DirectionRecord, ...]  # K: name, way of fitting and held-out scores of each direction
    vectors: Tensor  # [K, D], each of length 1
    means: Tensor  # [K, D], mean normalised code of the pictures with each attribute
    scales: Tensor  # [K], factors in the log-odds, see `Direction`
    biases: Tensor  # [K], constant terms of the log-odds, see `Direction`
    key: str  # `protocol.encoder_digest` of the model to whose codes the directions apply
    pairs: Mapping[str, PairDirections] = field(default_factory=dict)  # name of a direction learned from pairs -> pairs

    @property
    def names(self) -> list[str]:
        """Names of the directions, in the order of the tensors' rows."""
        return [record.name for record in self.records]

    def __getitem__(self, name: str) -> Direction:
        """Return the direction called `name`; case and spacing do not matter.

        "attribute: a > b" goes from value a of an attribute to value b. It is the direction that was learned from pairs
        of a and b (reversed if that goes from b to a), or else the difference of the mean codes of both values.

        Raises:
            UserError: no direction has this name; the message lists similar names, or all names if there are few.
        """
        plain = _normalise_name(name)
        indices = {_normalise_name(own): i for i, own in enumerate(self.names)}
        if plain in indices:
            return self._direction(indices[plain])
        attribute, _, values = plain.partition(": ")
        before, arrow, after = values.partition(TO)
        if arrow and (reverse := f"{attribute}: {after}{TO}{before}") in indices:
            return _reverse(self._direction(indices[reverse]), name)
        ends = [indices.get(f"{attribute}: {value}") for value in (before, after)]
        if arrow and ends[0] is not None and ends[1] is not None and ends[0] != ends[1]:
            return _from_fit(name, mean_difference(self.means[[ends[0]]], self.means[[ends[1]]]))
        raise UserError(f"unknown attribute {name!r:.80}; {self._suggest(plain)}")

    def _direction(self, i: int) -> Direction:
        record, pairs = self.records[i], self.pairs.get(self.names[i])
        scale, bias = float(self.scales[i]), float(self.biases[i])
        return Direction(record.name, self.vectors[i], record.typical, scale, bias, pairs)

    def _suggest(self, name: str) -> str:
        if len(self.names) <= 12:
            return f"known are {', '.join(self.names)}"
        near = difflib.get_close_matches(name, self.names, n=5, cutoff=0.3) or self.names[:5]
        return f"the nearest of {len(self.names)} known ones are {', '.join(near)}"

    def merge(self, new: "Directions") -> "Directions":
        """Return these directions and `new` ones of the same model; a new one replaces an old one of the same name."""
        old = [i for i, record in enumerate(self.records) if record.name not in new.names]
        tensors = {name: torch.cat([getattr(self, name)[old], getattr(new, name)]) for name in _DIMENSIONS}
        records = (*(self.records[i] for i in old), *new.records)
        pairs = {name: value for name, value in self.pairs.items() if name not in new.names}
        return Directions(records, **tensors, key=self.key, pairs={**pairs, **new.pairs})

    def save(self, folder: Path) -> None:
        """Write directions.safetensors and directions.json, each atomically, and add both to the model's manifest.json.

        `folder` is `directions/` in a saved model's folder.
        """
        tensors = {name: getattr(self, name).float().contiguous() for name in _DIMENSIONS}
        for name, pairs in self.pairs.items():
            tensors |= {f"{side} {name}": getattr(pairs, side).float().contiguous() for side in _PAIR_SIDES}
        write_atomic(folder / f"{FILE}.safetensors", safetensors.torch.save(tensors, {"key": self.key}))
        content = _DirectionsFile(key=self.key, directions=self.records).model_dump(mode="json")
        write_atomic(folder / f"{FILE}.json", _as_json(content))
        update_manifest(folder.parent, [f"{folder.name}/{FILE}.{kind}" for kind in ("json", "safetensors")])

    @classmethod
    def load(cls, folder: Path, key: str) -> "Directions":
        """Load the directions that were saved in `folder`.

        Args:
            folder: `directions/` in a saved model's folder.
            key: `protocol.encoder_digest` of the model; directions that were saved with another key are refused.

        Raises:
            UserError: the folder has no directions, the files are damaged or do not belong together, or the directions
                were learned with another model.
        """
        try:
            if (folder / f"{FILE}.json").exists():
                verify_folder(folder.parent, f"{folder.name}/")
            content = _DirectionsFile.model_validate_json((folder / f"{FILE}.json").read_bytes())
            state_dict = safetensors.torch.load_file(folder / f"{FILE}.safetensors")
        except FileNotFoundError:
            raise UserError(f"{folder} holds no {FILE}; learn some first with edit.py learn") from None
        except (OSError, ValidationError, SafetensorError, UserError) as error:
            raise UserError(f"the {FILE} in {folder} are damaged ({str(error).splitlines()[0]}); {_AGAIN}") from None
        tensors = {name: value for name, value in state_dict.items() if name in _DIMENSIONS}
        dimensions = {name: value.dim() for name, value in tensors.items()}
        lengths = {len(value) for value in tensors.values()}
        pairs = _load_pairs(content.directions, state_dict)
        if not all(bool(value.isfinite().all()) for value in state_dict.values()):
            raise UserError(f"the {FILE} in {folder} hold NaN or infinity; {_AGAIN}")
        if dimensions != _DIMENSIONS or lengths != {len(content.directions)} or pairs is None:
            raise UserError(f"{FILE}.json and {FILE}.safetensors in {folder} do not belong together; {_AGAIN}")
        if content.key != key:
            raise UserError(f"the {FILE} in {folder} were learned with another model; learn them again with this one")
        return cls(content.directions, **tensors, key=content.key, pairs=pairs)


def _as_json(content: object) -> bytes:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()  # no lone surrogates


def _load_pairs(
    records: Sequence[DirectionRecord], state_dict: Mapping[str, Tensor]
) -> dict[str, PairDirections] | None:
    """Return {name: codes of the pairs} for those directions in `records` that were learned from picture pairs.

    `state_dict` holds the tensors of directions.safetensors. None: codes of a direction are missing or misshapen.
    """
    pairs: dict[str, PairDirections] = {}
    for record in records:
        if record.temperature is not None:
            before, after = (state_dict.get(f"{side} {record.name}") for side in _PAIR_SIDES)
            if before is None or after is None or before.dim() != 2 or before.shape != after.shape:
                return None
            pairs[record.name] = PairDirections(before, after, record.temperature)
    return pairs


def stack_directions(
    fitted: Sequence[tuple[DirectionRecord, Fit, Tensor]], key: str, pairs: Mapping[str, PairDirections] | None = None
) -> Directions:
    """Combine K fitted attribute directions into one `Directions`.

    Args:
        fitted: for each direction its `DirectionRecord`, the linear classifier whose weight it is, and the mean
            normalised code [D] of pictures with the attribute.
        key: `protocol.encoder_digest` of the model whose codes were fitted.
        pairs: by name, for directions in `fitted` that were learned from pairs of pictures, those pairs' codes.
    """
    lengths = torch.stack([fit.weight.norm() for _, fit, _ in fitted])
    vectors = torch.stack([fit.weight for _, fit, _ in fitted]) / lengths[:, None]
    means, biases = torch.stack([mean for _, _, mean in fitted]), torch.tensor([fit.bias for _, fit, _ in fitted])
    records = tuple(record for record, _, _ in fitted)
    return Directions(records, vectors.float(), means.float(), lengths.float(), biases, key, dict(pairs or {}))


def typical_strength(fit: Fit, before: Tensor, after: Tensor) -> float:
    """Return the typical strength of an edit: the distance between two mean codes along a direction, over sqrt(D).

    sqrt(D) is the length of a typical normalised code, and strengths are given in units of it.

    Args:
        fit: the linear classifier whose weight is the direction.
        before: mean normalised code [D] without the attribute.
        after: mean normalised code [D] with the attribute.
    """
    return float((after.double() - before.double()) @ fit.unit) / math.sqrt(len(fit.weight))


def _from_fit(name: str, fit: Fit) -> Direction:
    length = float(fit.weight.norm())
    strength = length / math.sqrt(len(fit.weight))
    return Direction(name, fit.unit.float(), strength, length, fit.bias)


def _reverse(direction: Direction, name: str) -> Direction:
    pairs = None if direction.pairs is None else direction.pairs.reverse()
    return Direction(name, -direction.vector, direction.typical, direction.scale, -direction.bias, pairs)


def _normalise_name(name: str) -> str:
    """Return a name in lower case with standard spacing: "Skin  Tone:dark>light" becomes "skin tone: dark > light"."""
    text = " ".join(name.lower().split())
    for mark, spaced in ((":", ": "), (">", TO)):
        text = spaced.join(side.strip() for side in text.split(mark))
    return text
