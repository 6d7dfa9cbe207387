"""Edits with a known answer: OpenMoji holds the same role in another skin tone or gender, drawn by the same hands."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from benchmarks.judge import Judge, Readout, colours_of
from ldm_kit.data.images import InMemory, PictureSet, Split, unit_hash
from ldm_kit.editing.fit_directions import learn
from ldm_kit.editing.labels import Column, from_openmoji
from ldm_kit.editing.operations import Change, decode, encode, move_codes
from ldm_kit.metrics.fidelity import ranks
from ldm_kit.models.directions import TO, Directions
from ldm_kit.models.protocol import Code, Semantic, encode_pictures, encoder_digest, normalise

KINDS = {
    "skin tone": ("none", "light", "medium-light", "medium", "medium-dark", "dark"),
    "gender": ("man", "woman"),
}
NOISE = 8.0  # standard deviation, of 255, in half of what the judges learn from


@dataclass(frozen=True)
class Edit:
    """From one picture to a counterpart that no model was trained on; places in the whole set."""

    source: int
    target: int
    attribute: str
    before: str
    after: str

    @property
    def name(self) -> str:
        """As `Directions` spell it."""
        return f"{self.attribute}: {self.before}{TO}{self.after}"


@dataclass(frozen=True)
class Outcome:
    """What edits of one attribute by one model came to: shares of `count`, and the median of ranks from 1."""

    model: str
    attribute: str
    count: int
    right: float  # the judge reads the new value
    closer: float  # nearer to the truth than the unedited picture is, by the root of the mean square of pixels
    closer_lite0: float  # the same by the cosine of Lite0 features
    beats_nearest: float  # nearer to the truth than the nearest other picture of the whole set, in pixels
    left: float  # mean of distance(edited, truth) / distance(unedited, truth), in pixels
    rank: float  # median rank of the truth among the whole set by its distance to the edited picture, in pixels
    first: float  # share of rank 1
    rank_lite0: float  # median rank by Lite0 features, which a little noise upsets


def edits_of(everything: InMemory, split: Split, count: int) -> list[Edit]:
    """`count` edits of each attribute, chosen by hash, whose answers are outside the training part."""
    seen = {record.name for record in split.train.records}
    found: list[Edit] = []
    for column in from_openmoji(everything):
        kinds = KINDS.get(column.name, ())
        named = enumerate(zip(column.values, column.pairs or (), strict=False))
        places = [i for i, (value, pair) in named if value in kinds and pair is not None]
        listed = sorted(places, key=lambda i: _pair(column, i))
        for _, group in groupby(listed, key=lambda i: _pair(column, i)):
            found += _between(column, list(group), everything, seen)
    found.sort(key=lambda edit: unit_hash("edit", f"{_names(everything, edit)}"))
    return [edit for name in KINDS for edit in [one for one in found if one.attribute == name][:count]]


def _between(column: Column, places: Sequence[int], everything: InMemory, seen: set[str]) -> list[Edit]:
    found: list[Edit] = []
    for target in places:
        if everything.records[target].name in seen:
            continue
        for source in places:
            before, after = column.values[source], column.values[target]
            if before != after and before and after:
                found.append(Edit(source, target, column.name, before, after))
    return found


def _pair(column: Column, place: int) -> str:
    return (column.pairs or ())[place] or ""


def _names(everything: InMemory, edit: Edit) -> str:
    return f"{everything.records[edit.source].name} {everything.records[edit.target].name}"


def learned(model: Semantic, train: PictureSet) -> Directions:
    """As `edit.py learn --openmoji` learns them."""
    z = normalise(model, encode_pictures(model, train))
    return learn(z, from_openmoji(train), [record.fields["role"] for record in train.records], encoder_digest(model))


@dataclass(frozen=True)
class Step:
    """How near codes come to the truth's, before anything is drawn; means over `count` edits."""

    model: str
    attribute: str
    way: str
    count: int
    left: float  # distance(moved, truth) / distance(unmoved, truth) of normalised codes
    closer: float  # share of those below 1


def steps_of(name: str, model: Semantic, split: Split, everything: InMemory, edits: Sequence[Edit]) -> Iterator[Step]:
    """For each attribute: one step for all pictures, and each picture's own."""
    directions = learned(model, split.train)
    for attribute in KINDS:
        chosen = [edit for edit in edits if edit.attribute == attribute]
        ends = [everything.pictures([getattr(edit, end) for edit in chosen]) for end in ("source", "target")]
        z, truth = (normalise(model, model.encode(pictures)) for pictures in ends)
        ways = [directions[edit.name] for edit in chosen]
        own = [way.at(one) for way, one in zip(ways, z, strict=True)]
        for way, used in {"one step for all": ways, "each picture's own": own}.items():
            steps = torch.stack([one.vector * one.typical for one in used]) * z.shape[1] ** 0.5
            left = (z + steps - truth).norm(dim=1) / (z - truth).norm(dim=1)
            yield Step(name, attribute, way, len(chosen), float(left.mean()), _share(left < 1))


