"""From labels to named directions: what is learned from what, measured on what, and found by which name."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.data.factors import FactorSpace
from ldm_kit.data.images import InMemory, Record, Split, subset, unit_hash
from ldm_kit.data.openmoji.factors import OpenMojiSet
from ldm_kit.data.rendered import RenderedSet, Renderer
from ldm_kit.data.shapes.dataset import ShapesConfig, load
from ldm_kit.editing import built_in, labels
from ldm_kit.editing import learn as learning
from ldm_kit.editing.fit_directions import FitOptions, learn, learn_few, paired_indices
from ldm_kit.editing.labels import Column
from ldm_kit.editing.options import TrainingExamples
from ldm_kit.models.directions import Directions
from tests.editing.planted import FIRST, SECOND, D, planted

NAMES = [f"{i:04d}.png" for i in range(600)]


def words(marks, yes, no):
    return tuple(yes if mark else no for mark in marks.tolist())


@pytest.fixture(scope="module")
def learned():
    z, first, second = planted(600)
    columns = [Column("smile", words(first, "1", "-1")), Column("hair", words(second, "dark", "light"))]
    return learn(z, columns, NAMES, "key")


def test_two_factors_are_found_by_name(learned):
    assert learned.names == ["smile", "hair: dark", "hair: light"]
    assert all(record.auroc > 0.99 and record.average_precision > 0.99 for record in learned.records)
    assert torch.allclose(learned.vectors.norm(dim=1), torch.ones(3))
    assert float(learned["smile"].vector @ FIRST) > 0.95
    assert float(learned["hair: dark"].vector @ SECOND) > 0.95
    assert float(learned["hair: light"].vector @ SECOND) < -0.95
    assert abs(float(learned["smile"].vector @ SECOND)) < 0.15


def test_the_typical_strength_leads_from_mean_to_mean(learned):
    """The factors' means are 2 apart along the direction, in units of sqrt(D)."""
    assert learned["smile"].typical == pytest.approx(2 / D**0.5, rel=0.05)


def test_held_out_pictures_are_not_fitted(learned):
    z, first, _ = planted(600)
    record = learned.records[0]
    used = torch.tensor([unit_hash("probe", name) >= 0.2 for name in NAMES])
    assert (record.positives, record.others) == (int((first & used).sum()), int((~first & used).sum()))
    assert 0.7 * 600 < int(used.sum()) < 0.9 * 600
    everything = learn(z, [Column("smile", words(first, "1", "0"))], NAMES, "key", FitOptions(heldout=0.0)).records[0]
    assert (everything.positives + everything.others, everything.auroc) == (600, None)


