"""Conditioners from outside, and what each states about itself."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import autoencoder
import conditioning
from conditioning.base import ConditioningError
from conditioning.factory import BUILT_IN, CONDITIONERS, components, kind_of
from conditioning.labels import ClassConditioner, ClassConfig, ClassEmbedder
from conditioning.none import NoCondition, NoConfig
from conditioning.text import TextConfig
from tests.processes import script

ROOT = Path(__file__).parents[2]

TOY = '''
"""A conditioner that no file of ours knows: the length of a caption as a vector."""

import json
from typing import Literal

import torch
from torch import nn

from conditioning.base import Condition, Conditioner, ConditionerConfig


class LengthConfig(ConditionerConfig, frozen=True, extra="forbid"):
    kind: Literal["length"] = "length"
    scale: float = 0.1


class LengthConditioner(Conditioner):
    Config = LengthConfig
    modality = "lengths"
    marker = "length.json"
    components = {"length_encoder": ("toy", ("LengthEncoder",))}
    null, width, vector_width = "", None, 2

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    @classmethod
    def build(cls, config, **data):
        return cls(config.scale)

    @classmethod
    def load(cls, folder):
        return cls(json.loads((folder / "length.json").read_text())["scale"])

    def save(self, folder):
        (folder / "length.json").write_text(json.dumps({"scale": self.scale}))
        return {}

    @property
    def trainable(self):
        return {}

    def prepare(self, raw, progress=None):
        return {"length": torch.tensor([len(caption) for caption in raw])}

    def forward(self, length):
        return Condition(vector=torch.stack([length * self.scale, length * 0.0], dim=1))

    def release(self):
        pass
'''

USE = """
import tempfile
from pydantic import BaseModel
from conditioning import ConditioningConfig, build, components, load, save

class Run(BaseModel):
    condition: ConditioningConfig

config = Run.model_validate({"condition": {"kind": "length", "scale": 2}}).condition
conditioner = build(config)
folder = tempfile.mkdtemp()
save(conditioner, folder)
print(type(load(folder)).__name__, load(folder)(**conditioner.prepare(["abc"])).vector.tolist())
print(config.raw_values(["abc"], [None]), components()["length_encoder"][0])
"""


def installed(folder: Path, value: str) -> str:
    """Put a package with an entry point into `folder`, as pip would, and return its output under `USE`."""
    (folder / "toy_lengths.py").write_text(TOY)
    info = folder / "toy_lengths-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-lengths\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ldm_kit.conditioners]\nlength = {value}\n")
    (folder / "use.py").write_text(USE)
    run = script(folder / "use.py", cwd=folder)
    return run.stdout + run.stderr


def test_an_installed_package_brings_a_conditioner_and_no_file_of_ours_changes(tmp_path):
    assert installed(tmp_path, "toy_lengths:LengthConditioner").splitlines() == [
        "LengthConditioner [[6.0, 0.0]]",
        "['abc'] toy",
    ]


def test_one_that_cannot_be_imported_is_left_out_with_a_warning(tmp_path):
    output = installed(tmp_path, "toy_lengths:Nothing")
    assert "the conditioner length (toy_lengths:Nothing) cannot be used" in output
    assert "Input tag 'length' found using 'kind' does not match any of the expected tags" in output


def test_kinds_and_markers_are_distinct():
    assert CONDITIONERS[: len(BUILT_IN)] == BUILT_IN
    for values in ([kind_of(c) for c in BUILT_IN], [c.marker for c in BUILT_IN]):
        assert len(set(values)) == len(values)


def test_saved_folders_name_the_library_and_class_of_a_component():
    entries = {
        "class_encoder": ("conditioning.labels", ("ClassEmbedder",)),
        "image_embedder": ("conditioning.image_encoder", ("ImageEncoder",)),
        "image_projection": ("conditioning.image_projection", ("ImageProjection",)),
        "text_encoder": ("transformers", ("CLIPTextModel",)),
        "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    }
    ends = ("", "_2", "_3", "_4")  # of several conditioners of one kind
    assert dict(components()) == {f"{name}{end}": entry for name, entry in entries.items() for end in ends}


def test_raw_values_are_captions_or_labels():
    assert ClassConfig().raw_values(["", ""], [1, 0]) == [1, 0]
    assert TextConfig().raw_values(["a", ""], [None, 1]) == ["a", ""]
    assert NoConfig().raw_values(["", ""], [None, None]) == ["", ""]
    with pytest.raises(ConditioningError, match=r"condition\.kind is class, but some pictures have no label"):
        ClassConfig().raw_values(["a", "b"], [0, None])
    with pytest.raises(ConditioningError, match=r"condition\.kind is text, but no picture has a caption"):
        TextConfig().raw_values(["", ""], [0, 1])


def test_prompts_name_classes_where_there_are_classes_or_nothing():
    classes = ClassConditioner(ClassEmbedder(["b", "t"], 4))
    assert classes.class_names(["t", 0]) == ["t", "b"]
    assert NoCondition().class_names(["t"]) == ["t"]
    assert NoConfig.unconditional
    assert not ClassConfig.unconditional


@pytest.mark.parametrize("package", [autoencoder, conditioning])
def test_public_names_exist_and_are_documented(package):
    assert sorted(package._MODULES) == sorted(package.__all__) == dir(package)
    for name in package.__all__:
        module = importlib.import_module(f"{package.__name__}.{package._MODULES[name]}")
        value = getattr(package, name)
        assert value is getattr(module, name)
        assert not isinstance(value, type) or value.__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize("package", ["autoencoder", "conditioning"])
def test_importing_a_package_is_light(package):
    code = f"import sys, {package}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
