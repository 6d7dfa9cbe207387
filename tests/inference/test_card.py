"""Model cards and uploads: what a card states, and what an upload asks and refuses."""

import inspect
import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from ldm_kit import config as configs
from ldm_kit.cli import app
from ldm_kit.config import UserError, check
from ldm_kit.data.sources import MixConfig
from ldm_kit.inference.card import card_text, write_card
from ldm_kit.inference.card_facts import read_facts, source_of
from ldm_kit.inference.push import push
from ldm_kit.methods import check_run
from ldm_kit.models.manifest import verify_folder

SAVED = ["model_index.json", "unet/diffusion_pytorch_model.safetensors"]


def run_of(folder: Path, data=None, *, kind="StableDiffusionPipeline", **more) -> Path:
    """Write what a finished run's folder holds, with a network of 12 numbers."""
    tree = {
        "run": str(folder),
        "data": data or {"source": "faces", "resolution": 64},
        "autoencoder": str(folder.parent / "ae"),
        "condition": {"kind": "text"},
        "unet": {},
        "train": {"steps": 1200, "batch_size": 64},
        **more,
    }
    model = folder / "model"
    (model / "unet").mkdir(parents=True)
    (folder / "pictures").mkdir()
    configs.write(check_run(tree, "run"), folder / "config.yaml")
    save_file({"a": torch.zeros(3, 4)}, model / SAVED[1])
    (model / SAVED[0]).write_text(json.dumps({"_class_name": kind}))
    contents = {name: (model / name).read_bytes() for name in SAVED}
    files = {name: {"size": len(data), "sha256": sha256(data).hexdigest()} for name, data in contents.items()}
    (model / "manifest.json").write_text(json.dumps({"files": files}))
    lines = [{"step": 600, "heldout_loss": 0.5}, {"step": 1200, "heldout_loss": 0.25}, {"step": 1200, "lr": 0.1}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for step in (600, 1200):
        Image.new("RGB", (step // 100, 4)).save(folder / "pictures" / f"samples-{step:08d}.png")
    return folder


@pytest.fixture
def run(tmp_path):
    return run_of(tmp_path / "ldm")


def metadata(text):
    return yaml.safe_load(text.split("---")[1])


def test_a_card_states_what_the_run_records(run):
    measures = {
        "fd": {"title": "FD of lite0", "value": 192.12, "interval": [167.6, 220.2]},
        "recall": {"title": "recall", "value": 0.9737, "interval": None},
    }
    reference = {"count": 266, "split": "heldout"}
    evaluation = {"reference": reference, "features": {"name": "lite0"}, "measures": measures}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    text = card_text(read_facts(run), "me/faces")
    assert metadata(text)["license"] == "cc-by-4.0"
    assert metadata(text)["library_name"] == "diffusers"
    assert metadata(text)["pipeline_tag"] == "text-to-image"
    assert "# me/faces" in text
    assert "12 parameters (12 in unet)" in text
    assert "1,200 steps of 64 pictures" in text
    assert "loss 0.25. One training." in text
    assert "Against 266 pictures of the split heldout, features of lite0" in text
    assert "| FD of lite0 | 192.1 | [167.6, 220.2] |" in text
    assert "| recall | 0.9737 | - |" in text
    assert "Johan Melin" in text
    assert 'StableDiffusionPipeline.from_pretrained("me/faces")' in text


def test_a_card_does_not_show_the_folders_of_its_author(run):
    assert str(run.parent) not in card_text(read_facts(run), "me/faces")


IMAGE = {"kind": "image", "model": "open_clip:ViT-B-32//home/me/clip.safetensors"}
PRETRAINED = {"kind": "pretrained", "model": "/home/me/encoders/minilm"}


@pytest.mark.parametrize(
    ("condition", "tag", "sentence"),
    [
        (IMAGE, "image-to-image", "conditioned on the embedding of a picture:"),
        ([IMAGE, PRETRAINED], "text-to-image", "a picture and on text, by a frozen pretrained encoder:"),
        ([{"kind": "class"}, {"kind": "grey"}], "image-to-image", "conditioned on classes and on a grey picture:"),
        ({"kind": "super_resolution"}, "image-to-image", "conditioned on a small picture:"),
        ({"kind": "class"}, "unconditional-image-generation", "conditioned on classes:"),
        ({"kind": "none"}, "unconditional-image-generation", "pictures of 64 px: 12 parameters"),
    ],
)
def test_a_card_says_what_the_model_is_conditioned_on(tmp_path, condition, tag, sentence):
    facts = read_facts(run_of(tmp_path / "ldm", kind="ldm_kit.Pipeline", condition=condition, flip=False))
    text = card_text(facts, "me/x", "cc0-1.0")
    assert metadata(text)["pipeline_tag"] == tag
    assert sentence in text
    assert "/home/me" not in text
    assert ("open_clip:ViT-B-32/clip.safetensors" in text) == ("image" in str(condition))
    assert ("The text encoder `minilm` is not part of it" in text) == ("pretrained" in str(condition))


def test_a_model_of_own_classes_is_not_said_to_open_in_diffusers(tmp_path):
    text = card_text(read_facts(run_of(tmp_path / "ldm", kind="ldm_kit.Pipeline")), "me/faces")
    assert metadata(text)["library_name"] == "ldm_kit"
    assert "plain diffusers" not in text
    assert "load(snapshot_download" in text


def test_own_pictures_have_the_licence_that_the_author_states(tmp_path):
    facts = read_facts(run_of(tmp_path / "ldm", {"source": "folder", "path": str(tmp_path), "resolution": 64}))
    text = card_text(facts, "me/photos")
    assert metadata(text)["license"] == "unknown"
    assert "licence of the pictures is not recorded" in text
    assert metadata(card_text(facts, "me/photos", "cc0-1.0"))["license"] == "cc0-1.0"


def test_a_card_is_written_beside_the_model_which_stays_verified(run):
    path = write_card(read_facts(run), "me/faces")
    assert path == run / "model" / "README.md"
    with Image.open(run / "model" / "samples.png") as grid:
        assert grid.width == 12  # the last grid
    verify_folder(run / "model")
    assert write_card(read_facts(run / "model"), "other").read_text().count("# other") == 1


def test_a_card_of_another_hand_is_not_overwritten(run):
    (run / "model" / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"README\.md was not written by ldm-kit"):
        write_card(read_facts(run), "me/faces")
    assert (run / "model" / "README.md").read_text() == "mine"


class Hub:
    """A Hub in memory, in place of huggingface_hub.HfApi; `files` None: the repository does not exist."""

    def __init__(self, files=None):
        self.files, self.made, self.uploaded = files, [], []

    def whoami(self):
        return {"name": "me"}

    def repo_exists(self, repo_id):
        return self.files is not None

    def list_repo_files(self, repo_id):
        return self.files

    def create_repo(self, repo_id, *, private, exist_ok):
        self.made.append((repo_id, private))

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
        self.uploaded += sorted(allow_patterns)


FILES = ["README.md", "manifest.json", "model_index.json", "samples.png", "unet/diffusion_pytorch_model.safetensors"]


def upload(run, hub, *, licence=None, private=False, answer=None):
    questions = []

    def confirm(question):
        questions.append(question)
        assert answer is not None, question
        return answer

    address = push(read_facts(run), "me/faces", licence=licence, private=private, confirm=confirm, api=hub)
    return address, questions


def test_a_new_repository_gets_the_model_and_its_card_alone(run):
    (run / "model" / "secret.txt").write_text("not a part of the model")
    hub = Hub()
    assert upload(run, hub, private=True) == ("https://huggingface.co/me/faces", [])
    assert hub.made == [("me/faces", True)]
    assert hub.uploaded == FILES


@pytest.mark.parametrize("method", [name for name in vars(Hub) if not name.startswith("_")])
def test_the_hub_in_memory_takes_what_the_real_client_takes(method):
    ours, real = (inspect.signature(getattr(client, method)).parameters for client in (Hub, HfApi))
    assert ours.keys() <= real.keys()


@pytest.mark.parametrize("present", [[], [".gitattributes"]])
def test_an_empty_repository_is_filled_without_a_question(run, present):
    hub = Hub(present)
    upload(run, hub)
    assert (hub.made, hub.uploaded) == ([], FILES)


def test_files_are_replaced_after_a_question(run):
    hub = Hub([".gitattributes", "model_index.json", "notes.txt"])
    _, questions = upload(run, hub, answer=True)
    assert questions == ["me/faces on the Hub has 2 files, of which 1 are replaced. Go on?"]
    assert hub.uploaded == FILES


def test_no_means_that_nothing_is_uploaded_or_written(run):
    hub = Hub(["model_index.json"])
    with pytest.raises(UserError, match="nothing was uploaded"):
        upload(run, hub, answer=False)
    assert hub.uploaded == []
    assert not (run / "model" / "README.md").exists()


def test_pictures_of_an_unknown_licence_are_not_uploaded_without_one(tmp_path):
    run, hub = run_of(tmp_path / "ldm", {"source": "folder", "path": str(tmp_path), "resolution": 64}), Hub()
    with pytest.raises(UserError, match=r"the licence of the pictures .* is not known; say it by --licence"):
        upload(run, hub)
    assert hub.made == []
    upload(run, hub, licence="cc0-1.0")
    assert hub.uploaded == FILES


@pytest.mark.parametrize("method", ["whoami", "repo_exists", "create_repo", "upload_folder"])
def test_what_the_hub_refuses_is_one_sentence(run, monkeypatch, method):
    def refuse(*arguments, **options):
        raise ConnectionError("no\nroute")

    hub = Hub()
    monkeypatch.setattr(hub, method, refuse)
    with pytest.raises(UserError, match=r"^cannot .*: no route; `hf auth login`"):
        upload(run, hub)
    assert hub.uploaded == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["card", "absent"], "absent is no run"),
        (["push", "absent", "no name"], "'no name' is no name on the Hub"),
        (["push", "absent", "me/x"], "absent is no run"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert sentence in result.output


def test_an_unfinished_run_has_no_card(run):
    (run / "model").rename(run / "elsewhere")
    with pytest.raises(UserError, match="has no finished model yet"):
        read_facts(run)


def test_a_mix_names_every_data_set_and_keeps_its_attribution():
    parts = [
        {"share": 1, "data": {"source": name, "resolution": 32}} for name in ("faces", "shapes", "openmoji", "faces")
    ]
    source = source_of(check(MixConfig, {"source": "mix", "parts": parts}, "x.yaml"))
    assert source.what == "the built-in faces and the built-in shapes, which the kit renders and OpenMoji's drawings"
    assert source.licence is None
    assert "Johan Melin" in source.attribution
    assert "OpenMoji" in source.attribution
    alone = source_of(check(MixConfig, {"source": "mix", "parts": [parts[0], parts[3]]}, "x.yaml"))
    assert (alone.what, alone.licence) == ("the built-in faces", "cc-by-4.0")
