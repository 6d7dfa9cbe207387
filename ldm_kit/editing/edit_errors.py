"""Edits of held-out pictures by a semantic model, each compared with the exact picture of that edit.

The pictures are of a rendered data set that knows the factors of each picture (`data.factors`), such as hair colour.
The exact picture of an edit is rendered with another value of one factor, and all else unchanged.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import UserError
from ldm_kit.data.factors import FactorSet, Values, check_factor, pixel_digest
from ldm_kit.data.peers import agreed, everyone
from ldm_kit.diffusion import rng
from ldm_kit.editing import operations
from ldm_kit.editing.operations import Change
from ldm_kit.editing.options import MAX_STRENGTH, RoundTripSteps
from ldm_kit.memory import BatchSize
from ldm_kit.metrics.edit_errors import EditError, edit_error
from ldm_kit.metrics.factor_reader import FactorReader
from ldm_kit.models.directions import TO, Directions
from ldm_kit.models.protocol import Semantic, normalise


class PlannedEdit(NamedTuple):
    """An edit that changes one factor of a picture, such as hair colour, from the value `before` to `after`."""

    factor: str
    before: str
    after: str

    @property
    def direction(self) -> str:
        """Name of the direction from value to value, such as "hair colour: black > blond"."""
        return f"{self.factor}: {self.before}{TO}{self.after}"


Plan = tuple[int, Sequence[PlannedEdit]]  # index of a picture, and its edits


@dataclass(frozen=True, eq=False)
class EditJudge:
    """Edits pictures by a semantic model, and measures how far each edit is from the exact picture of the edit.

    Attributes:
        model: the semantic model, which encodes and decodes pictures.
        directions: the model's attribute directions, among them those from one value of a factor to another.
        reader: a classifier of every factor of a picture, not trained on the pictures to edit.
        steps: numbers of DDIM steps, of inversion and of decoding.
        scale: strength of an edit in units of the direction's typical strength.
    """

    model: Semantic
    directions: Directions
    reader: FactorReader
    steps: RoundTripSteps
    scale: float = 1.0

    def measure(
        self,
        pictures: FactorSet,
        count: int,
        factors: Sequence[str] = (),
        seed: int = 0,
        seen: frozenset[bytes] = frozenset(),
    ) -> dict[str, list[EditError]]:
        """Make `count` edits, and compare each edited picture with the exact picture of that edit.

        Several processes edit a share of the pictures each, and all return the errors of all edits.

        Pictures are taken in order, and each factor of a picture is edited once. Its new value is random among those
        that have a direction from the old value and an exact picture that differs from the original. A factor that is
        hidden in the original or in the exact picture is not edited.

        Args:
            pictures: held-out pictures, and what is known of their factors.
            count: number of edits; fewer are made if there are too few pictures.
            factors: names of the factors to edit; empty: all.
            seed: seed of the random new values.
            seen: digests (`factors.pixel_digests`) of the pictures that the model was trained on; an edit whose exact
                picture is one of these is not made.

        Returns:
            By the factor's name, the `EditError` of each edit of the factor: whether the reader (a classifier) finds
            the new value, how many other factors it finds unchanged, how near the edited picture is to the exact one.

        Raises:
            UserError: `factors` names a factor that the pictures do not have.
        """
        for factor in factors:
            check_factor(pictures.factors, factor)
        errors: dict[str, list[EditError]] = {factor: [] for factor in factors or pictures.factors}
        planned = (edit for i in range(len(pictures)) for edit in self._plan(pictures, i, [*errors], seed, seen))
        plans = [(i, [edit for _, edit in some]) for i, some in groupby(islice(planned, count), key=itemgetter(0))]
        group = everyone()
        shares = agreed(group, lambda: self._measure_all(pictures, plans[group.rank :: group.size]))
        for i in range(len(plans)):
            for factor, error in shares[i % group.size][i // group.size]:
                errors[factor].append(error)
        return errors

    def _measure_all(self, pictures: FactorSet, plans: Sequence[Plan]) -> list[list[tuple[str, EditError]]]:
        """Return factor and error of each edit in `plans`, plan by plan, with a progress bar."""
        with tqdm(total=sum(len(edits) for _, edits in plans), desc="editing", unit="edit") as bar:
            measured: list[list[tuple[str, EditError]]] = []
            for errors in self._measure(pictures, plans):
                measured.append([*errors])
                bar.update(len(measured[-1]))
        return measured

    def _measure(self, pictures: FactorSet, plans: Sequence[Plan]) -> Iterator[Iterator[tuple[str, EditError]]]:
        """Make the edits in `plans`; yield, for each plan, the factor and error of each of its edits."""
        size = BatchSize.for_pictures(None, pictures.resolution)

        def encode(rows: range) -> list[tuple[Tensor, Tensor]]:
            originals = pictures.pictures([plans[row][0] for row in rows])
            z = self.model.encode(originals, size)
            x_T = self.model.invert(originals, z, self.steps.invert_steps, size)
            return [*zip(z.float().cpu().split(1), x_T.float().cpu().split(1), strict=True)]

        codes = chain.from_iterable(size.batches(len(plans), encode))
        for (index, edits), (z, x_T) in zip(plans, codes, strict=True):
            noise = x_T.expand(len(edits), *x_T.shape[1:])
            edited = self.model.decode(self._move(z, edits), noise, self.steps.steps, size, stop=self.steps.stop)
            yield self._judge(pictures, index, edits, edited)

    def _plan(
        self, pictures: FactorSet, index: int, factors: Sequence[str], seed: int, seen: frozenset[bytes]
    ) -> Iterator[tuple[int, PlannedEdit]]:
        """Yield (`index`, edit) for each factor that can be edited in the picture at `index`; see `measure`."""
        values, position = pictures.values(index), torch.tensor([index])
        for factor in (factor for factor in factors if factor in values.keys() - pictures.hidden(values)):
            edits = [
                edit
                for edit in edits_of(pictures, index, factor)
                if factor not in pictures.hidden({**values, factor: edit.after}) and self._has_direction(edit)
            ]
            order = {edit: float(rng.uniform(seed, f"edit {factor} {edit.after}", position)) for edit in edits}
            for edit in sorted(edits, key=order.__getitem__):  # pictures are rendered one by one, until one will do
                picture = exact_picture(pictures, index, edit)
                if picture is not None and not (seen and pixel_digest(picture) in seen):
                    yield index, edit
                    break

    def _has_direction(self, edit: PlannedEdit) -> bool:
        try:
            self.directions[edit.direction]
        except UserError:
            return False
        return True

    def _move(self, z: Tensor, edits: Sequence[PlannedEdit]) -> Tensor:
        """Return K copies of a picture's code z [1, D], each moved by one of the K `edits`: [K, D]."""
        own = normalise(self.model, z)[0]
        moved: list[Tensor] = []
        for edit in edits:
            direction = self.directions[edit.direction].at_code(own)
            strength = max(-MAX_STRENGTH, min(MAX_STRENGTH, direction.typical * self.scale))
            moved.append(operations.move_codes(self.model, z, [Change(direction, strength)]))
        return torch.cat(moved)

    def _judge(
        self, pictures: FactorSet, index: int, edits: Sequence[PlannedEdit], edited: Tensor
    ) -> Iterator[tuple[str, EditError]]:
        results = counterparts(pictures, index, [*pictures.values(index)])
        candidates, places = torch.stack([*results.values()]), {edit: i for i, edit in enumerate(results)}
        for edit, picture in zip(edits, edited, strict=True):
            readings = self.reader.read(torch.stack([picture, results[edit]]))
            values = {**pictures.values(index), edit.factor: edit.after}
            labels = self._labels(values, pictures.hidden(values))
            number = [*self.reader.factors].index(edit.factor)
            original = pictures.picture(index)
            yield (
                edit.factor,
                edit_error(
                    picture, original, candidates, places[edit], readings=readings, labels=labels, factor=number
                ),
            )

    def _labels(self, values: Values, hidden: frozenset[str]) -> Tensor:
        """Return the index of each factor's value among those that the factor can have, int64 [F].

        `values` has a picture's values by factor, `hidden` the factors that the picture does not show. The index is -1
        for a hidden factor, and for one that is not in `values`.
        """
        return torch.tensor([
            options.index(values[factor]) if factor in values and factor not in hidden else -1
            for factor, options in self.reader.factors.items()
        ])  # fmt: skip