def test_equal_names_stay_on_one_side():
    """Labels by noise alone: with each picture twice under one name nothing can be read; split apart it could be."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(100, 60, generator=draw).repeat(2, 1)
    marks = (torch.rand(100, generator=draw) < 0.5).repeat(2)
    column = [Column("luck", words(marks, "1", "0"))]
    together = learn(z, column, [str(i) for i in range(100)] * 2, "key", FitOptions(heldout=0.4)).records[0]
    apart = learn(z, column, [str(i) for i in range(200)], "key", FitOptions(heldout=0.4)).records[0]
    assert together.auroc < 0.7 < apart.auroc


def test_unknown_values_are_left_out():
    z, first, _ = planted(600)
    values = tuple(None if i % 3 == 0 else v for i, v in enumerate(words(first, "1", "0")))
    record = learn(z, [Column("smile", values)], NAMES, "key", FitOptions(heldout=0.0)).records[0]
    assert record.positives + record.others == 400


def test_rare_attributes_are_learned_by_shrinkage(learned):
    z, first, _ = planted(600)
    rare = tuple("1" if mark and i < 20 else "0" if not mark else None for i, mark in enumerate(first.tolist()))
    record = learn(z, [Column("smile", rare)], NAMES, "key").records[0]
    assert (record.estimator, record.positives < 20) == ("few", True)
    assert {record.estimator for record in learned.records} == {"classifier"}


def test_the_means_estimator():
    z, first, _ = planted(600)
    column = Column("smile", words(first, "1", "0"))
    found = learn(z, [column], NAMES, "key", FitOptions(estimator="means", heldout=0.0))
    gap = z[first].mean(0) - z[~first].mean(0)
    assert torch.allclose(found["smile"].vector, gap / gap.norm(), atol=1e-5)
    assert found.records[0].estimator == "means"


def test_from_value_to_value_without_pairs_is_the_difference_of_means(learned):
    z, _, second = planted(600)
    there, back = learned["hair: light > dark"], learned["Hair:dark>light"]
    assert float(there.vector @ SECOND) > 0.9
    assert torch.allclose(there.vector, -back.vector)
    assert there.typical == pytest.approx(2 / D**0.5, rel=0.1)
    assert float(there.logit(z[second].mean(0))) > 0 > float(there.logit(z[~second].mean(0)))


def test_pairs_give_the_exact_step():
    """Pairs that differ by one step alone, among subjects that differ far more."""
    draw = torch.Generator().manual_seed(0)
    subjects, step = torch.randn(40, D, generator=draw) * 3, FIRST * 0.5
    subjects[:, 1] += torch.linspace(-1, 1, 40)
    z = torch.cat([subjects, subjects + step, torch.randn(30, D, generator=draw) + 5])
    values = ("light",) * 40 + ("dark",) * 40 + ("dark",) * 30
    pairs = tuple(str(i % 40) for i in range(80)) + (None,) * 30
    found = learn(z, [Column("tone", values, pairs)], [p or f"x{i}" for i, p in enumerate(pairs)], "key")
    assert found.records[-1].name == "tone: dark > light"
    record = found.records[-1]
    assert record.estimator == "pairs"
    assert 20 < record.positives < 40, "counterparts of which one is held out are not fitted"
    assert record.auroc is not None
    there = found["tone: light > dark"]
    assert torch.allclose(there.vector, FIRST, atol=1e-4)
    assert there.typical == pytest.approx(0.5 / D**0.5, rel=1e-4)
    assert torch.allclose(found["tone: dark > light"].vector, -FIRST, atol=1e-4)
    light, dark = z[:40], z[40:80]
    assert float(there.logit(dark).mean()) > 0 > float(there.logit(light).mean()), "turned round, with its bias"


def test_pairs_are_rows_of_one_name():
    column = Column("tone", ("a", "b", "a", "c", "b", "b", None), ("x", "y", "y", "x", None, "x", "x"))
    assert paired_indices(column, "a", "b").tolist() == [[0, 5], [2, 1]]
    assert paired_indices(column, "b", "c").tolist() == [[5, 3]]


def test_openmoji_attributes_and_pairs():
    rows = [("astronaut", "man", "light"), ("astronaut", "woman", "light"), ("astronaut", "man", ""), ("cup", "", "")]
    records = [
        Record(str(i), "", 0, {"role": role, "gender": gender, "skin_tone": tone, "group": "people"})
        for i, (role, gender, tone) in enumerate(rows)
    ]
    gender, tone, group = labels.from_openmoji(InMemory(records, ["people"], torch.zeros(4, 3, 8, 8).byte(), "f"))
    assert gender.values == ("man", "woman", "man", None)
    assert tone.values == ("light", "light", "none", None), "a yellow astronaut has no tone, a cup has nothing to tone"
    assert paired_indices(gender, "man", "woman").tolist() == [[0, 1]]
    assert paired_indices(tone, "none", "light").tolist() == [[2, 0]]
    assert group.values == ("people",) * 4


def test_factors_are_attributes_and_pairs():
    space = FactorSpace({"size": ("small", "large"), "colour": ("red", "blue")})
    records = [Record(str(i), "", None, space.combination(i)) for i in range(4)]
    renderer = Renderer("squares", [], space.factors, lambda values: torch.zeros(len(values), 3, 8, 8).byte())
    pictures = RenderedSet(records, (), [torch.zeros(4, 3, 8, 8).byte()], "f", renderer)
    size, colour = labels.from_factors(subset(pictures, [3, 0, 1]))
    assert (size.name, size.values) == ("size", ("large", "small", "small"))
    assert (colour.name, colour.values) == ("colour", ("blue", "red", "blue"))
    assert paired_indices(colour, "red", "blue").tolist() == [[1, 2]]
    assert paired_indices(size, "small", "large").tolist() == [[2, 0]]


def test_a_built_in_set_brings_its_factors(monkeypatch, tmp_path):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path))
    few = partial(ShapesConfig, count=40)
    monkeypatch.setattr(built_in, "_CONFIGS", {"shapes": few})
    model, examples = SimpleNamespace(resolution=8, channels=3), TrainingExamples(dataset="shapes")
    pictures, columns, groups = learning._labelled_pictures(model, examples)
    assert pictures.fingerprint == load(few(resolution=8)).train.fingerprint
    assert [column.name for column in columns] == ["floor", "wall", "object", "scale", "shape", "orientation"]
    assert groups == [record.name for record in pictures.records]
    model.channels = 1
    with pytest.raises(UserError, match="pictures of shapes are in colour, but this model's have 1 channels"):
        learning._labelled_pictures(model, examples)


ROLES = ("astronaut", "cook", "judge")


def emoji() -> OpenMojiSet:
    """Three roles, each once as a man and as a woman, but for the last, which is a man alone."""
    people = [(role, gender) for role in ROLES for gender in ("man", "woman")][:-1]
    records = [
        Record(f"{gender} {role}", "", 0, {"role": role, "gender": gender, "skin_tone": "dark", "group": "people"})
        for role, gender in people
    ]
    pixels = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    return OpenMojiSet(records, ["people"], pixels, "f")


def test_no_two_roles_are_a_pair(monkeypatch):
    """A man who is an astronaut and a woman who is a cook differ in more than their gender."""
    pictures = emoji()
    monkeypatch.setattr(built_in.sources, "load", lambda config: Split(pictures, pictures, None))
    model = SimpleNamespace(resolution=8, channels=3)
    of_set = built_in.load_built_in(model, "openmoji").columns
    assert [column.name for column in of_set] == ["gender", "skin tone", "group"]
    for columns in (of_set, labels.from_factors(pictures)):
        (gender,) = [column for column in columns if column.name == "gender"]
        assert gender.paired_rows == {("man", "woman"): [(0, 1), (2, 3)], ("woman", "man"): [(1, 0), (3, 2)]}


def test_openmoji_is_one_set_by_two_flags(monkeypatch):
    asked = []
    data = SimpleNamespace(split=SimpleNamespace(train="pictures"), columns=[], names=[])
    monkeypatch.setattr(learning, "load_built_in", lambda model, name: asked.append(name) or data)
    for examples in (TrainingExamples(openmoji=True), TrainingExamples(dataset="openmoji")):
        assert learning._labelled_pictures(None, examples) == ("pictures", [], [])
    assert asked == ["openmoji", "openmoji"]


def test_few_examples_become_a_direction():
    z, first, _ = planted(200)
    found = learn_few(z[first][:12], z[~first][:12], "smile", "key")
    assert found.records[0].auroc > 0.9
    assert float(found["smile"].vector @ FIRST) > 0.6
    alone = learn_few(z[first][:12], None, "smile", "key")
    assert (alone.records[0].auroc, alone.records[0].others) == (None, 0)


def test_saved_and_joined(learned, tmp_path):
    learned.save(tmp_path)
    again = Directions.load(tmp_path, "key")
    assert again.records == learned.records
    for name in ("vectors", "means", "scales", "biases"):
        assert torch.equal(getattr(again, name), getattr(learned, name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directions.json", "directions.safetensors"]
    z, first, _ = planted(200)
    both = again.merge(learn_few(z[first][:5], z[~first][:5], "smile", "key"))
    assert both.names == ["hair: dark", "hair: light", "smile"]
    assert both["smile"].vector.tolist() != learned["smile"].vector.tolist()
    assert torch.equal(both["hair: light"].vector, learned["hair: light"].vector)


def test_unknown_names(learned):
    for name in ("smil", "hair: green", "hair: dark > dark", "hair: dark > green"):
        with pytest.raises(UserError, match=f"unknown attribute '{name}'; known are smile, hair: dark, hair: light"):
            learned[name]


def test_spoilt_directions(learned, tmp_path):
    with pytest.raises(UserError, match=r"holds no directions; learn some first with edit\.py learn"):
        Directions.load(tmp_path, "key")
    learned.save(tmp_path)
    with pytest.raises(UserError, match="were learned with another model"):
        Directions.load(tmp_path, "other")
    listed = json.loads((tmp_path / "directions.json").read_text())
    listed["directions"].pop()
    (tmp_path / "directions.json").write_text(json.dumps(listed))
    with pytest.raises(UserError, match="do not belong together"):
        Directions.load(tmp_path, "key")
    (tmp_path / "directions.json").write_text("{")
    with pytest.raises(UserError, match="are damaged"):
        Directions.load(tmp_path, "key")


def test_too_little_to_learn_from():
    z, _, _ = planted(50)
    with pytest.raises(UserError, match="nothing to learn from 50 pictures"):
        learn(z, [Column("smile", ("1",) * 50)], NAMES[:50], "key")
    with pytest.raises(UserError, match="'smile' has 1 examples; expected 2 or more"):
        learn_few(z[:1], None, "smile", "key")
    with pytest.raises(UserError, match="are no different from the others"):
        learn_few(z[:5], z[:5], "smile", "key")


TABLES = [
    ("a.csv", "file_name,b\nz.png,1\ny.png,1\nx.png,1\nw.png,1", "labels 4 .*: z.png, y.png, x.png, ..."),
    ("a.csv", "file_name,smile\na.png,1\nb.png", "line 3: expected 2 values as in the header"),
    ("a.csv", "file_name,smile\na.png,1\nb.png,0,1", "line 3: expected 2 values as in the header"),
    ("a.csv", "name,smile\na.png,1", "line 2: no file_name"),
    ("a.csv", "file_name,smile\na.png,1\na.png,0", "names 'a.png' a second time"),
    ("a.csv", "file_name,smile", "holds no row"),
    ("a.csv", "file_name,smile\na.png,1\nb.png,1", "has no attribute"),
    ("a.txt", "file_name,smile\na.png,1", "ends in .txt; expected labels as .csv or .jsonl"),
    ("a.jsonl", '{"file_name": "a.png"}\n[1]', "line 2: expected a JSON object"),
    ("a.jsonl", '{"file_name": "a.png", "x": 1', "line 1: expected a JSON object"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "said"), TABLES)
def test_wrong_tables(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        labels.from_file(tmp_path / name, ["a.png", "b.png"])


def test_a_csv_with_holes(tmp_path, caplog):
    """An empty value and a picture without a row are unknown; a column of many values is a name."""
    names = [f"{i:02d}.png" for i in range(40)]
    rows = [f"{name},{i % 2},{'' if i == 3 else 'red' if i % 3 else 'blue'},name {i}" for i, name in enumerate(names)]
    (tmp_path / "a.csv").write_text("\ufefffile_name, smile,colour,title\n" + "\r\n".join(rows[:39]), encoding="utf-8")
    smile, colour = labels.from_file(tmp_path / "a.csv", names)
    assert (smile.name, smile.binary, smile.values[:2], smile.values[39]) == ("smile", True, ("0", "1"), None)
    assert (colour.binary, colour.values[3], colour.kinds) == (False, None, ["blue", "red"])
    assert "left out the column title, which has 39 values" in caplog.text
    assert "1 of 40 pictures have no label and are left out, first 39.png" in caplog.text


def test_jsonl_with_chosen_columns_and_pairs(tmp_path):
    rows = [{"file_name": f"{i}.png", "smile": bool(i % 2), "mood": ["a", "b"][i % 2], "who": i // 2} for i in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    names = [row["file_name"] for row in rows]
    (mood,) = labels.from_file(tmp_path / "a.jsonl", names, columns=["mood"], pair="who")
    assert paired_indices(mood, "a", "b").tolist() == [[0, 1], [2, 3]]
    smile, *_ = labels.from_file(tmp_path / "a.jsonl", names)
    assert smile.positive("yes") == [False, True, False, True]
    with pytest.raises(UserError, match="has no column 'moods'; it has smile, mood, who"):
        labels.from_file(tmp_path / "a.jsonl", names, columns=["moods"])


def test_a_rare_attribute_is_not_lost_to_the_held_out_share():
    """Two pictures have it, both would be held out: enough in all, so all are fitted and none measured."""
    names = [f"{i}.png" for i in range(60)]
    out = [i for i, name in enumerate(names) if unit_hash("probe", name) < 0.2][:2]
    values = tuple("1" if i in out else "0" for i in range(60))
    record = learn(planted(60)[0], [Column("rare", values)], names, "key").records[0]
    assert (record.positives, record.others, record.auroc) == (2, 58, None)
