"""Faces: every value is drawn, captions say what is drawn, and face i depends on its seed and i alone."""

import importlib
from itertools import combinations

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.data.faces import dataset
from ldm_kit.data.faces.dataset import SPACE, FacesConfig, load, load_all
from ldm_kit.data.faces.values import FACTORS, OPTIONS, PHRASINGS, UNSEEN, caption, hidden, options_of
from ldm_kit.data.images import Split
from ldm_kit.data.rendered import RenderedSet
from ldm_kit.data.sources import load as load_any
from tests.data.factor_checks import check_counterparts, check_records, check_split

for package in ("dicebear", "dicebear_styles", "resvg_py"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> FacesConfig:
    return FacesConfig(resolution=16, count=240, cache=tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="module")
def faces(config: FacesConfig) -> RenderedSet:
    return load_all(config)


@pytest.fixture(scope="module")
def split(config: FacesConfig, faces: RenderedSet) -> Split:
    assert len(faces)
    return load_any(config)


@pytest.fixture(scope="module")
def values_drawn() -> dict[str, torch.Tensor]:
    """For each factor, one face with each of its values, [V, 3, 64, 64]."""
    plain = {factor: values[0] for factor, values in FACTORS.items()}
    render = dataset._renderer(FacesConfig(resolution=64)).render
    return {factor: render([{**plain, factor: value} for value in values]) for factor, values in FACTORS.items()}


def test_records_and_split(faces, split):
    check_records(faces)
    check_split(split, faces, UNSEEN)
    assert faces.pictures([0, 239]).shape == (2, 3, 16, 16)
    assert 0.1 < len(split.compositional) / len(faces) < 0.25
    assert 0.02 < len(split.heldout) / len(faces) < 0.08
    assert all(faces.classes[record.label] == record.fields["hair"] for record in faces.records)


def test_counterparts(faces, split):
    check_counterparts(split, faces)


@pytest.mark.parametrize("factor", FACTORS)
def test_every_value_shows(values_drawn, factor):
    """Any two values of a factor differ in more than rounding where the rest of the face is equal."""
    for a, b in combinations(values_drawn[factor].int(), 2):
        assert (a - b).abs().max() > 12


def test_values_are_drawn_where_they_belong(values_drawn):
    """Rows from the top: hair, eyebrows, eyes, mouth, clothes; an edit changes nothing far above or below its part."""
    top = {"eyebrows": 20, "eyes": 28, "mouth": 38, "clothes": 46, "clothes colour": 46}
    bottom = {"eyebrows": 36, "eyes": 40, "mouth": 46}
    for factor, drawn in values_drawn.items():
        rows = (drawn.int() - drawn[:1].int()).abs().amax((0, 1, 3)).nonzero()
        assert rows.min() >= top.get(factor, 0), factor
        assert rows.max() < bottom.get(factor, 64), factor


def test_colours_are_those_of_their_names(values_drawn):
    """The middle of the lowest row is cloth."""
    cloth = dict(zip(FACTORS["clothes colour"], values_drawn["clothes colour"][:, :, 63, 32].tolist(), strict=True))
    for name, colour in cloth.items():
        wanted = OPTIONS["clothes colour"][name]
        assert "#{:02x}{:02x}{:02x}".format(*colour) == wanted, name
    lightness = values_drawn["skin"].float().mean((1, 2, 3)).tolist()
    assert lightness == sorted(lightness, reverse=True)
    assert cloth["red"][0] > 2 * max(cloth["red"][1:])
    assert cloth["green"][1] > 1.5 * max(cloth["green"][::2])
    assert cloth["blue"][2] > 2 * max(cloth["blue"][:2])


def test_hidden_values_are_those_that_cannot_be_told_apart():
    """Over beards and skins, `hidden` names a mouth exactly where another one gives nearly the same picture."""
    plain = {factor: values[0] for factor, values in FACTORS.items()}
    render = dataset._renderer(FacesConfig(resolution=64)).render
    for skin in FACTORS["skin"]:
        for beard in ("no beard", "full beard", "moustache and chin beard"):
            faces = [{**plain, "skin": skin, "beard": beard, "mouth": mouth} for mouth in FACTORS["mouth"]]
            pixels = render(faces).int()
            for i, values in enumerate(faces):
                nearest = min(int((pixels[i] - other).abs().max()) for j, other in enumerate(pixels) if j != i)
                assert (nearest < 10) == (hidden(values) == {"mouth"}), (skin, beard, values["mouth"], nearest)


def test_every_option_exists_in_toonhead():
    style = dataset._style()
    everything = [options_of({factor: value}) for factor, values in FACTORS.items() for value in values]
    chosen = {(name, value) for options in everything for name, value in options.items() if name.endswith("Variant")}
    components = {name: set(part.variants()) for name, part in style.components().items()}
    known = {(f"{name}Variant", v) for name, variants in components.items() for v in variants}
    assert chosen == {(name, value) for name, value in known if name not in ("bodyVariant", "headVariant")}


def test_captions_say_every_value():
    """Two faces that differ in one factor have different captions in every phrasing, and the words are the values'."""
    plain = {factor: values[0] for factor, values in FACTORS.items()}
    for phrasing in range(len(PHRASINGS)):
        for factor, values in FACTORS.items():
            texts = [caption({**plain, factor: value}, phrasing) for value in values]
            assert len({*texts}) == len(values)
            for value, text in zip(values, texts, strict=True):
                assert {*value.replace("one raised", "raised").split()} <= {*text.replace(",", "").split()}
    said = caption({**plain, "hair": "bun", "hair colour": "ginger", "clothes colour": "orange"}, 1)
    assert "ginger hair in a bun" in said
    assert "wearing an orange T-shirt" in said


def test_a_face_depends_on_seed_and_position_alone(faces, config, tmp_path):
    fewer = load_all(config.model_copy(update={"count": 20, "cache": tmp_path}))
    assert [*fewer.records] == [*faces.records][:20]
    assert torch.equal(fewer.pictures(range(20)), faces.pictures(range(20)))
    other = load_all(config.model_copy(update={"count": 20, "cache": tmp_path, "seed": 1}))
    assert not {record.name for record in other.records} & {record.name for record in fewer.records}
    assert {text.split(",")[0].split()[0] for text in (r.text for r in faces.records)} >= {"a", "portrait", "spiky"}


def test_faces_that_differ_look_different(faces):
    pixels = faces.pictures(range(len(faces))).flatten(1)
    assert len(pixels.unique(dim=0)) == len(pixels)


def test_there_are_as_many_faces_as_combinations():
    assert SPACE.size == 18_750_000
    with pytest.raises(ValueError, match="count"):
        FacesConfig(count=SPACE.size + 1)


def test_nothing_left_to_train_on_is_said(tmp_path):
    seed = next(s for s in range(99) if SPACE.combination(SPACE.draw(s, 1)[0]).items() >= UNSEEN[3].items())
    with pytest.raises(UserError, match=r"all 1 faces are held out; raise data\.count"):
        load(FacesConfig(count=1, resolution=8, seed=seed, cache=tmp_path))


def test_missing_packages_are_told(monkeypatch, tmp_path):
    def absent(name, *rest):
        if name == "dicebear":
            raise ImportError(name)
        return real(name, *rest)

    real = importlib.import_module
    monkeypatch.setattr(dataset.importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"needs the package dicebear-core; pip install 'ldm_kit\[faces\]'"):
        load_all(FacesConfig(cache=tmp_path))
