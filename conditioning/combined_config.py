"""Config of several conditions of one model, and how the values of several of them are written as one prompt."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Field, field_validator

from conditioning.base import ConditionerConfig, Table
from conditioning.condition import ConditioningError
from conditioning.none import NoConfig
from conditioning.pictures import PictureCondition
from conditioning.registry import COMBINED, CONDITIONERS, PICTURES

MOST = 4  # most conditions of one model
BAR = "||"
"""Text between the parts of a prompt, as in "a red house || cat"."""

if TYPE_CHECKING:
    _Member = ConditionerConfig
else:
    _Member = Annotated[
        Union[(*(conditioner.Config for conditioner in CONDITIONERS), *PICTURES)], Field(discriminator="kind")
    ]


def _as_tuple(conditions: Any) -> Any:
    return tuple(conditions) if isinstance(conditions, list) else conditions


class CombinedConfig(ConditionerConfig, frozen=True, extra="forbid"):
    """Config of several conditions: captions, classes, and at most one picture. A list in a config means this kind."""

    kind: Literal["combined"] = Field(COMBINED, description="several conditions; a list of conditions means the same")
    conditions: Annotated[tuple[_Member, ...], BeforeValidator(_as_tuple)] = Field(
        description="the conditions; guidance adds one after the other in this order"
    )

    @field_validator("conditions")
    @classmethod
    def _fit(cls, conditions: tuple[Any, ...]) -> tuple[Any, ...]:
        if not 1 <= len(conditions) <= MOST:
            raise ValueError(f"got {len(conditions)} conditions; expected 1 to {MOST}")
        if len([each for each in conditions if each.picture is not None]) > 1:
            raise ValueError("a model takes one picture as condition; expected at most one of its kinds")
        given = [each.picture is not None for each in conditions], [each.reads_pictures for each in conditions]
        if sum(given[1]) > 1:
            raise ValueError("a model embeds one image; expected kind image at most once")
        if all(map(any, given)):
            raise ValueError("kind image and a picture to be concatenated would both be --image; expected one of them")
        if idle := [each for each in conditions if each.picture is None and type(each).unconditional]:
            raise ValueError(f"kind {idle[0].kind} is no condition; leave it out")
        return conditions

    @property
    def members(self) -> tuple[ConditionerConfig, ...]:
        """The configs of the captions and classes, without that of a picture."""
        return tuple(each for each in self.conditions if each.picture is None)

    @property
    def prompts(self) -> ConditionerConfig:
        """The config of the captions and classes alone: of kind none, of one kind, or of several."""
        members = self.members
        if len(members) > 1:
            return self if self.picture is None else CombinedConfig(kind=COMBINED, conditions=members)
        return members[0] if members else NoConfig()

    @property
    def picture(self) -> PictureCondition | None:
        """The picture condition; None: there is none."""
        return next((each.picture for each in self.conditions if each.picture is not None), None)

    @property
    def sources(self) -> tuple[str, ...]:
        """Where the members take their values, such as ("caption", "class"), each named once, in order."""
        return tuple(dict.fromkeys(each.source for each in self.members if not each.reads_pictures))

    def values(self, table: Table) -> list[str | int]:
        """Return a prompt for each picture: the values of the different sources, with || between them.

        Raises:
            ConditioningError: pictures lack values, or a value has || in it.
        """
        first = {each.source: each for each in reversed(self.members) if not each.reads_pictures}
        columns = [_texts(first[source].values(table), table) for source in self.sources]
        if len(columns) > 1:
            _check_no_bar(columns)
        return [f" {BAR} ".join(row) for row in zip(*columns, strict=True)]


def _texts(values: Sequence[str | int], table: Table) -> list[str]:
    return [value if isinstance(value, str) else table.classes[value] for value in values]


def _check_no_bar(columns: Sequence[Sequence[str]]) -> None:
    if barred := [text for column in columns for text in column if BAR in text]:
        raise ConditioningError(f"{barred[0]!r:.80} has {BAR} in it, which stands between the parts of a prompt")


def parts_of(prompts: Sequence[str | int], sources: Sequence[str]) -> list[list[str | int]]:
    """Return the values of each source, one list with N values for each source, from N prompts.

    With one source a prompt is its value. With more, a prompt is their values with || between them; the empty prompt
    has empty values.

    Raises:
        ConditioningError: a prompt has another number of parts.
    """
    if len(sources) == 1:
        return [[*prompts]]
    rows = [_split(prompt, sources) for prompt in prompts]
    return [[row[index] for row in rows] for index in range(len(sources))]


def _split(prompt: str | int, sources: Sequence[str]) -> list[str | int]:
    if prompt == "":
        return [""] * len(sources)
    values: list[str | int] = [text.strip() for text in str(prompt).split(BAR)]
    if len(values) != len(sources):
        raise ConditioningError(
            f"the prompt {prompt!r:.80} has {len(values)} {'part' if len(values) == 1 else 'parts'}; expected "
            f"{len(sources)}: {f' {BAR} '.join(sources)} (an empty part is the null condition)"
        )
    return values
