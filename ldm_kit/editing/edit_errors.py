"""Edits of held-out pictures by a semantic model, each compared with the exact picture of that edit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import UserError
from ldm_kit.data.factors import FactorSet, Values, check_factor
from ldm_kit.diffusion import rng
from ldm_kit.editing import operations
from ldm_kit.editing.operations import Change
from ldm_kit.editing.options import MAX_STRENGTH, RoundTripSteps
from ldm_kit.metrics.edit_errors import EditError, edit_error
from ldm_kit.metrics.factor_reader import FactorReader
from ldm_kit.models.directions import TO, Directions
from ldm_kit.models.protocol import Semantic, normalise

_BLOCK = 8  # pictures that are encoded at once


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
        self, pictures: FactorSet, count: int, factors: Sequence[str] = (), seed: int = 0
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

        Raises:
            UserError: a factor that the pictures do not have.
        """
        for factor in factors:
            check_factor(pictures.factors, factor)
        errors: dict[str, list[EditError]] = {factor: [] for factor in factors or pictures.factors}
        starts = range(0, len(pictures), _BLOCK)
        blocks = (range(start, min(start + _BLOCK, len(pictures))) for start in starts)
        measured = (one for indices in blocks for one in self._block(pictures, indices, [*errors], seed))
        for factor, error in tqdm(islice(measured, count), total=count, desc="editing", unit="edit"):
            errors[factor].append(error)
        return errors

    def _block(
        self, pictures: FactorSet, indices: range, factors: Sequence[str], seed: int
    ) -> Iterator[tuple[str, EditError]]:
        """Yield factor and error of each edit of the pictures at `indices`."""
        originals = pictures.pictures(indices)
        z = self.model.encode(originals)
        x_T = self.model.invert(originals, z, steps=self.steps.invert_steps).float().cpu()
        for i, index in enumerate(indices):
            results = counterparts(pictures, index)
            edits = self._plan(pictures, index, [one for one in results if one.factor in factors], seed)
            if edits:
                moved = self._move(z[[i]].float().cpu(), edits)
                code_noise = x_T[[i]].expand(len(edits), *x_T.shape[1:])
                edited = self.model.decode(moved, code_noise, self.steps.steps, stop=self.steps.stop)
                yield from self._judge(pictures, index, edits, results, edited)

    def _plan(self, pictures: FactorSet, index: int, possible: Sequence[PlannedEdit], seed: int) -> list[PlannedEdit]:
        """Return one edit of each factor of a picture."""
        chosen: list[PlannedEdit] = []
        values = pictures.values(index)
        for factor in dict.fromkeys(edit.factor for edit in possible):
            edits = [
                edit
                for edit in possible
                if edit.factor == factor
                and factor not in pictures.hidden(values) | pictures.hidden({**values, factor: edit.after})
                and self._has_direction(edit)
            ]
            if edits:
                share = float(rng.uniform(seed, f"edit {factor}", torch.tensor([index])))
                chosen.append(edits[int(share * len(edits))])
        return chosen

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
        self,
        pictures: FactorSet,
        index: int,
        edits: Sequence[PlannedEdit],
        results: Mapping[PlannedEdit, Tensor],
        edited: Tensor,
    ) -> Iterator[tuple[str, EditError]]:
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


def counterparts(pictures: FactorSet, index: int) -> dict[PlannedEdit, Tensor]:
    """Return the exact picture, uint8 [C, R, R], of every edit of one factor of a picture, as far as they exist.

    Args:
        pictures: pictures that know their factors.
        index: index of the picture.
    """
    results: dict[PlannedEdit, Tensor] = {}
    for factor, before in pictures.values(index).items():
        for value in pictures.factors[factor]:
            if value != before:
                try:
                    results[PlannedEdit(factor, before, value)] = pictures.counterpart(index, factor, value)
                except UserError:  # OpenMoji does not draw every role in every skin tone and gender
                    continue
    return results
