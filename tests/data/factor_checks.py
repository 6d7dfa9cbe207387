"""What holds for every picture set that knows its factors."""

import torch

from ldm_kit.data.factors import Values, known_factors, shows_pair
from ldm_kit.data.images import Split
from ldm_kit.data.rendered import RenderedSet


def check_records(pictures: RenderedSet) -> None:
    """Every record's fields are values of the factors, no picture and no caption of one phrasing occurs twice."""
    assert len({record.name for record in pictures.records}) == len(pictures)
    assert len({tuple(record.fields.values()) for record in pictures.records}) == len(pictures)
    for record in pictures.records:
        assert {*record.fields} == {*pictures.factors}
        assert all(value in pictures.factors[factor] for factor, value in record.fields.items())
        assert record.text == record.text.strip()
        assert record.text.isascii()
        assert "{" not in record.text


def check_split(split: Split, everything: RenderedSet, pairs: tuple[Values, ...]) -> None:
    """Parts are disjoint and whole; training shows every value but no pair, and compositional pictures show a pair."""
    assert split.compositional is not None
    names = [{record.name for record in part.records} for part in split]
    assert sum(map(len, names)) == len(set.union(*names)) == len(everything)
    assert all(shows_pair(record, pairs) for record in split.compositional.records)
    assert not any(shows_pair(record, pairs) for part in (split.train, split.heldout) for record in part.records)
    for factor, values in everything.factors.items():
        assert {record.fields[factor] for record in split.train.records} == {*values}, factor
    for pair in pairs:
        assert shows_pair(split.compositional.records[0], pairs)
        assert any(shows_pair(record, [pair]) for record in split.compositional.records), pair
    assert sorted(factor for pair in pairs for factor in pair) == sorted(everything.factors), "each factor once"


def check_counterparts(split: Split, everything: RenderedSet) -> None:
    """A counterpart has the pixels of a render of the edited values; that of the value it has is the picture itself."""
    held = known_factors(split.heldout)
    for factor, values in held.factors.items():
        own = held.values(0)
        assert torch.equal(held.counterpart(0, factor, own[factor]), held.picture(0)), factor
        other = next(value for value in values if value != own[factor])
        edited = held.counterpart(0, factor, other)
        assert torch.equal(edited, everything.renderer.render([{**own, factor: other}])[0])
        assert not torch.equal(edited, held.picture(0)), factor
        assert (edited.dtype, edited.shape) == (torch.uint8, held.picture(0).shape)
