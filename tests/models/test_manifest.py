"""A finished model's files are verified once against manifest.json; the file that differs is named."""

import json
import os
from pathlib import Path

import pytest
import torch

from autoencoder import saved
from ldm_kit import load
from ldm_kit.config import UserError
from ldm_kit.models import manifest
from ldm_kit.models.base_model import BaseModel
from ldm_kit.models.directions import Directions, stack_directions
from ldm_kit.models.linear_fit import mean_difference
from ldm_kit.models.manifest import open_first_stage, verify_folder
from ldm_kit.training.checkpoint import MANIFEST, write
from tests.editing.models import semantic, shifted
from tests.methods.semantic_toys import base

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def hashed(monkeypatch, tmp_path) -> list[str]:
    """The names of all files that are hashed for verification, in an empty cache."""
    names: list[str] = []
    digest_all = manifest.sha256_all

    def count(paths):
        names.extend(path.name for path in paths)
        return digest_all(paths)

    monkeypatch.setattr(manifest, "sha256_all", count)
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    return names


def finished(folder: Path, make, *arguments) -> Path:
    """A model as a run leaves it, with its manifest."""
    return write(folder, lambda draft: make(draft, *arguments))


def flip(path: Path) -> None:
    """Flip one bit of the last weight; size and time of modification stay."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("known", [False, True], ids=["unseen", "verified before"])
@pytest.mark.parametrize("kind", ["plain", "semantic", "pdae", "base of a pdae"])
def test_one_flipped_bit_is_refused_and_named(tmp_path, kind, known):
    frozen = finished(tmp_path / "base", base)
    makers = {"plain": (base,), "semantic": (semantic,), "pdae": (shifted, frozen), "base of a pdae": (shifted, frozen)}
    model = finished(tmp_path / "run" / "model", *makers[kind])
    if known:
        load(tmp_path / "run")
    part = {"plain": model / "unet", "semantic": model / "encoder", "pdae": model / "shift"}.get(kind, frozen / "unet")
    flip(part / WEIGHTS)
    with pytest.raises(UserError, match=rf"the contents of {part / WEIGHTS} have changed since it was saved; restore"):
        load(tmp_path / "run")
    if kind == "plain":
        with pytest.raises(UserError, match="have changed since"):
            BaseModel.open(model)
    (model / MANIFEST).unlink()
    (frozen / MANIFEST).unlink()
    if kind != "base of a pdae":  # which is refused by its own sha256
        load(tmp_path / "run")


def test_files_are_hashed_once_and_again_when_they_change(tmp_path, hashed):
    model = finished(tmp_path / "model", base)
    load(model)
    assert sorted(hashed) == ["config.json", WEIGHTS, "model_index.json", "scheduler_config.json"]
    hashed.clear()
    load(model)
    assert hashed == []
    os.utime(model / "unet" / WEIGHTS)
    load(model)
    assert hashed == [WEIGHTS]
    model.rename(tmp_path / "moved")
    hashed.clear()
    load(tmp_path / "moved")
    assert len(hashed) == 4, "a cache by path must not vouch for what was put there later"


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b'{"files": []}', b'{"files": {"a": {"size": "1"}}}'])
def test_a_broken_memory_or_cache_costs_time_and_a_broken_manifest_is_refused(tmp_path, hashed, text, monkeypatch):
    model = finished(tmp_path / "model", base)
    load(model)
    (memory,) = (tmp_path / "cache" / "verified").iterdir()
    memory.write_bytes(text)
    hashed.clear()
    load(model)
    assert len(hashed) == 4
    (tmp_path / "file").touch()
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "file" / "cache"))  # no folder can be made there
    load(model)
    (model / MANIFEST).write_bytes(text)
    with pytest.raises(UserError, match=r"manifest\.json is not readable as a list of files"):
        load(model)


@pytest.mark.parametrize("name", ["../base/secret", "/etc/passwd", "a/../../b", "..\\b", "C:b"])
def test_a_manifest_names_files_within_its_folder(tmp_path, name):
    model = finished(tmp_path / "model", base)
    content = json.loads((model / MANIFEST).read_text())
    content["files"][name] = {"size": 1, "sha256": "0"}
    (model / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(UserError, match="which lies outside of its folder"):
        load(model)


def test_a_missing_or_shorter_file_is_named_and_a_further_one_is_nobodys_business(tmp_path):
    model = finished(tmp_path / "model", base)
    (model / "notes.txt").write_text("mine")
    load(model)
    config = model / "unet" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(UserError, match=rf"{config} has \d+ bytes, but had \d+ when it was saved; .* remove manifest"):
        load(model)
    config.unlink()
    with pytest.raises(UserError, match=rf"{config} is missing, but .*manifest\.json names it"):
        load(model)


@pytest.mark.parametrize("layout", ["alone", "run", "whole"])
def test_a_first_stage_is_verified_too(tmp_path, layout, hashed):
    def alone(folder: Path) -> None:
        saved.load(base(tmp_path / "made", "latents")).save_pretrained(folder)

    if layout == "whole":
        folder, weights = finished(tmp_path / "model", base, "latents"), tmp_path / "model" / "vqvae" / WEIGHTS
    else:
        weights = finished(tmp_path / "run" / "model", alone) / WEIGHTS
        folder = tmp_path / "run" if layout == "run" else tmp_path / "run" / "model"
    open_first_stage(folder)
    assert len(hashed) == 2, "of a whole model its autoencoder alone"
    flip(weights)
    with pytest.raises(UserError, match=f"the contents of {weights} have changed"):
        open_first_stage(folder)


def test_directions_are_entered_when_they_are_learned_and_verified_when_they_are_read(tmp_path):
    """Learning again replaces them; a model whose directions are damaged or gone still opens."""
    from ldm_kit.models.directions import DirectionRecord

    model = finished(tmp_path / "model", semantic)
    before, after = torch.randn(5, 8), torch.randn(5, 8) + 1
    record = DirectionRecord(name="red", estimator="means", typical=0.2, positives=5, others=5)
    directions = stack_directions([(record, mean_difference(before, after), after.mean(0))], "key")
    for _ in range(2):
        directions.save(model / "directions")
        assert Directions.load(model / "directions", "key").names == ["red"]
        verify_folder(model, "directions/")
    flip(model / "directions" / "directions.safetensors")
    load(model)
    with pytest.raises(UserError, match=r"damaged \(the contents of .*directions\.safetensors have changed"):
        Directions.load(model / "directions", "key")
    for path in (model / "directions").iterdir():
        path.unlink()
    load(model)
    with pytest.raises(UserError, match="holds no directions"):
        Directions.load(model / "directions", "key")
