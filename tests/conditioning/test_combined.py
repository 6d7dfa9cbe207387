"""Several conditioners of one model: prompts of several parts, joined tensors, parts dropped alone, saved folders."""

import json

import pytest
import torch
from pydantic import BaseModel, ValidationError

from conditioning.base import Table
from conditioning.combined import CombinedConditioner
from conditioning.condition import ConditioningError
from conditioning.factory import ConditioningConfig, build, kind_in, load, save

TEXT = {"kind": "text", "width": 16, "layers": 1, "heads": 2, "vocabulary": 520, "length": 8}
CAPTIONS, STYLES, LABELS = ["a red house", "a cat", ""], ["oil", "pen", "oil"], [0, 1, 1]
CLASSES = ["house", "cat"]
TABLE = Table(CAPTIONS, LABELS, CLASSES, lambda name: STYLES if name == "style" else [""] * 3)


class Run(BaseModel):
    condition: ConditioningConfig


def config_of(*conditions):
    return Run.model_validate({"condition": [*conditions]}).condition


def built(*conditions) -> CombinedConditioner:
    torch.manual_seed(0)
    config = config_of(*conditions)
    conditioner = build(config.prompts, captions=config.prompts.values(TABLE), classes=CLASSES, time_width=24)
    assert isinstance(conditioner, CombinedConditioner)
    return conditioner.eval()


def test_prompts_have_a_part_for_each_source_in_order():
    assert config_of(TEXT, {"kind": "class"}).values(TABLE) == ["a red house || house", "a cat || cat", " || cat"]
    assert config_of({"kind": "class"}, TEXT).values(TABLE)[1] == "cat || a cat"
    assert config_of(TEXT, {**TEXT, "width": 8}).values(TABLE) == CAPTIONS  # two encoders of one caption
    styled = config_of(TEXT, {**TEXT, "column": "style"}, {"kind": "class"})
    assert styled.sources == ("caption", "style", "class")
    assert styled.values(TABLE)[0] == "a red house || oil || house"


@torch.no_grad()
def test_tokens_join_along_the_length_and_narrow_ones_end_in_zeros():
    both = built(TEXT, {"kind": "class", "width": 24})
    text, classes = both.parts
    tokens = both(**both.prepare(["a cat || cat"])).tokens
    assert (both.width, both.vector_width, tokens.shape) == (24, None, (1, 9, 24))
    assert torch.equal(tokens[:, :8, :16], text(**text.prepare(["a cat"])).tokens)
    assert not tokens[:, :8, 16:].any()
    assert torch.equal(tokens[:, 8:], classes(**classes.prepare(["cat"])).tokens)


@torch.no_grad()
def test_vectors_join_along_the_channels_beside_tokens_and_add_up_alone():
    vector = {"kind": "class", "form": "vector", "width": 24}
    beside = built(TEXT, vector, vector)
    assert (beside.width, beside.vector_width) == (16, 48)
    alone = built(vector, vector)
    inputs = alone.prepare(["cat", "house"])
    expected = sum(part(labels=torch.tensor([1, 0])).vector for part in alone.parts)
    assert torch.equal(alone(**inputs).vector, expected)
    assert (alone.width, alone.vector_width) == (None, 24)
    with pytest.raises(ConditioningError, match="cannot be added"):
        built(vector, {**vector, "width": 8})


@torch.no_grad()
def test_each_condition_is_dropped_alone():
    both = built(TEXT, {"kind": "class", "width": 16})
    inputs, null = both.prepare(["a cat || cat"] * 4), both.null_inputs()
    dropped = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    out = both.drop(inputs, null, dropped)
    expected = both.prepare(["a cat || cat", " || cat", "a cat ||", ""])
    assert all(torch.equal(out[name], value) for name, value in expected.items())
    assert both.drops == 2


def test_folders_do_not_collide_and_load_again(tmp_path):
    both = built(TEXT, {**TEXT, "column": "style"}, {"kind": "class", "width": 16})
    entries = save(both, tmp_path)
    assert {*entries} == {"text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "class_encoder"}
    assert kind_in(tmp_path) is CombinedConditioner
    again, prompts = load(tmp_path, whole=True).eval(), ["a cat || pen || cat"]
    assert torch.equal(again(**again.prepare(prompts)).tokens, both(**both.prepare(prompts)).tokens)
    assert {*again.trainable} == {"text_encoder", "text_encoder_2", "class_encoder"}
    first, second = (json.loads((tmp_path / f"tokenizer{end}/vocab.json").read_text()) for end in ("", "_2"))
    assert first != second


def test_a_structure_builds_the_same_networks(tmp_path):
    both = built(TEXT, {**TEXT, "column": "style"})
    again = CombinedConditioner.from_structure(json.loads(json.dumps(both.structure)))
    again.load_state_dict(both.state_dict())
    assert torch.equal(again.eval()(**again.prepare(["a || b"])).tokens, both(**both.prepare(["a || b"])).tokens)
    assert both.fits(config_of(TEXT, {**TEXT, "column": "style"}))
    assert not both.fits(config_of(TEXT, {"kind": "class"}))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a cat", r"the prompt 'a cat' has 1 part; expected 2: caption \|\| class"),
        ("a || b || c", "has 3 parts; expected 2"),
        ("a cat || dog", "unknown class 'dog'"),
        (3, "the prompt 3 has 1 part"),
    ],
)
def test_wrong_prompts_are_refused(prompt, message):
    with pytest.raises(ConditioningError, match=message):
        built(TEXT, {"kind": "class"}).prepare([prompt])


def test_captions_with_bars_are_refused():
    with pytest.raises(ConditioningError, match="which stands between the parts of a prompt"):
        config_of(TEXT, {"kind": "class"}).values(TABLE._replace(captions=["a || b", "c", "d"]))
    assert config_of(TEXT, {**TEXT, "width": 8}).values(TABLE._replace(captions=["a || b", "", ""]))[0] == "a || b"


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ([], "got 0 conditions; expected 1 to 4"),
        ([TEXT] * 5, "got 5 conditions"),
        ([{"kind": "none"}], "kind none is no condition"),
        ([{"kind": "grey"}, {"kind": "inpainting"}], "takes one picture as condition"),
        ([TEXT, {"kind": "combined", "conditions": [TEXT]}], "combined"),
    ],
)
def test_wrong_lists_are_refused(conditions, message):
    with pytest.raises(ValidationError, match=message):
        config_of(*conditions)


def test_a_column_that_no_picture_has_is_named():
    with pytest.raises(ConditioningError, match="is mood, but no picture"):
        config_of(TEXT, {**TEXT, "column": "mood"}).values(TABLE)


def test_a_list_of_one_is_that_one_and_a_picture_is_set_apart():
    config = config_of(TEXT, {"kind": "inpainting", "boxes": 0.5})
    assert config.prompts.kind == "text"
    assert config.picture.boxes == 0.5
    alone = Run.model_validate({"condition": {"kind": "grey"}}).condition
    assert (alone.prompts.kind, alone.picture.kind, alone.members) == ("none", "grey", ())
    assert Run.model_validate(Run(condition=config).model_dump(mode="json")).condition == config


def test_a_broken_list_of_conditioners_is_refused(tmp_path):
    (tmp_path / "conditioners.json").write_text('[{"kind": "text", "suffix": "/../x", "source": "caption"}]')
    with pytest.raises(ConditioningError, match="lists no conditioners"):
        load(tmp_path)