def counterparts(pictures: FactorSet, index: int, factors: Sequence[str]) -> dict[PlannedEdit, Tensor]:
    """Return the exact picture, uint8 [C, R, R], of every edit that changes one factor of one picture.

    Edits whose exact picture does not exist are left out, and so are those that change no pixel.

    Args:
        pictures: pictures of a set whose factors are known.
        index: index of the picture to edit.
        factors: names of the factors to edit; the picture has a value of each.
    """
    edits = [edit for factor in factors for edit in edits_of(pictures, index, factor)]
    results = {edit: exact_picture(pictures, index, edit) for edit in edits}
    return {edit: picture for edit, picture in results.items() if picture is not None}


def edits_of(pictures: FactorSet, index: int, factor: str) -> list[PlannedEdit]:
    """Return the edits of the picture at `index` that change `factor` to each of its other values."""
    before = pictures.values(index)[factor]
    return [PlannedEdit(factor, before, value) for value in pictures.factors[factor] if value != before]


def exact_picture(pictures: FactorSet, index: int, edit: PlannedEdit) -> Tensor | None:
    """Return the exact picture of an edit of the picture at `index`, uint8 [C, R, R].

    None: there is no such picture (OpenMoji does not draw every role in every skin tone and gender), or it is equal to
    the original.
    """
    try:
        result = pictures.counterpart(index, edit.factor, edit.after)
    except UserError:
        return None
    return None if torch.equal(result, pictures.picture(index)) else result
