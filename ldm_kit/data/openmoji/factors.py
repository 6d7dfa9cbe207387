"""The two factors of OpenMoji's people, skin tone and gender, and the drawings that differ in one of them alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.factors import Values, check_edit
from ldm_kit.data.images import InMemory
from ldm_kit.data.openmoji.names import TONES

FACTORS = {"skin tone": ("none", *TONES), "gender": ("person", "man", "woman")}


@dataclass(frozen=True, eq=False)
class OpenMojiSet(InMemory):
    """OpenMoji's drawings with known factors (a `FactorSet`): skin tone and gender of a single drawn person or hand."""

    @property
    def factors(self) -> Mapping[str, tuple[str, ...]]:
        """All values that each factor can have: {"skin tone": values, "gender": values}."""
        return FACTORS

    def values(self, index: int) -> dict[str, str]:
        """Return {"skin tone": value, "gender": value} of the drawing at `index`, without factors that it lacks.

        A yellow drawing has the skin tone "none" if its role (such as astronaut) is also drawn in skin tones. Drawings
        of things, and of people who differ in skin tone or gender, have neither factor.
        """
        fields = self.records[index].fields
        if "mixed" in (fields["skin_tone"], fields["gender"]):
            return {}
        tone = fields["skin_tone"] or ("none" if fields["role"] in self._toned_roles else "")
        return {factor: value for factor, value in {"skin tone": tone, "gender": fields["gender"]}.items() if value}

    def counterpart(self, index: int, factor: str, value: str) -> Tensor:
        """Return the drawing of the same role (such as astronaut) in another skin tone or gender, uint8 [3, R, R].

        R is the number of pixels along each side.

        Args:
            index: index of the drawing that is edited.
            factor: "skin tone" or "gender".
            value: the skin tone or gender after the edit.

        Raises:
            UserError: no factor or value has this name, the drawing lacks the factor, or OpenMoji has no such drawing.
        """
        check_edit(FACTORS, factor, value)
        own, record = self.values(index), self.records[index]
        if factor not in own:
            raise UserError(
                f"{record.text!r} has no {factor}, so no counterpart; its factors: {', '.join(own) or 'none'}"
            )
        target = self._by_values.get(self._key(index, {**own, factor: value}))
        if target is None:
            raise UserError(f"OpenMoji has no counterpart of {record.text!r} whose {factor} is {value}")
        return self.pixels[target]

    def hidden(self, values: Values) -> frozenset[str]:
        """Return the empty set: every drawing shows the skin tone and the gender that it has."""
        return frozenset()

    @cached_property
    def _toned_roles(self) -> set[str]:
        return {record.fields["role"] for record in self.records if record.fields["skin_tone"]}

    @cached_property
    def _by_values(self) -> dict[tuple[str, ...], int]:
        """Index of the first drawing with a given role, skin tone and gender; these three are the key."""
        indices: dict[tuple[str, ...], int] = {}
        for index in range(len(self.records)):
            if values := self.values(index):
                indices.setdefault(self._key(index, values), index)
        return indices

    def _key(self, index: int, values: Mapping[str, str]) -> tuple[str, ...]:
        return (self.records[index].fields["role"], *(values.get(factor, "") for factor in FACTORS))
