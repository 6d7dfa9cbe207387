"""Data sets on the Hub: which files are downloaded, once, and read as local ones are; offline is said in a sentence."""

import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from ldm_kit.config import UserError, check
from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.hub import HubConfig, local_config
from ldm_kit.data.sources import MixConfig, load
from ldm_kit.inference.card_facts import source_of
from ldm_kit.methods.diffae import DiffAERun
from tests.data.archive_files import encoded, greys

COMMIT = "0a" * 20


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))


class Hub:
    """A repository, which lies in a folder, and the calls that were made."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls, self.lost = root, [], set()

    def list_repo_files(self, name, *, repo_type, revision):
        self.calls.append("list")
        assert (name, repo_type, revision) == ("owner/name", "dataset", COMMIT)
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())

    def download(self, name, *, repo_type, revision, local_dir, allow_patterns):
        names = self.list_repo_files(name, repo_type=repo_type, revision=revision)
        self.calls[-1] = "download"
        for file in names:
            if file not in self.lost and any(fnmatch(file, pattern) for pattern in allow_patterns):
                (Path(local_dir) / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.root / file, Path(local_dir) / file)
        return str(local_dir)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "remote")
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda _, *a, **k: hub.list_repo_files(*a, **k))
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.download)
    greys(hub.root / "shards" / "train-0.tar", 0, 6)
    greys(hub.root / "shards" / "validation-0.tar", 6, 2)
    greys(hub.root / "other" / "train-0.tar", 100, 1)
    for name in ("folder/cat/0.png", "folder/dog/[1]*.png", "folder/.hidden/9.png"):
        (hub.root / name).parent.mkdir(parents=True, exist_ok=True)
        (hub.root / name).write_bytes(encoded(int("".join(c for c in name if c.isdigit()))))
    for name in ("folder/cat/0.txt", "loader.py", "folder/script.py", "README.md"):
        (hub.root / name).write_text("a cat")
    return hub


def config(source="webdataset", path="shards", **more):
    data = {"source": source, "path": path, "resolution": 8, **more}
    return check(HubConfig, {"source": "hub", "name": "owner/name", "revision": COMMIT, "data": data}, "x.yaml")


def files(config):
    root = local_config(config).path
    while root.name != COMMIT:
        root = root.parent
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_shards_are_downloaded_once_and_read_as_local_ones(hub):
    split = load(config())
    assert [record.text for record in split.train.records] == [f"grey {i}" for i in range(6)]
    assert [record.text for record in split.heldout.records] == ["grey 6", "grey 7"]
    assert hub.calls == ["list", "download"]
    assert files(config()) == ["files.json", "shards/train-0.tar", "shards/validation-0.tar"]
    again = load(config())
    assert hub.calls == ["list", "download"], "no second question"
    assert again.train.fingerprint == split.train.fingerprint


def test_a_pattern_or_a_file_names_some_of_them(hub):
    assert len(load(config(path="shards/train-0.tar", heldout=0.0)).train) == 6
    assert files(config(path="shards/train-0.tar")) == ["files.json", "shards/train-0.tar"]
    assert len(load(config(path="shards/{validation,train}-0.tar")).train) == 6
    assert hub.calls == ["list", "download"] * 2


def test_a_folder_of_pictures_brings_captions_and_no_code(hub):
    split = load(config("folder", "folder", heldout=0.0))
    assert [(record.name, record.text) for record in split.train.records] == [
        ("cat/0.png", "a cat"),
        ("dog/[1]*.png", "dog"),
    ]
    assert files(config("folder", "folder")) == [
        "files.json",
        "folder/cat/0.png",
        "folder/cat/0.txt",
        "folder/dog/[1]*.png",
    ]


def test_other_files_of_the_same_commit_are_asked_for_by_themselves(hub):
    load(config())
    load(config("folder", "folder", heldout=0.0))
    assert hub.calls == ["list", "download"] * 2
    load(config())
    load(config("folder", "folder", heldout=0.0))
    assert hub.calls == ["list", "download"] * 2


def test_a_file_that_lacks_is_downloaded_again(hub):
    root = local_config(config()).path
    (root / "train-0.tar").unlink()
    assert len(load(config()).train) == 6
    assert hub.calls == ["list", "download"] * 2


def test_what_does_not_arrive_is_said_and_tried_again(hub):
    hub.lost = {"shards/train-0.tar"}
    with pytest.raises(UserError, match=r"shards/train-0.tar of the data set owner/name did not arrive"):
        load(config())
    hub.lost = set()
    assert len(load(config()).train) == 6


def test_paths_without_files_of_the_kind_are_refused(hub):
    with pytest.raises(UserError, match=r"owner/name has no files for source parquet under shards; look at https://"):
        load(config("parquet", "shards"))
    with pytest.raises(UserError, match="under shard;"):
        load(config(path="shard"))


def test_without_a_network_the_reason_is_one_sentence(hub, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Name or service\nnot known")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", unreachable)
    with pytest.raises(UserError) as error:
        load(config())
    assert str(error.value).startswith("cannot download the data set owner/name at 0a0a0a0a0a0a, which is not complete")
    assert "(ConnectionError: Name or service not known); expected a network" in str(error.value)
    assert "\n" not in str(error.value)


def test_offline_a_complete_copy_suffices(hub, monkeypatch):
    load(config())
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: pytest.fail("asked"))
    assert len(load(config()).train) == 6


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"revision": "main"}, "is no commit; expected its 40 hex digits"),
        ({"name": "name"}, "names no data set; expected owner/name"),
        ({"name": "../x"}, "names no data set"),
        ({"data": {"source": "parquet", "path": "../x"}}, "leads outside; expected a path in the repository"),
        ({"data": {"source": "parquet", "path": "/etc"}}, "leads outside"),
        ({"data": {"source": "faces"}}, "data.source"),
        ({"revision": None}, "revision"),
    ],
)
def test_names_that_pin_nothing_are_refused(change, sentence):
    tree = {
        "source": "hub",
        "name": "owner/name",
        "revision": COMMIT,
        "data": {"source": "parquet", "path": "x"},
        **change,
    }
    with pytest.raises(UserError) as error:
        check(HubConfig, tree, "x.yaml")
    assert sentence in str(error.value)


def test_it_is_a_part_of_a_mix_and_named_on_a_card(hub, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "0.png").write_bytes(encoded(9))
    own = {"source": "folder", "path": str(tmp_path / "own"), "resolution": 8, "heldout": 0.0}
    parts = [{"share": 1, "data": config().model_dump()}, {"share": 1, "data": own}]
    mixed = check(MixConfig, {"source": "mix", "parts": parts}, "x.yaml")
    train = load(mixed).train
    assert (len(train), mixed.resolution) == (7, 8)
    assert torch.equal(train.picture(6), load(FolderConfig(**own)).train.picture(0))
    assert "the data set `owner/name` on the Hugging Face Hub, at commit 0a0a0a0a0a0a" in source_of(mixed).what


def test_its_buckets_are_those_of_the_data_it_names():
    """Checks of a run read `data.buckets`: that a method takes them, and that networks can reduce their sizes."""
    bucketed = config(buckets={"step": 4})
    assert bucketed.buckets is not None
    assert bucketed.buckets.step == 4
    assert config().buckets is None
    share = {"share": 1, "data": bucketed.model_dump()}
    with pytest.raises(UserError, match="part 1 has buckets, but the pictures of a mix are squares"):
        check(MixConfig, {"source": "mix", "parts": [share, share]}, "x.yaml")
    common = {"method": "diffae", "unet": {}, "run": "x", "data": bucketed.model_dump()}
    common |= {"train": {"steps": 1, "batch_size": 1}}
    with pytest.raises(UserError, match=r"data\.buckets is for method latent"):
        check(DiffAERun, common, "x.yaml")
