"""Edits with a known answer: OpenMoji holds the same role in another skin tone or gender, drawn by the same hands."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from benchmarks.claims.judge import Judge, colour_histograms
from benchmarks.tables import Columns, Row
from ldm_kit.data.images import InMemory, PictureSet, Split, unit_hash
from ldm_kit.editing.fit_directions import learn
from ldm_kit.editing.labels import Column, from_openmoji
from ldm_kit.editing.operations import Change, decode, encode, move_codes
from ldm_kit.metrics.fidelity import ranks
from ldm_kit.metrics.probes import LinearProbe
from ldm_kit.models.directions import TO, Directions
from ldm_kit.models.protocol import Code, Semantic, encode_pictures, encoder_digest, normalise

KINDS = {
    "skin tone": ("none", "light", "medium-light", "medium", "medium-dark", "dark"),
    "gender": ("man", "woman"),
}
NOISE = 8.0  # standard deviation, of 255, in half of what the judges learn from


@dataclass(frozen=True)
class Edit:
    """An edit of a picture with a known result: another picture, which differs in one attribute.

    No model was trained on the other picture, the target.
    """

    source: int  # index of the picture to edit, in the whole set
    target: int  # index of the target, in the whole set
    attribute: str  # skin tone or gender
    before: str  # value of the attribute in the source
    after: str  # value of the attribute in the target

    @property
    def name(self) -> str:
        """Name of the edit's direction in `Directions`, such as "gender: man > woman"."""
        return f"{self.attribute}: {self.before}{TO}{self.after}"


EDITS: Columns = {
    "model": ("one training each", ""),
    "attribute": ("attribute", ""),
    "right": ("right", ".0%"),  # the judge reads the new value
    "closer": ("closer", ".0%"),  # nearer to the truth than the unedited picture is, in pixels
    "closer_lite0": ("closer (Lite0)", ".0%"),  # by the cosine of Lite0 features
    "left": ("left", ".2f"),  # mean of distance(edited, truth) / distance(unedited, truth), in pixels
    "beats_nearest": ("nearer than the nearest", ".0%"),  # nearer to the truth than any other picture, in pixels
    "rank": ("median rank", ".0f"),  # of the truth among the whole set by its distance to the edited picture
    "first": ("rank 1", ".0%"),
    "rank_lite0": ("median rank (Lite0)", ".0f"),
}
STEPS: Columns = {
    "model": ("one training each", ""),
    "attribute": ("attribute", ""),
    "way": ("step", ""),
    "left": ("left", ".2f"),  # distance(moved, truth) / distance(unmoved, truth) of normalised codes
    "closer": ("closer", ".0%"),  # share of those below 1
}


def edits_of(everything: InMemory, split: Split, count: int) -> list[Edit]:
    """Return at most `count` edits of each attribute, chosen by hash, whose targets are no training pictures.

    `everything` is the whole data set, of which `split` has the training pictures.
    """
    seen = {record.name for record in split.train.records}
    edits: list[Edit] = []
    for column in from_openmoji(everything):
        kinds = KINDS.get(column.name, ())
        named = enumerate(zip(column.values, column.pairs or (), strict=False))
        indices = [i for i, (value, pair) in named if value in kinds and pair is not None]
        listed = sorted(indices, key=lambda i: _pair(column, i))
        for _, group in groupby(listed, key=lambda i: _pair(column, i)):
            edits += _between(column, list(group), everything, seen)
    edits.sort(key=lambda edit: unit_hash("edit", f"{_names(everything, edit)}"))
    return [edit for name in KINDS for edit in [e for e in edits if e.attribute == name][:count]]


def _between(column: Column, group: Sequence[int], everything: InMemory, seen: set[str]) -> list[Edit]:
    edits: list[Edit] = []
    for target in group:
        if everything.records[target].name in seen:
            continue
        for source in group:
            before, after = column.values[source], column.values[target]
            if before != after and before and after:
                edits.append(Edit(source, target, column.name, before, after))
    return edits


def _pair(column: Column, index: int) -> str:
    return (column.pairs or ())[index] or ""


def _names(everything: InMemory, edit: Edit) -> str:
    return f"{everything.records[edit.source].name} {everything.records[edit.target].name}"


def learn_directions(model: Semantic, train: PictureSet) -> Directions:
    """Learn directions of attributes from codes of training pictures, as `edit.py learn --openmoji` does."""
    z = normalise(model, encode_pictures(model, train))
    return learn(z, from_openmoji(train), [record.fields["role"] for record in train.records], encoder_digest(model))


def steps_of(name: str, model: Semantic, split: Split, everything: InMemory, edits: Sequence[Edit]) -> Iterator[Row]:
    """Measure how near edited codes come to the codes of the edits' targets; yield two rows for each attribute.

    In one row all pictures are edited by the same step, in the other each picture by a step of its own.

    Args:
        name: name of the model, for the rows.
        model: model that encodes pictures.
        split: has the training pictures, from which steps are learned.
        everything: the whole data set, which edits index.
        edits: the edits.
    """
    directions = learn_directions(model, split.train)
    for attribute in KINDS:
        chosen = [edit for edit in edits if edit.attribute == attribute]
        ends = [everything.pictures([getattr(edit, end) for edit in chosen]) for end in ("source", "target")]
        z, truth = (normalise(model, model.encode(pictures)) for pictures in ends)
        ways = [directions[edit.name] for edit in chosen]
        own = [way.at_code(one) for way, one in zip(ways, z, strict=True)]
        for way, used in {"one step for all": ways, "each picture's own": own}.items():
            steps = torch.stack([one.vector * one.typical for one in used]) * z.shape[1] ** 0.5
            left = (z + steps - truth).norm(dim=1) / (z - truth).norm(dim=1)
            distances = {"left": float(left.mean()), "closer": _share(left < 1)}
            yield {"model": name, "attribute": attribute, "way": way, "count": len(chosen), **distances}


