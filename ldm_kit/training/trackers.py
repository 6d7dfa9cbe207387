"""Trackers of accelerate (TensorBoard, W&B, MLflow and so on), which get a run's metrics and grids of pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from PIL import Image

from ldm_kit.config import UserError

TENSORBOARD, PROJECT = "tensorboard", "ldm_kit"
_PACKAGES = {"comet_ml": "comet-ml"}  # names on PyPI that differ from the tracker's


def check_trackers(names: Sequence[str]) -> None:
    """Check that accelerate knows each tracker, and that its package is installed.

    Raises:
        UserError: a tracker is unknown or not installed; the message says what to install.
    """
    accepted = [name for name in map(str, LOGGER_TYPE_TO_CLASS) if name != TENSORBOARD]
    installed = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in names:
        if name == TENSORBOARD:
            raise UserError("log.trackers names tensorboard, which log.tensorboard switches; leave it out")
        if name not in accepted:
            raise UserError(f"log.trackers names {name!r:.80}; expected some of {', '.join(accepted)}")
        if name not in installed:
            package = _PACKAGES.get(name, name)
            raise UserError(f"log.trackers names {name}, which is not installed; expected `pip install {package}`")


def start_trackers(
    accelerator: Accelerator, names: Sequence[str], folder: Path, config: Mapping[str, Any], first: int | None
) -> None:
    """Start TensorBoard, if the accelerator has it, and the other trackers, on the main process.

    Args:
        accelerator: accelerate's `Accelerator`, made with all of them.
        names: the trackers besides TensorBoard.
        folder: the run's folder; its name is the run's name in W&B and SwanLab, in the project ldm_kit.
        config: the run's config, nested, which the trackers show.
        first: step before which TensorBoard's events are kept; None: a new run.
    """
    every: list[Any] = [*accelerator.log_with]
    started: list[Any] = []
    for project, chosen in ((TENSORBOARD, [TENSORBOARD]), (PROJECT, [*names])):
        accelerator.log_with = [each for each in every if str(getattr(each, "value", each)) in chosen]
        if not accelerator.log_with:
            continue
        options: dict[str, Any] = {"wandb": {"name": folder.name}, "swanlab": {"experiment_name": folder.name}}
        options[TENSORBOARD] = {} if first is None else {"purge_step": first}
        shown = None if project == TENSORBOARD else flat(config)
        accelerator.trackers = []  # else those of the other project are started again
        accelerator.init_trackers(project, config=shown, init_kwargs=options)
        started += accelerator.trackers
    accelerator.log_with, accelerator.trackers = every, started


def log_pictures(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Give the grids that an evaluation at `step` wrote into the run's pictures/ to the trackers that take pictures."""
    grids = {path.stem.rpartition("-")[0]: path for path in sorted((folder / "pictures").glob(f"*-{step:08d}.png"))}
    for tracker in accelerator.trackers:
        log_images: Any = getattr(tracker, "log_images", None)
        if log_images is None:  # MLflow, Comet, DVCLive and Trackio take none through accelerate
            continue
        layout = {"dataformats": "NHWC"} if tracker.name == TENSORBOARD else {}
        for name, path in grids.items():
            with Image.open(path) as grid:
                log_images({name: np.asarray(grid.convert("RGB"))[None]}, step=step, **layout)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Return a nested config with dotted keys; values that are no number, string or bool as text."""
    result: dict[str, int | float | str | bool] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return result
