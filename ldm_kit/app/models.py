"""The models of the page: opened on demand by name, one at a time in memory."""

import gc
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock

import torch
from pydantic import PrivateAttr
from torch import Tensor

from ldm_kit.app.options import AppOptions
from ldm_kit.config import Precision, UserError
from ldm_kit.editing.context import EditContext
from ldm_kit.memory import Batch
from ldm_kit.methods.export import saved_model
from ldm_kit.models.directions import Directions
from ldm_kit.models.folder import (
    CASCADE,
    CLASSIFIER,
    INDEX,
    SEMANTIC,
    autocast_dtype,
    device_named,
    model_folder,
    read_json,
)
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.protocol import encoder_digest
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.progress import Progress

_INVERSIONS = 16  # inversions of pictures that a semantic model remembers


@dataclass(eq=False)
class RememberingModel(SemanticModel):
    """A semantic model that remembers the noise of the last pictures, so that their next edits need no inversion."""

    remembered: OrderedDict[str, Tensor] = field(default_factory=OrderedDict[str, Tensor], init=False, repr=False)

    def invert(
        self,
        pictures: Tensor,
        z: Tensor,
        steps: int | None = None,
        batch: Batch = 32,
        *,
        progress: Progress | None = None,
    ) -> Tensor:
        """Return what `SemanticModel.invert` returns, computed once for the same pictures, codes and steps."""
        content = hashlib.sha256(pictures.contiguous().numpy().tobytes() + z.cpu().contiguous().numpy().tobytes())
        key = f"{tuple(pictures.shape)} {steps} {content.hexdigest()}"
        if key not in self.remembered:
            self.remembered[key] = super().invert(pictures, z, steps, batch, progress=progress)
            while len(self.remembered) > _INVERSIONS:
                self.remembered.popitem(last=False)
        self.remembered.move_to_end(key)
        return self.remembered[key].clone()


@dataclass(frozen=True, eq=False)
class OpenModel:
    """A model in memory, and what it was learned to edit."""

    name: str  # name on the page
    folder: Path  # the saved model's folder
    pipeline: Pipeline | None  # a diffusion model; None: it is a semantic one
    semantic: SemanticModel | None  # a model with a semantic encoder
    attributes: Directions | None = None  # attribute directions that were learned for it


class LoadedContext(EditContext):
    """Settings of a command of `edit.py` whose model is in memory already."""

    _model: OpenModel | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, model: OpenModel, out: Path, options: AppOptions) -> "LoadedContext":
        """Return the context of an edit by `model` that writes its pictures to the folder `out`."""
        context = cls(model=model.folder, out=out, device=options.device, precision=options.precision)
        context._model = model
        return context

    def load_semantic_model(self, precision: Precision = "no") -> SemanticModel:
        """Return the model, which is in memory; UserError: it is no semantic one."""
        if self._model is None or self._model.semantic is None:
            raise UserError("this model has no semantic encoder; expected a DiffAE or a PDAE")
        return self._model.semantic

    def load_pipeline(self, precision: Precision = "no") -> Pipeline:
        """Return the model, which is in memory; UserError: it is a semantic one."""
        if self._model is None or self._model.pipeline is None:
            raise UserError("this model has a semantic encoder; expected a diffusion model without one")
        return self._model.pipeline


class ModelLibrary:
    """The models that the page lists; `open` loads one in place of the one before.

    Args:
        paths: folders of saved models, runs or checkpoints, or names on the Hub.
        options: device and precision.

    Raises:
        UserError: a path is no model that samples or edits, or the device does not exist.
    """

    def __init__(self, paths: Sequence[Path | str], options: AppOptions) -> None:
        self.options, self.lock = options, RLock()
        self.device = device_named(options.device)
        self.folders: dict[str, Path] = {}
        for path in paths:
            folder = model_folder(saved_model(path, device=options.device))
            _check_kind(folder)
            self.folders[_name_of(Path(path), self.folders)] = folder
        self._open: OpenModel | None = None

    @property
    def names(self) -> list[str]:
        """Names of the models, in the order given."""
        return [*self.folders]

    def open(self, name: str) -> OpenModel:
        """Return the model called `name`, loaded if it is not the one in memory.

        Raises:
            UserError: there is no such model, or its folder is damaged.
        """
        with self.lock:
            if self._open is not None and self._open.name == name:
                return self._open
            if name not in self.folders:
                raise UserError(f"there is no model {name!r:.80}; expected one of {', '.join(self.names)}")
            self._open = None
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._open = self._load(name)
            return self._open

    def _load(self, name: str) -> OpenModel:
        folder, dtype = self.folders[name], autocast_dtype(self.options.precision, self.device)
        if not _is_semantic(folder):
            return OpenModel(name, folder, Pipeline.load(folder, self.device, dtype), None)
        model = RememberingModel.load(folder, self.device, dtype)
        path = LoadedContext(model=folder).directions
        attributes = Directions.load(path, encoder_digest(model)) if path.is_dir() else None
        return OpenModel(name, folder, None, model, attributes)


def _is_semantic(folder: Path) -> bool:
    return read_json(folder / INDEX, f"{folder / INDEX}").get("_class_name") == SEMANTIC


def _check_kind(folder: Path) -> None:
    """Raise UserError if a folder holds no saved model, or one from which no picture can be sampled or edited."""
    index = read_json(folder / INDEX, f"{folder} is no saved model: its {INDEX}")
    if index.get("_class_name") == CLASSIFIER:
        raise UserError(f"{folder} is a noisy classifier, which makes no pictures; expected a model that samples")
    if index.get("_class_name") == CASCADE:
        raise UserError(f"{folder} is a cascade, and the page takes single models; expected one of its sub-folders")


def _name_of(path: Path, taken: dict[str, Path]) -> str:
    """Return a short name of a model that is not in `taken`: the last parts of its path, without `model`."""
    names = [each for each in path.parts if each not in ("/", ".", "model")] or [path.resolve().name]
    for count in range(1, len(names) + 1):
        name = "/".join(names[-count:])
        if name not in taken:
            return name
    return f"{'/'.join(names)} ({len(taken) + 1})"
