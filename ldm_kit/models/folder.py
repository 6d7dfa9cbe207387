"""Open a saved model's folder, and load its components, noise schedule and conditioner.

Only safetensors and JSON are read. A component must be of a class that the caller lists; no code in a folder is run.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

import conditioning.factory as conditioners
from conditioning.base import Conditioner, ConditioningError
from ldm_kit.config import Precision, UserError
from ldm_kit.diffusion.posterior import VarianceType
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.models.loaded import check_sizes, check_tensors
from ldm_kit.models.manifest import verify_folder
from ldm_kit.nets.execution import DTYPES, prepare_loaded
from ldm_kit.solvers.scheduler_config import from_scheduler_config, read_variance, saved_scheduler
from ldm_kit.solvers.scheduler_file import scheduler_name
from ldm_kit.training.precision import resolve_precision

INDEX = "model_index.json"
CLASSIFIER = "ldm_kit.NoisyClassifier"  # _class_name in the index of a noisy classifier
SEMANTIC = "ldm_kit.SemanticModel"  # _class_name in the index of a semantic model
CASCADE = "ldm_kit.Cascade"  # _class_name in the index of a cascade


class Noise(NamedTuple):
    """Noise schedule, prediction type and variance type, as the scheduler's config in a model's folder states them."""

    schedule: ScheduleConfig
    prediction_type: PredictionType  # what the network predicts
    variance: VarianceType  # type of the variance of ddpm's steps


def model_folder(path: Path) -> Path:
    """Return the folder of a model: `path` itself, or, if `path` is a run's folder, its `model/`."""
    inside = path / "model"
    return inside if not (path / INDEX).exists() and (inside / INDEX).exists() else path


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Return autocast's dtype for a precision (no, bf16, fp16, or auto: the best for the device); None: no autocast."""
    resolved = resolve_precision(precision, device)
    return None if resolved == "no" else DTYPES[resolved]


def device_named(name: str | None) -> torch.device:
    """Return the device `name` after putting a tensor on it; for None the accelerator, or else the CPU.

    Raises:
        UserError: the device does not exist or does not work.
    """
    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"cannot use the device {name!r}: {str(error).splitlines()[0]}") from None
    return device


