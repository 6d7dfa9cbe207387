"""The captions or labels of a run's pictures, as its condition takes them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from conditioning.base import Table
from conditioning.factory import ConditioningConfig
from ldm_kit.data.images import Record, Split
from ldm_kit.data.records import compact, labels_of, others_of, texts_of


def split_conditions(config: ConditioningConfig, data: Split) -> tuple[Sequence[str | int], Sequence[str | int]]:
    """Return the captions or labels, whichever `config` needs, of the training set and of the held-out set of `data`.

    For text, a picture may lack a caption (""), and all held-out pictures may lack one, but not all training pictures.
    For classes, every picture needs a label.

    Raises:
        ConditioningError: `config` asks for classes and a picture has no label, or it asks for text and no training
            picture has a caption.
    """
    train, heldout = data.train.records, data.heldout.records
    config.values(_table(data.train.classes, train))
    values = config.values(_table(data.train.classes, train, heldout))
    return compact(values[: len(train)]), compact(values[len(train) :])


class SeveralCaptions(NamedTuple):
    """All captions of N pictures, of which some have several."""

    values: Sequence[str | int]  # the M captions, one picture after the other
    counts: Sequence[int]  # number of captions of each of the N pictures


def several_captions(config: ConditioningConfig, data: Split) -> SeveralCaptions | None:
    """Return all captions of the training set; None if no picture has several, or `config` takes no captions."""
    records, classes = data.train.records, data.train.classes
    others = others_of(records) if any(each.source == "caption" for each in config.members) else []
    if not any(others):
        return None
    each = [replace(record, text=text) for record in records for text in record.captions]
    return SeveralCaptions(compact(config.values(_table(classes, each))), [1 + len(more) for more in others])


def _table(classes: Sequence[str], *records: Sequence[Record]) -> Table:
    texts, labels = chain.from_iterable(map(texts_of, records)), chain.from_iterable(map(labels_of, records))

    def column(name: str) -> list[str]:
        return [record.fields.get(name, "") for each in records for record in each]

    return Table([*texts], [*labels], classes, column)
