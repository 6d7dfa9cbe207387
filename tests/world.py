"""Shared by the tests of whole tasks: made-up pictures, tiny configs, briefly trained models, and scripts run here."""

import contextlib
import importlib
import io
import json
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from filelock import FileLock
from PIL import Image

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}
TEXT = {"kind": "text", "width": 16, "layers": 1, "heads": 2, "vocabulary": 520, "length": 8}
FLOW = {"prediction_type": "flow", "schedule": {"kind": "flow"}}
MODELS: dict[str, dict[str, Any]] = {  # name -> what differs from the text model on the KL autoencoder
    "text": {},
    "flow": FLOW,
    "class": {"condition": {"kind": "class", "width": 16}},
    "plain": {"condition": {"kind": "none"}},
    "plain_flow": {"condition": {"kind": "none"}, **FLOW},
    "plain_vq": {"condition": {"kind": "none"}, "autoencoder": "vq"},
    "pixels": {"condition": {"kind": "none"}, "autoencoder": None},
    "class_pixels": {"condition": {"kind": "class", "form": "vector"}, "autoencoder": None},
    "learned": {"condition": {"kind": "none"}, "autoencoder": None, "variance": "learned_range"},
}
CLASSIFIERS: dict[str, dict[str, Any]] = {  # name -> what differs from the noisy classifier on the KL autoencoder
    "classifier": {},
    "pixel_classifier": {"autoencoder": None},
}


@dataclass(frozen=True)
class Outcome:
    """What a script left behind."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Its error sentences."""
        return [line for line in re.split(r"[\r\n]", self.err) if line.startswith("error: ")]


@dataclass
class World:
    """A folder with pictures, in which configs are written and models trained when a test first asks for them."""

    root: Path
    trained: dict[str, Path] = field(default_factory=dict)
    shared: Path | None = None  # where the models and the pictures are; None: in `root`

    @property
    def models(self) -> Path:
        return self.shared or self.root

    @property
    def pictures(self) -> Path:
        return self.models / "pictures"

    def common(self, run: str) -> dict[str, Any]:
        return {
            "run": str(self.root / run),
            "data": {"source": "folder", "path": str(self.pictures), "resolution": 16},
            "train": {"steps": 2, "batch_size": 4},
            "log": {"every": 1, "evaluate_every": 2, "tensorboard": False, "pictures": 4},
        }

    def ae(self, kind: str, run: str) -> dict[str, Any]:
        net = {"kind": kind, "resolution": 16, "widths": [16, 16], "latent_channels": 4, "middle_attention": False}
        more = {"codes": 32} if kind == "vq" else {}
        criterion = {"balance": "custom", "perceptual_weight": 0.0, "kl_weight": 1e-6, "learned_scale": False}
        parts = {"autoencoder": {**net, **more}, "perceptual": {"spec": "none"}, "loss": criterion}
        return {**self.common(run), **parts}

    def ldm(self, name: str, run: str) -> dict[str, Any]:
        """A config on autoencoders that are trained already."""
        tree = {
            **self.common(run),
            "autoencoder": "kl",
            "condition": TEXT,
            "unet": {"widths": [16, 16], "attention_levels": [False, True], "heads": 2},
            "optim": {"lr": 1e-2, "warmup": 0},
            "train": {"steps": 8, "batch_size": 8, "checkpoint_every": 4},
            "sample": {"steps": 2},
            **MODELS[name],
        }
        if tree["autoencoder"] is not None:
            tree["autoencoder"] = str(self.model(tree["autoencoder"]))
        return tree

    def classifier(self, name: str, run: str) -> dict[str, Any]:
        """A noisy classifier's config, on an autoencoder that is trained already or on pixels."""
        net = {
            "widths": [16, 16],
            "attention_levels": [False, True],
            "layers_per_block": 1,
            "head_size": 8,
            "norm_num_groups": 8,
        }
        tree = {
            **self.common(run),
            "method": "classifier",
            "autoencoder": "kl",
            "net": net,
            "optim": {"lr": 1e-2, "warmup": 0},
            "train": {"steps": 8, "batch_size": 8, "checkpoint_every": 4},
            "log": {"every": 1, "evaluate_every": 8, "tensorboard": False, "pictures": 4},
            **CLASSIFIERS[name],
        }
        if tree["autoencoder"] is not None:
            tree["autoencoder"] = str(self.model(tree["autoencoder"]))
        return tree

    def write(self, tree: Any, name: str = "config.yaml") -> Path:
        path = self.root / name
        path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree), encoding="utf-8")
        return path

    def model(self, name: str) -> Path:
        """The run's folder of a trained autoencoder ("kl", "vq"), denoiser (MODELS) or classifier (CLASSIFIERS)."""
        if name not in self.trained:
            script, tree = self._run(name)
            run = self.models / name
            with FileLock(self.models / f".{name}.lock"):  # another process of the tests may train it at this moment
                if not (run / "model").is_dir():
                    found = through(script, self.write({**tree, "run": str(run)}, f"{name}.yaml"))
                    assert found.status == 0, found.err
            self.trained[name] = run
        return self.trained[name]

    def _run(self, name: str) -> tuple[str, dict[str, Any]]:
        if name in CLASSIFIERS:
            return "train_ldm", self.classifier(name, name)
        return ("train_ldm", self.ldm(name, name)) if name in MODELS else ("train_ae", self.ae(name, name))


def through(script: str, *arguments: Any) -> Outcome:
    """Run train_ae, train_ldm or sample in this process, as its command line would."""
    from accelerate.state import AcceleratorState, GradientState

    from ldm_kit.cli import run_cli

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning, r"diffusers\.")
        with pytest.raises(SystemExit) as stopped:
            run_cli(importlib.import_module(script).main, [str(argument) for argument in arguments])
    code = stopped.value.code
    return Outcome(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


def make_pictures(folder: Path, count: int = 24) -> Path:
    """Coloured squares, 16 px, captioned and labelled."""
    folder.mkdir(parents=True)
    rows = []
    for i in range(count):
        name, colour = list(COLOURS.items())[i % 3]
        pixels = np.full((16, 16, 3), 255, np.uint8)
        pixels[3 + i % 5 : 11, 2 + i % 4 : 10 + i % 4] = colour
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        rows.append(json.dumps({"file_name": f"{i:02d}.png", "text": f"{name} square {i % 4}", "label": name}))
    (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One world for the session; its models are read, never changed, and trained once for all worker processes."""
    root, shared = tmp_path_factory.mktemp("world"), shared_folder(tmp_path_factory, "world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDM_KIT_CACHE", str(root / "cache"))
        with FileLock(shared / ".pictures.lock"):
            if not (shared / "pictures").exists():
                make_pictures(shared / "pictures")
        yield World(root, shared=shared)


def shared_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder of the session that all processes of pytest-xdist see; without it, one of this process."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"shared-{name}"
    folder.mkdir(exist_ok=True)
    return folder
