"""What a condition needs is asked of the whole set and of the training set, never of the held-out set alone."""

import re

import pytest
import torch

from conditioning.base import ConditioningError
from conditioning.text import TextConfig
from ldm_kit.config import UserError
from ldm_kit.data.images import InMemory, Record, Split
from ldm_kit.methods.conditions import Conditions, split_conditions
from ldm_kit.methods.train import open_method
from tests.training.helpers import TEXT, settings


def pictures(texts, labels=None, side=16, classes=()):
    labels = labels or [None] * len(texts)
    records = [Record(f"{i}.png", text, label) for i, (text, label) in enumerate(zip(texts, labels, strict=True))]
    return InMemory(records, list(classes), torch.zeros(len(texts), 3, side, side, dtype=torch.uint8), f"{texts}")


def test_held_out_pictures_may_all_lack_a_caption():
    split = Split(pictures(["a cat"] * 22), pictures(["", ""]), None)
    conditions = Conditions.open(TextConfig(), split)
    assert ([*conditions.train], [*conditions.heldout]) == (["a cat"] * 22, ["", ""])
    assert conditions.examples(2) == ["", ""]
    conditions.build(None)
    train, heldout = conditions.prepare()
    assert (len(train["ids"]), len(heldout["ids"])) == (22, 2)


def test_captions_that_are_cut_are_counted_once(caplog):
    """Not once for each set, and not again whenever they are sampled."""
    long = "a cat " * 40
    split = Split(pictures(["a cat", long]), pictures([long]), None)
    conditions = Conditions.open(TextConfig(), split)
    conditioner = conditions.build(None)
    conditions.prepare()
    conditioner.prepare(conditions.examples(1))
    said = [record.getMessage() for record in caplog.records if "longer" in record.getMessage()]
    assert said == ["2 of 3 captions are longer than 32 tokens; their ends are cut"]


def test_a_training_set_without_captions_is_refused():
    split = Split(pictures(["", ""]), pictures(["a cat"]), None)
    with pytest.raises(ConditioningError, match="no picture has a caption"):
        split_conditions(TextConfig(), split)


@pytest.mark.parametrize(
    ("heldout", "message"),
    [
        (pictures(["a"], side=32), "data.heldout has resolution 32, data.train 16"),
        (pictures(["a"], classes=["dog"]), "data.heldout has classes ['dog'], data.train []"),
    ],
)
def test_parts_of_a_program_s_split_must_be_of_one_kind(heldout, message, tmp_path):
    config = settings(TEXT, tmp_path, tmp_path / "run")
    with pytest.raises(UserError, match=re.escape(message)):
        open_method(config, Split(pictures(["a"] * 4), heldout, None))