@dataclass(frozen=True)
class ModelFolder:
    """A saved model's folder with its model_index.json; or a sub-folder of several components, such as prior/."""

    path: Path  # the folder
    index: Mapping[str, Any]  # contents of model_index.json; empty for a sub-folder, which has no such file

    @classmethod
    def open(cls, path: Path | str, kind: str = "model") -> "ModelFolder":
        """Verify a saved model's files by the sha256 in manifest.json, if there is one, and read model_index.json.

        Args:
            path: the model's folder, or a run's folder with a finished model.
            kind: the kind of model that the caller expects, for the error message: "is no saved {kind}".

        Raises:
            UserError: the folder or its model_index.json is missing or broken, or a file has changed since it was
                saved.
        """
        folder = model_folder(Path(path))
        verify_folder(folder)
        index = read_json(folder / INDEX, f"{folder} is no saved {kind}: its {INDEX}")
        if not isinstance(name := index.get("_class_name"), str | None):
            raise UserError(f"{folder / INDEX}: _class_name is {name!r:.80}; expected the name of a class")
        return cls(folder, index)

    def __str__(self) -> str:
        return str(self.path)

    def __contains__(self, name: str) -> bool:
        return name in self.index

    def subfolder(self, name: str) -> "ModelFolder":
        """Return the sub-folder `name`, such as prior/; its `index` is empty, as it has no model_index.json."""
        return ModelFolder(self.path / name, {})

    @property
    def class_name(self) -> str | None:
        """Class name of the whole model, as model_index.json says; None if it does not say."""
        return self.index.get("_class_name")

    def entry(self, name: str, classes: Mapping[str, str]) -> str:
        """Return the class name of a component that model_index.json states, if it is one of `classes`.

        Args:
            name: the component's name in model_index.json, such as "unet".
            classes: allowed class name -> name of its library, such as "diffusers".

        Raises:
            UserError: model_index.json names another class or library, or lacks the component.
        """
        stated = self.index.get(name)
        for kind, library in classes.items():
            if stated == [library, kind]:
                return kind
        raise UserError(f"{self}: {name} is {stated!r:.80}, expected {' or '.join(classes)}; no other code is run")

    def component(
        self,
        name: str,
        kind: str,
        classes: Mapping[str, Any],
        device: torch.device | str = "cpu",
        *,
        whole: bool = False,
    ) -> Any:
        """Load one network that was saved in diffusers' format, in evaluation mode and without gradients.

        Args:
            name: the component's sub-folder.
            kind: the network's class name, which its config must state.
            classes: class name -> class.
            device: where the network is put; memory layout and attention kernel are chosen for it.
            whole: whether tensors of which the network has no use are an error too.

        Raises:
            UserError: a file is missing or broken, the config states another class, or the weights do not fit the
                config.
        """
        folder = self.path / name
        stated = read_json(folder / "config.json", f"{folder}/config.json").get("_class_name")
        if stated != kind:
            raise UserError(f"{folder}/config.json is of class {stated}, but {INDEX} says {kind}")
        with silence_diffusers():
            try:
                module, report = classes[kind].from_pretrained(
                    folder, use_safetensors=True, local_files_only=True, output_loading_info=True
                )
            except Exception as error:  # of many unrelated classes: broken JSON or weights, unknown blocks, shapes
                raise UserError(f"cannot open {folder}: {' '.join(str(error).split()):.300}") from None
        check_tensors(folder, report["missing_keys"], report["unexpected_keys"] if whole else ())
        check_sizes(module, f"{folder}/config.json")
        return prepare_loaded(module, device).to(device)

    def noise(self) -> Noise:
        """Read the noise schedule, the prediction type and the variance of ddpm's steps from the scheduler's config.

        Keys that the config lacks have the defaults of the scheduler class that model_index.json names.

        Raises:
            UserError: scheduler_config.json is missing, `ScheduleConfig` cannot express its noise schedule, or its
                schedule, prediction type and variance cannot be combined.
        """
        path = self.path / "scheduler" / "scheduler_config.json"
        config = read_json(path, str(path))
        try:
            scheduler_name(config)  # typed, although the index has the last word
            if "scheduler" in self and (entry := entry_of(self, "scheduler"))[0] == "diffusers":
                config = {**config, "_class_name": entry[1]}
            schedule, prediction_type = from_scheduler_config(config)
            noise = Noise(schedule, prediction_type, read_variance(config))
            saved_scheduler(*noise)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except ValidationError as error:
            fault = error.errors()[0]
            what = " ".join([*map(str, fault["loc"]), fault["msg"].removeprefix("Value error, ")])
            raise UserError(f"{path} holds no noise schedule: {what}") from None
        return noise

    def conditioner(self, device: torch.device | str = "cpu", *, whole: bool = False) -> Conditioner:
        """Load the conditioner to a device; UserError: a file is missing or broken, or does not fit the others.

        `whole`: whether tensors of which the conditioner has no use are an error too.
        """
        with silence_diffusers():
            try:
                return prepare_loaded(conditioners.load(self.path, whole=whole), device).to(device)
            except ConditioningError as error:
                raise UserError(str(error)) from None
            except Exception as error:  # of many unrelated classes: broken JSON or weights, shapes
                raise UserError(f"cannot open the conditioner in {self}: {' '.join(str(error).split()):.300}") from None


def entry_of(folder: ModelFolder, name: str) -> tuple[str, str]:
    """Return the library and class name that the model_index.json in `folder` states for the component `name`.

    Raises:
        UserError: the entry is missing or is not a list of two strings.
    """
    match folder.index.get(name):
        case [str(library), str(kind)]:
            return library, kind
        case other:
            raise UserError(f"{folder.path / INDEX}: {name} is {other!r:.80}; expected its library and its class")


def read_json(path: Path, subject: str) -> dict[str, Any]:
    """Read the JSON object in the file `path`.

    Raises:
        UserError: the file is missing or holds no JSON object; the message begins with `subject`, which names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{subject} is missing or no JSON object; expected a folder in the diffusers layout")
    return content


@contextmanager
def silence_diffusers() -> Iterator[None]:
    """Silence diffusers' log messages within the context; ldm_kit raises errors of its own if weights do not fit."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def strip_paths(folder: Path) -> None:
    """Remove local paths from each config.json below `folder`; copy its file permissions to the weights beside it."""
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for weights in path.parent.glob("*.safetensors"):
            weights.chmod(path.stat().st_mode)
