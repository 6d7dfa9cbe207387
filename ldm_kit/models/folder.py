"""A saved model's folder: opened once, strictly, and handed to whatever is built from it.

A folder is read as data: known classes from known libraries, safetensors, JSON. Any other class or code is refused.
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
from ldm_kit.models.manifest import verify_folder
from ldm_kit.nets.execution import DTYPES, prepare_loaded
from ldm_kit.solvers.scheduler_config import from_scheduler_config, read_variance, saved_scheduler
from ldm_kit.solvers.scheduler_file import scheduler_name
from ldm_kit.training.precision import resolve_precision

INDEX = "model_index.json"
CLASSIFIER = "ldm_kit.NoisyClassifier"  # the _class_name in the index of a noisy classifier
SEMANTIC = "ldm_kit.SemanticModel"  # ... and of a semantic model
_SIZES = ("in_channels", "out_channels", "channels", "z_width", "sample_size")  # config keys that we count with


class Noise(NamedTuple):
    """What a folder's scheduler says: the noise schedule, the network's output, and the variance of ddpm's steps."""

    schedule: ScheduleConfig
    prediction_type: PredictionType
    variance: VarianceType


def model_folder(path: Path) -> Path:
    """Return the model's folder: `path` itself, or the finished model in a run's folder."""
    inside = path / "model"
    return inside if not (path / INDEX).exists() and (inside / INDEX).exists() else path


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Return the dtype of a precision's autocast on a device; None for none."""
    resolved = resolve_precision(precision, device)
    return None if resolved == "no" else DTYPES[resolved]


def device_named(name: str | None) -> torch.device:
    """Return a device that works; for None the accelerator, or else the CPU.

    Raises:
        UserError: there is no such device.
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
    """The folder of a saved model (or of a component that has components of its own), with its index read once."""

    path: Path
    index: Mapping[str, Any]  # model_index.json; empty for a component's folder, which has none

    @classmethod
    def open(cls, path: Path | str, kind: str = "model") -> "ModelFolder":
        """Open a model's folder, or the finished model in a run's folder; verify its files, and read its index.

        Args:
            path: the folder.
            kind: what the caller expects to find, for the error.

        Raises:
            UserError: no such folder, its index is missing or no JSON object, or a file is not as it was saved.
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
        """Return the folder of a component that has components of its own, but no index."""
        return ModelFolder(self.path / name, {})

    @property
    def class_name(self) -> str | None:
        """The class of the whole model, by its index."""
        return self.index.get("_class_name")

    def entry(self, name: str, classes: Mapping[str, str]) -> str:
        """Return the class of a component that the index names, out of `classes` (each with its library).

        Raises:
            UserError: another class, or another library.
        """
        stated = self.index.get(name)
        for kind, library in classes.items():
            if stated == [library, kind]:
                return kind
        raise UserError(f"{self}: {name} is {stated!r:.80}, expected {' or '.join(classes)}; no other code is run")

    def component(self, name: str, kind: str, classes: Mapping[str, Any], device: torch.device | str = "cpu") -> Any:
        """Load one network of diffusers' format, with all of its weights, laid out for a device and on it.

        Args:
            name: its folder.
            kind: its class, as the index says.
            classes: name -> class.
            device: where the network is put, in evaluation mode and without gradients.

        Raises:
            UserError: its files are missing, broken, of another class, or do not fit together.
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
        if missing := report["missing_keys"]:
            raise UserError(
                f"the weights in {folder} lack {len(missing)} tensors, the first being {sorted(missing)[0]}"
            )
        _check_sizes(module, f"{folder}/config.json")
        return prepare_loaded(module, device).to(device)

    def noise(self) -> Noise:
        """Read the scheduler's config, with the defaults of the class that the index names.

        Raises:
            UserError: no scheduler_config.json, one that our schedules cannot express, or a combination that is refused
                when a model is trained or saved.
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

    def conditioner(self, device: torch.device | str = "cpu") -> Conditioner:
        """Load the conditioner on a device; raises UserError if its files are missing, broken, or do not fit."""
        with silence_diffusers():
            try:
                return prepare_loaded(conditioners.load(self.path), device).to(device)
            except ConditioningError as error:
                raise UserError(str(error)) from None
            except Exception as error:  # of many unrelated classes: broken JSON or weights, shapes
                raise UserError(f"cannot open the conditioner in {self}: {' '.join(str(error).split()):.300}") from None


def entry_of(folder: ModelFolder, name: str) -> tuple[str, str]:
    """Return library and class of a component that an index names.

    Raises:
        UserError: the entry is anything but two texts.
    """
    match folder.index.get(name):
        case [str(library), str(kind)]:
            return library, kind
        case other:
            raise UserError(f"{folder.path / INDEX}: {name} is {other!r:.80}; expected its library and its class")


def _check_sizes(module: Any, where: str) -> None:
    """Check that the sizes in a network's config are whole numbers; a square sample_size, [32, 32], becomes its side.

    Raises:
        UserError: names the key.
    """
    for key in [key for key in _SIZES if key in module.config]:
        value = module.config[key]
        if key == "sample_size" and isinstance(value, list | tuple) and len({*map(str, value)}) == 1:
            module.register_to_config(sample_size=value[0])
        value = module.config[key]
        if (type(value) is not int or value < 1) and (key, value) != ("out_channels", None):
            raise UserError(f"{where}: {key} is {value!r:.40}; expected a whole number of 1 or more")


def read_json(path: Path, subject: str) -> dict[str, Any]:
    """Read a JSON object; raises UserError, beginning with `subject`, if it is missing or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{subject} is missing or no JSON object; expected a folder in the diffusers layout")
    return content


@contextmanager
def silence_diffusers() -> Iterator[None]:
    """Silence what diffusers logs about weights; our own sentence says it."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def strip_paths(folder: Path) -> None:
    """Remove paths of this machine from the configs, and give weights the mode that the umask asks for."""
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for weights in path.parent.glob("*.safetensors"):
            weights.chmod(path.stat().st_mode)