def apply_edits(
    model: Semantic, train: PictureSet, sources: Tensor, edits: Sequence[Edit], steps: tuple[int, int]
) -> Tensor:
    """Edit pictures: move the code of each by the typical step of its edit, and decode it.

    Args:
        model: model that encodes and decodes pictures.
        train: training pictures, from which steps are learned.
        sources: pictures to edit, uint8 [E, 3, R, R].
        edits: the E edits.
        steps: number of steps of the inversion to x_T, and of decoding.

    Returns:
        Edited pictures, uint8 [E, 3, R, R].
    """
    directions = learn_directions(model, train)
    code = encode(model, sources, steps[0])
    normalised = normalise(model, code.z)
    ways = [directions[edit.name].at_code(one) for edit, one in zip(edits, normalised, strict=True)]
    rows = [move_codes(model, code.z[[i]], [Change(way, way.typical)]) for i, way in enumerate(ways)]
    return decode(model, Code(torch.cat(rows), code.x_T), steps[1], 64)


@dataclass(frozen=True, eq=False)
class EditJudge:
    """Judge of edited pictures: probes that read attributes, and the whole data set to compare pictures with."""

    judge: Judge  # computes EfficientNet-Lite0 features
    everything: InMemory  # the whole data set, which edits index
    features: Tensor  # Lite0 features of all its pictures, float64 [N, D]
    probes: dict[str, LinearProbe]  # classifier of values, by attribute

    @classmethod
    def fit(cls, judge: Judge, everything: InMemory, split: Split) -> "EditJudge":
        """Fit probes to training pictures: skin tones by colours, genders by colours and Lite0 features.

        They are fitted to clean and to noisy pictures, so that slight noise in generated pictures does not matter.

        Args:
            judge: computes Lite0 features.
            everything: the whole data set.
            split: has the training pictures.
        """
        whole = cls(judge, everything, judge.features(everything.pixels), {})
        index = {record.name: i for i, record in enumerate(everything.records)}
        train = torch.tensor([index[record.name] for record in split.train.records])
        for column in from_openmoji(split.train):
            if kinds := KINDS.get(column.name):
                labelled = torch.tensor([value in kinds for value in column.values])
                labels = torch.tensor([kinds.index(value) for value in column.values if value in kinds])
                clean = everything.pixels[train[labelled]]
                inputs = torch.cat([whole.inputs(shown, column.name) for shown in (clean, _add_noise(clean))])
                whole.probes[column.name] = LinearProbe.fit(inputs, labels.repeat(2), len(kinds), decay=0.01)
        return whole

    def inputs(self, pictures: Tensor, attribute: str) -> Tensor:
        """Return the features [N, D] of pictures uint8 [N, 3, R, R] from which the probe of an attribute predicts."""
        colours = colour_histograms(pictures)
        return colours if attribute == "skin tone" else torch.cat([self.judge.features(pictures), colours], dim=1)

    def rows(self, model: str, edits: Sequence[Edit], pictures: Tensor) -> Iterator[Row]:
        """Yield a row of scores for each attribute, named by the model that has edited the pictures.

        `pictures`, uint8 [E, 3, R, R], are the results of the E `edits`.
        """
        for name in KINDS:
            chosen = [i for i, edit in enumerate(edits) if edit.attribute == name]
            if chosen:
                scores = self._scores(name, [edits[i] for i in chosen], pictures[chosen])
                yield {"model": model, "attribute": name, "count": len(chosen), **scores}

    def _scores(self, attribute: str, edits: Sequence[Edit], pictures: Tensor) -> dict[str, float]:
        everything = self.everything.pixels
        source, target = (torch.tensor([getattr(edit, end) for edit in edits]) for end in ("source", "target"))
        truth = everything[target]
        after, before = pixel_distance(pictures, truth), pixel_distance(everything[source], truth)
        targets = torch.tensor([KINDS[attribute].index(edit.after) for edit in edits])
        lite0 = self.judge.features(pictures)
        cosines = [_cosine(one, self.features[target], self.features) for one in (lite0, self.features[source])]
        flat = everything.float().flatten(1)
        rank = ranks(pictures.float().flatten(1), flat, target, "euclidean").double()
        return {
            "right": _share(self.probes[attribute].predict(self.inputs(pictures, attribute)) == targets),
            "closer": _share(after < before),
            "closer_lite0": _share(cosines[0] > cosines[1]),
            "beats_nearest": _share(after < self._nearest(source, target)),
            "left": float((after / before).mean()),
            "rank": float(rank.median()),
            "first": _share(rank == 1),
            "rank_lite0": float(ranks(lite0, self.features, target).double().median()),
        }

    def _nearest(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the pixel distance [E] of each target to the nearest picture but itself and the source.

        `source` and `target`, int64 [E], are indices of the whole data set.
        """
        flat = self.everything.pixels.float().flatten(1) / 255
        distances = torch.cdist(flat[target], flat) / flat.shape[1] ** 0.5
        distances[torch.arange(len(target)), target] = torch.inf
        distances[torch.arange(len(source)), source] = torch.inf
        return distances.amin(1)


def _add_noise(pictures: Tensor) -> Tensor:
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    return (pictures + NOISE * noise).round().clamp(0, 255).byte()


def pixel_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the root mean squared difference [N], in 0 to 1, of pictures a and b, uint8 [N, C, H, W] each."""
    return ((a.float() - b.float()) / 255).square().mean((1, 2, 3)).sqrt()


def _cosine(a: Tensor, b: Tensor, everything: Tensor) -> Tensor:
    centre = everything.mean(0)
    return torch.cosine_similarity(a - centre, b - centre)


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())
