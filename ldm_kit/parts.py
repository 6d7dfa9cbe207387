"""The parts of a saved model's folder: opened strictly, and written without traces of the machine that wrote them.

A folder is read as data: known classes from known libraries, safetensors, JSON. What else it asks for is refused.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel

from ldm_kit.config import UserError

INDEX = "model_index.json"
FIRST_STAGE: Mapping[str, Any] = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}
UNET: Mapping[str, Any] = {"UNet2DConditionModel": UNet2DConditionModel, "UNet2DModel": UNet2DModel}
KNOWN: Mapping[str, tuple[str, tuple[str, ...]]] = {  # part -> (library, classes)
    "vae": ("diffusers", tuple(FIRST_STAGE)),
    "vqvae": ("diffusers", tuple(FIRST_STAGE)),
    "unet": ("diffusers", tuple(UNET)),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "class_encoder": ("conditioning.labels", ("ClassEmbedder",)),
}
_UNUSED = ("scheduler", "safety_checker", "feature_extractor", "image_encoder")  # read as numbers alone, or not at all


def read_index(folder: Path) -> dict[str, str]:
    """The classes of a saved model's parts, by part, from its model_index.json.

    Raises:
        UserError: no such folder or file, a part that we do not know or that brings its own code, or a part missing.
    """
    index = read_json(folder / INDEX, f"{folder} is no saved model: its {INDEX}")
    parts = {name: value for name, value in index.items() if isinstance(value, list) and any(value)}
    for name, value in parts.items():
        if name not in _UNUSED:
            _refuse_foreign(folder, name, value)
    if lost := [name for name in ("unet", "scheduler") if name not in parts]:
        raise UserError(
            f"{folder / INDEX} names no {lost[0]}; expected a latent diffusion model in the diffusers layout"
        )
    return {name: value[1] for name, value in parts.items()}


def _refuse_foreign(folder: Path, name: str, value: Any) -> None:
    if name not in KNOWN:
        raise UserError(f"{folder} has a part {name!r} ({value}), which we cannot use; known are {', '.join(KNOWN)}")
    library, classes = KNOWN[name]
    if len(value) != 2 or value[0] != library or value[1] not in classes:
        raise UserError(
            f"{folder}: {name} is {value}, expected {library} with {' or '.join(classes)}; no other code is run"
        )
    if not (folder / name).is_dir():
        raise UserError(f"{folder} is incomplete: its folder {name} is missing")
    config = folder / name / "config.json"
    if config.exists() and "auto_map" in read_json(config, str(config)):
        raise UserError(
            f"{config} asks for code of its own (auto_map), which is never run; expected a plain {value[1]}"
        )


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object; raises UserError, beginning with `what`, if it is missing or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{what} is missing or no JSON object; expected a folder in the diffusers layout")
    return found


def component(folder: Path, name: str, kind: str, classes: Mapping[str, Any]) -> Any:
    """One network of diffusers, with all of its weights.

    Raises:
        UserError: its files are missing, broken, of another class, or do not fit together.
    """
    place = folder / name
    stated = read_json(place / "config.json", f"{place}/config.json").get("_class_name")
    if stated != kind:
        raise UserError(f"{place}/config.json is of class {stated}, but {INDEX} says {kind}")
    with hushed():
        try:
            module, found = classes[kind].from_pretrained(
                place, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # of many unrelated classes: broken JSON or weights, unknown blocks, shapes
            raise UserError(f"cannot open {place}: {' '.join(str(error).split()):.300}") from None
    if lost := found["missing_keys"]:
        raise UserError(f"the weights in {place} lack {len(lost)} tensors, the first being {sorted(lost)[0]}")
    return module


@contextmanager
def hushed() -> Iterator[None]:
    """Without the advice that diffusers logs about weights; we say it in a sentence of our own."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def tidy(folder: Path) -> None:
    """Take paths of this machine out of the configs, and give weights the mode that the umask asks for."""
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for weights in path.parent.glob("*.safetensors"):
            weights.chmod(path.stat().st_mode)
