"""Models that bring code of their own, in every config that a folder has: the code never runs."""

import json
import shutil
import sys

import pytest

from conditioning import ConditioningError, PretrainedTextConfig, build
from conditioning.bpe import save_tokenizer, train_tokenizer
from ldm_kit.config import UserError
from ldm_kit.models.pipeline import Pipeline

CONFIGS = (
    "model_index.json",
    "vae/config.json",
    "unet/config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "scheduler/scheduler_config.json",
)
AUTO = dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer", "AutoModelForTextEncoding"), "evil.Evil")
WAYS = {
    "auto_map": {"auto_map": AUTO},
    "custom_pipeline": {"custom_pipeline": "evil", "custom_pipelines": {"x": "evil"}},
    "class": {"_class_name": ["evil", "Evil"]},
    "target": {"_target_": "evil.Evil", "target": "evil.Evil"},
    "base": {"_name_or_path": "evil/evil", "_diffusers_version": "evil"},
}


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """The source of a module that leaves a mark when imported, and can be."""
    source = f"open({str(tmp_path / 'marker')!r}, 'w')\nclass Evil: pass\n"
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "evil.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path / "path")
    yield source
    assert not (tmp_path / "marker").exists(), "the code has run"
    assert "evil" not in sys.modules


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_that_brings_code_never_runs_it(world, tmp_path, evil, name, way):
    shutil.copytree(world.model("text") / "model", tmp_path / "model", ignore=shutil.ignore_patterns("manifest.json"))
    path = tmp_path / "model" / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **WAYS[way]}))
    for folder in (path.parent, tmp_path / "model"):
        (folder / "evil.py").write_text(evil)
    try:
        Pipeline.load(tmp_path / "model")
    except UserError as error:
        told = str(error)
    else:
        told = None  # it was read as data, and what is unknown in it was passed over
    assert told is None or ("\n" not in told and len(told) < 700)
    if way == "auto_map" and name.endswith("/config.json"):
        assert (told is not None) == (name.split("/")[0] in ("unet", "vae", "text_encoder"))


@pytest.mark.parametrize("kind", ["clip_text_model", "evil"])
def test_a_text_encoder_that_brings_code_never_runs_it(tmp_path, evil, kind):
    folder = tmp_path / "encoder"
    folder.mkdir()
    save_tokenizer(train_tokenizer(["a red cat", "a dog"], 520, 8), folder)
    config = {"model_type": kind, "architectures": ["Evil"], "hidden_size": 16, "auto_map": AUTO}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = folder / "tokenizer_config.json"
    tokenizer.write_text(json.dumps({**json.loads(tokenizer.read_text()), "auto_map": AUTO}))
    (folder / "evil.py").write_text(evil)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConditioningError):
        build(PretrainedTextConfig(model=str(folder), length=8)).prepare(["a red cat"])
