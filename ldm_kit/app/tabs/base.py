"""A tab of the page: its fields, for which models it is shown, and what its button computes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from gradio.components import Component

from ldm_kit.app.models import OpenModel
from ldm_kit.app.options import AppOptions

Values = Mapping[str, Any]
"""Values of a tab's fields by name, as its components give them; a picture is the path of a file."""


class Tab(ABC):
    """One tab; a new one is a subclass and a line in `ldm_kit.app.page.TABS`."""

    key: ClassVar[str]
    """Unique name, from which the ids of its elements are made."""

    title: ClassVar[str]
    """What stands on the tab; of two with one title, a model has at most one."""

    button: ClassVar[str]
    """What stands on its button."""

    live: ClassVar[tuple[str, ...]] = ()
    """Fields whose change runs the tab as its button does, where `is_live` agrees."""

    @abstractmethod
    def available(self, model: OpenModel) -> bool:
        """Return whether a model can do what the tab offers."""

    @abstractmethod
    def build(self) -> dict[str, Component]:
        """Lay the tab's fields out in the present column of the page, and return them by name."""

    @abstractmethod
    def updates(self, model: OpenModel) -> dict[str, dict[str, Any]]:
        """Return new properties of fields for a model, by the field's name: values, ranges, visibility."""

    @abstractmethod
    def run(self, model: OpenModel, values: Values, out: Path, options: AppOptions) -> str:
        """Compute pictures and write them to the folder `out`; return sentences on them, or "".

        Raises:
            UserError: a field has a wrong value, which the message says.
        """

    def is_live(self, values: Values) -> bool:
        """Return whether the tab runs as soon as one of the fields `live` changes."""
        return False

    def slots(self, values: Values, model: OpenModel) -> dict[str, dict[str, Any]]:
        """Return new properties of fields that follow from the first of `live`, such as the labels of sliders."""
        return {}

    def summary(self, values: Values) -> Values:
        """Return the values by which a result is described in the history, by names that a user reads."""
        return values
