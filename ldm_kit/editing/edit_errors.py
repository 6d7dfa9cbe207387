"""Edits of held-out pictures by a semantic model, each compared with the exact picture of that edit."""

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
    """An edit of one picture: a factor and its values before and after."""

    factor: str
    before: str
    after: str

    @property
    def direction(self) -> str:
        """Name of the direction from the one value to the other."""
        return f"{self.factor}: {self.before}{TO}{self.after}"


@dataclass(frozen=True, eq=False)
class EditJudge:
    """What edits are made by, and judged by.

    Attributes:
        model: the semantic model.
        directions: its directions, from value to value of each factor.
        reader: reads the factors of pictures; not trained on those that are edited.
        steps: numbers of DDIM steps.
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
        """Edit `count` times, and compare each edit with its exact picture; return the errors by factor.

        Pictures are taken in order; of each, every factor is edited once, to a value drawn from those that the picture
        can have, that the result shows, and that there is a direction to. The result has fewer than `count`
        edits if the pictures do not suffice.

        Args:
            pictures: held-out pictures.
            count: number of edits.
            factors: the factors to edit; empty: all.
            seed: seed of the values.
            seen: digests (`factors.pixel_digests`) of the pictures that the model was trained on; an edit whose exact
                picture is one of these is not made.

        Raises:
            UserError: a factor that the pictures do not have.
        """
        for factor in factors:
            check_factor(pictures.factors, factor)
        errors: dict[str, list[EditError]] = {factor: [] for factor in factors or pictures.factors}
        planned = (edit for i in range(len(pictures)) for edit in self._plan(pictures, i, [*errors], seed, seen))
        plans = [(i, [edit for _, edit in some]) for i, some in groupby(islice(planned, count), key=itemgetter(0))]
        with tqdm(total=sum(len(edits) for _, edits in plans), desc="editing", unit="edit") as bar:
            for factor, error in self._measure(pictures, plans):
                errors[factor].append(error)
                bar.update()
        return errors

    def _measure(
        self, pictures: FactorSet, plans: Sequence[tuple[int, Sequence[PlannedEdit]]]
    ) -> Iterator[tuple[str, EditError]]:
        """Yield factor and error of each edit; `plans` has the index of each picture with its edits."""
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
            yield from self._judge(pictures, index, edits, edited)

    def _plan(
        self, pictures: FactorSet, index: int, factors: Sequence[str], seed: int, seen: frozenset[bytes]
    ) -> Iterator[tuple[int, PlannedEdit]]:
        """Yield the picture's index with one edit of each factor that can be edited."""
        values = pictures.values(index)
        for factor in (factor for factor in factors if factor in values):
            edits = [
                edit
                for edit, picture in counterparts(pictures, index, [factor]).items()
                if factor not in pictures.hidden(values) | pictures.hidden({**values, factor: edit.after})
                and self._has_direction(edit)
                and not (seen and pixel_digest(picture) in seen)
            ]
            if edits:
                share = float(rng.uniform(seed, f"edit {factor}", torch.tensor([index])))
                yield index, edits[int(share * len(edits))]

    def _has_direction(self, edit: PlannedEdit) -> bool:
        try:
            self.directions[edit.direction]
        except UserError:
            return False
        return True

    def _move(self, z: Tensor, edits: Sequence[PlannedEdit]) -> Tensor:
        """Return the code z [1, D] of a picture, moved by each of K edits, [K, D]."""
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
        """Return the number of each factor's value, int64 [F]; -1 for a factor that is hidden or lacking."""
        return torch.tensor([
            options.index(values[factor]) if factor in values and factor not in hidden else -1
            for factor, options in self.reader.factors.items()
        ])  # fmt: skip


def counterparts(pictures: FactorSet, index: int, factors: Sequence[str]) -> dict[PlannedEdit, Tensor]:
    """Return the exact picture, uint8 [C, R, R], of every edit of one factor of a picture.

    Edits whose exact picture does not exist are left out, and so are those that change no pixel.

    Args:
        pictures: pictures that know their factors.
        index: index of the picture.
        factors: the factors to edit, of those that the picture has.
    """
    results: dict[PlannedEdit, Tensor] = {}
    values, original = pictures.values(index), pictures.picture(index)
    for factor, value in ((name, value) for name in factors for value in pictures.factors[name]):
        if value != values[factor]:
            try:
                result = pictures.counterpart(index, factor, value)
            except UserError:  # OpenMoji does not draw every role in every skin tone and gender
                continue
            if not torch.equal(result, original):
                results[PlannedEdit(factor, values[factor], value)] = result
    return results
