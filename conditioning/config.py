"""Base classes of the configs of conditioners, and the values of a data set from which they take theirs."""

from abc import ABC
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from pydantic import BaseModel, Field

from conditioning.condition import ConditioningError

if TYPE_CHECKING:
    from conditioning.pictures import PictureCondition


class Table(NamedTuple):
    """What the N pictures of a data set bring along: captions, classes, and the columns of their metadata."""

    captions: Sequence[str]  # "" where a picture has none
    labels: Sequence[int | None]  # class indices, None where a picture has none
    classes: Sequence[str]  # class names that the labels index
    column: Callable[[str], Sequence[str]]  # the values of a column by its name, "" where a picture has none


class ConditionerConfig(BaseModel, ABC, frozen=True, extra="forbid", allow_inf_nan=False):
    """Base of the `condition:` section of a run's config; each conditioner's subclass adds its own fields.

    A subclass narrows `kind` to a Literal with a default; a run's config selects the conditioner by this value.
    `unconditional` is True if models with this config take no condition.
    """

    kind: str
    dropout: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of samples trained without this condition, beside the share condition_dropout trained "
        "without any; left out: condition_dropout if there are several conditions, else 0",
    )

    unconditional: ClassVar[bool] = False
    """Whether the model is unconditional, so that guidance and prompts make no sense."""

    source: ClassVar[str] = "caption"
    """Where the values come from, as messages call it; conditions of equal sources share the part of a prompt."""

    reads_pictures: ClassVar[bool] = False
    """Whether the values are the training pictures themselves, so that no part of a prompt stands for them."""

    @property
    def takes_pictures(self) -> bool:
        """Whether a user gives pictures: an image to embed, or a picture condition."""
        return self.picture is not None or any(each.reads_pictures for each in self.members)

    @property
    def prompts(self) -> "ConditionerConfig":
        """The config of the captions or classes, without that of a picture: here this config."""
        return self

    @property
    def picture(self) -> "PictureCondition | None":
        """The picture condition; here None."""
        return None

    @property
    def members(self) -> "tuple[ConditionerConfig, ...]":
        """The configs of the conditions that are dropped each by itself: here this config alone, if it is one."""
        return () if self.unconditional else (self,)

    def values(self, table: Table) -> list[str | int]:
        """Return the values of N pictures that `Conditioner.prepare` takes; here `raw_values` of captions and labels.

        Raises:
            ConditioningError: the data set lacks what the condition needs.
        """
        return self.raw_values(table.captions, table.labels)

    def raw_values(self, captions: Sequence[str], labels: Sequence[int | None]) -> list[str | int]:
        """Return the values of a data set's N pictures that `Conditioner.prepare` takes: here the captions.

        Subclasses that condition on classes return the labels instead.

        Args:
            captions: captions of N pictures, "" where a picture has none.
            labels: class indices of N pictures, None where a picture has none.

        Raises:
            ConditioningError: the data set lacks captions or labels that the condition needs.
        """
        if captions and not any(captions):
            raise ConditioningError(
                f"condition.kind is {self.kind}, but no picture has a caption; expected text in metadata.jsonl, or "
                "a text file beside each picture (0.txt beside 0.png)"
            )
        return list(captions)


class CaptionConfig(ConditionerConfig, frozen=True, extra="forbid"):
    """Base of configs of text encoders, which may read another text than the caption."""

    column: str | None = Field(
        default=None, min_length=1, description="metadata column with the text; left out: the caption"
    )

    @property
    def source(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where the text comes from: "caption", or the name of the column."""
        return self.column or "caption"

    def values(self, table: Table) -> list[str | int]:
        """Return the captions of N pictures, or their texts in `column`; "" where a picture has none.

        Raises:
            ConditioningError: no picture has a caption, or a text in the column.
        """
        if self.column is None:
            return self.raw_values(table.captions, table.labels)
        texts = [*table.column(self.column)]
        if texts and not any(texts):
            raise ConditioningError(f"condition.column is {self.column}, but no picture's metadata has such a text")
        return [*texts]