def edited(
    model: Semantic, train: PictureSet, sources: Tensor, edits: Sequence[Edit], steps: tuple[int, int]
) -> Tensor:
    """Pictures uint8 [E, 3, R, R]: each source's code moved by its attribute's typical step, learned from training.

    `steps` are those of reading x_T and of drawing.
    """
    directions = learned(model, train)
    code = encode(model, sources, steps[0])
    found = normalise(model, code.z)
    ways = [directions[edit.name].at(one) for edit, one in zip(edits, found, strict=True)]
    rows = [move_codes(model, code.z[[i]], [Change(way, way.typical)]) for i, way in enumerate(ways)]
    return decode(model, Code(torch.cat(rows), code.x_T), steps[1], 64)


@dataclass(frozen=True, eq=False)
class Umpire:
    """Judges of each attribute, and the whole set to compare with."""

    judge: Judge
    everything: InMemory
    features: Tensor  # Lite0, of everything
    readouts: dict[str, Readout]

    @classmethod
    def trained(cls, judge: Judge, everything: InMemory, split: Split) -> "Umpire":
        """Skin tones are told by colours, genders by Lite0 features and colours, of training pictures.

        Each is shown clean and with noise, which a judge of drawn pictures must not mind.
        """
        whole = cls(judge, everything, judge.features(everything.pixels), {})
        places = {record.name: i for i, record in enumerate(everything.records)}
        train = torch.tensor([places[record.name] for record in split.train.records])
        for column in from_openmoji(split.train):
            if kinds := KINDS.get(column.name):
                known = torch.tensor([value in kinds for value in column.values])
                labels = torch.tensor([kinds.index(value) for value in column.values if value in kinds])
                clean = everything.pixels[train[known]]
                features = torch.cat([whole.seen(shown, column.name) for shown in (clean, _noised(clean))])
                whole.readouts[column.name] = Readout.trained(features, labels.repeat(2), len(kinds), decay=0.01)
        return whole

    def seen(self, pictures: Tensor, attribute: str) -> Tensor:
        """What the judge of an attribute sees of pictures."""
        colours = colours_of(pictures)
        return colours if attribute == "skin tone" else torch.cat([self.judge.features(pictures), colours], dim=1)

    def values(self, pictures: Tensor, attribute: str) -> list[str]:
        """The attribute's value in each picture, as the judge reads it."""
        guesses = self.readouts[attribute].guess(self.seen(pictures, attribute))
        return [KINDS[attribute][int(k)] for k in guesses]

    def outcomes(self, model: str, edits: Sequence[Edit], pictures: Tensor) -> list[Outcome]:
        """One for each attribute, of edited pictures uint8 [E, 3, R, R]."""
        kept = {name: [i for i, edit in enumerate(edits) if edit.attribute == name] for name in KINDS}
        return [
            self._outcome(model, name, [edits[i] for i in part], pictures[part]) for name, part in kept.items() if part
        ]

    def _outcome(self, model: str, attribute: str, edits: Sequence[Edit], pictures: Tensor) -> Outcome:
        everything = self.everything.pixels
        source, target = (torch.tensor([getattr(edit, end) for edit in edits]) for end in ("source", "target"))
        after, before = apart(pictures, everything[target]), apart(everything[source], everything[target])
        right = [encode == edit.after for encode, edit in zip(self.values(pictures, attribute), edits, strict=True)]
        lite0 = self.judge.features(pictures)
        cosines = [_cosine(one, self.features[target], self.features) for one in (lite0, self.features[source])]
        flat = self.everything.pixels.float().flatten(1)
        rank = ranks(pictures.float().flatten(1), flat, target, "euclidean").double()
        return Outcome(
            model,
            attribute,
            len(edits),
            right=_share(torch.tensor(right)),
            closer=_share(after < before),
            closer_lite0=_share(cosines[0] > cosines[1]),
            beats_nearest=_share(after < self._nearest(source, target)),
            left=float((after / before).mean()),
            rank=float(rank.median()),
            first=_share(rank == 1),
            rank_lite0=float(ranks(lite0, self.features, target).double().median()),
        )

    def _nearest(self, source: Tensor, target: Tensor) -> Tensor:
        """Distance [E] of each truth to the picture nearest to it that is neither itself nor the source."""
        flat = self.everything.pixels.float().flatten(1) / 255
        distances = torch.cdist(flat[target], flat) / flat.shape[1] ** 0.5
        distances[torch.arange(len(target)), target] = torch.inf
        distances[torch.arange(len(source)), source] = torch.inf
        return distances.amin(1)


def _noised(pictures: Tensor) -> Tensor:
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    return (pictures + NOISE * noise).round().clamp(0, 255).byte()


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Root of the mean squared difference [N] of pictures uint8 [N, C, H, W], in 0 to 1."""
    return ((a.float() - b.float()) / 255).square().mean((1, 2, 3)).sqrt()


def _cosine(a: Tensor, b: Tensor, everything: Tensor) -> Tensor:
    centre = everything.mean(0)
    return torch.cosine_similarity(a - centre, b - centre)


def _share(true: Tensor) -> float:
    return float(true.double().mean())
