"""The files of a plan: the configs of both stages, with comments, and plan.json, which says what to expect."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ldm_kit.config import UserError
from ldm_kit.paths import check_writable
from ldm_kit.planning.plan import Plan
from ldm_kit.planning.stages import Tree, first_stage, second_stage

PLAN, FIRST, SECOND = "plan.json", "ae.yaml", "ldm.yaml"
COMMENTS = {
    "flip": "mirror half of the pictures; false where left and right mean something, such as digits and words",
    "autoencoder": "stage 1: widths by level; each level after the first halves the sides",
    "perceptual": "network whose features are compared beside pixels; spec none: pixels alone, and softer pictures",
    "loss": "kl_weight: more makes latents that are easier to learn, and blurs",
    "condition": "text, class, or none",
    "unet": "stage 2: widths by level",
    "prediction_type": "v (Salimans & Ho 2022)",
    "train": "steps and batch were chosen for the time; more steps make better pictures",
    "sample": "how pictures are sampled where nothing else is said; saved with the model",
}


@dataclass(frozen=True)
class PlanFiles:
    """A plan as `write_plan` wrote it."""

    folder: Path  # holds plan.json, the configs, and both runs
    pictures: Path  # the folder of pictures
    stages: tuple[Path, ...]  # configs of the stages in their order
    seconds: tuple[float, ...]  # that each stage is expected to take
    psnr: tuple[float, float] | None  # expected range, in dB


def plan_folder(pictures: Path) -> Path:
    """Return the default folder of a plan: runs/NAME, by the name of the folder of pictures."""
    return Path("runs") / (pictures.resolve().name or "pictures")


def write_plan(plan: Plan, folder: Path) -> PlanFiles:
    """Write the configs and plan.json into a folder that is new or empty, and return what was written.

    Raises:
        UserError: the folder has files in it, or cannot be written.
    """
    check_new(folder)
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    first, second = folder / "ae", folder / "ldm"
    stages: list[tuple[str, Tree, Sequence[str]]] = []
    if plan.psnr is not None:
        stages.append((FIRST, first_stage(plan.recipe, plan.data, str(first), plan.steps[0]), _header(plan, 0, folder)))
    autoencoder = None if plan.psnr is None else str(first)
    tree = second_stage(plan.recipe, plan.data, str(second), plan.steps[1], autoencoder, words=plan.summary.words)
    stages.append((SECOND, tree, _header(plan, 1, folder)))
    for name, content, header in stages:
        (folder / name).write_text(_commented(content, header), encoding="utf-8")
    seconds = [time for time in plan.seconds if time]
    content = {
        "pictures": str(plan.summary.path.resolve()),
        "stages": [name for name, _, _ in stages],
        "seconds": [round(time, 1) for time in seconds],
        "psnr": plan.psnr and [round(value, 1) for value in plan.psnr],
        "disk": plan.disk,
        "notes": list(plan.notes),
    }
    (folder / PLAN).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return read_plan(folder)


def check_new(folder: Path) -> None:
    """Check that a plan can be written into a folder; raise UserError if it has files in it or cannot be written."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name another folder with --out, or delete that one")
    check_writable(folder)


def read_plan(folder: Path) -> PlanFiles:
    """Read plan.json.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / PLAN
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        psnr = None if content["psnr"] is None else (float(content["psnr"][0]), float(content["psnr"][1]))
        stages = tuple(folder / str(name) for name in content["stages"])
        return PlanFiles(folder, Path(content["pictures"]), stages, tuple(map(float, content["seconds"])), psnr)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; `ldm-kit new FOLDER` writes it") from None
    except (ValueError, KeyError, TypeError, IndexError):
        raise UserError(f"{path} is damaged; write the plan anew with `ldm-kit new`") from None


def find_plan(folder: Path) -> PlanFiles:
    """Return the plan in a folder, or, for a folder of pictures, the plan of it in runs/NAME.

    Raises:
        UserError: there is no plan, or that in runs/NAME is of other pictures.
    """
    if (folder / PLAN).is_file():
        return read_plan(folder)
    default = plan_folder(folder)
    if not (default / PLAN).is_file():
        raise UserError(f"no plan for {folder}, neither in it nor in {default}; make one with `ldm-kit new {folder}`")
    plan = read_plan(default)
    if plan.pictures != folder.resolve():
        raise UserError(
            f"the plan in {default} is of the pictures in {plan.pictures}; name the folder of the plan itself"
        )
    return plan


def _header(plan: Plan, stage: int, folder: Path) -> list[str]:
    name, command = ((FIRST, "train-ae"), (SECOND, "train-ldm"))[stage]
    lines = [f"Command:   ldm-kit train {shlex.quote(str(folder))}    (both stages), or this one alone:"]
    lines += [f"           accelerate launch -m ldm_kit {command} {shlex.quote(str(folder / name))}"]
    lines += [f"Pictures:  {plan.summary}"]
    lines += [f"Time:      about {_minutes(plan.seconds[stage])} on the machine that made this plan"]
    if stage == 0 and plan.psnr is not None:
        lines += [f"Expected:  {expected_psnr(plan.psnr)}"]
    return [*lines, *(f"Note:      {note}" for note in plan.notes)]


def expected_psnr(psnr: tuple[float, float]) -> str:
    """Return the expected range of PSNR as a phrase."""
    return f"{psnr[0]:.0f} to {psnr[1]:.0f} dB PSNR of held-out pictures after encoding and decoding"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def _commented(tree: Mapping[str, Any], header: Sequence[str]) -> str:
    lines = [f"# {line}" for line in header]
    for key, value in tree.items():
        comment = (
            f" # {COMMENTS[key]}" if key in COMMENTS and not (key == "autoencoder" and isinstance(value, str)) else ""
        )
        lines += [comment.strip()] if comment else []
        text = yaml.safe_dump({key: value}, sort_keys=False, default_flow_style=None, width=110).rstrip()
        lines.append(text if isinstance(value, Mapping) else text.strip("{}"))
    return "\n".join(lines) + "\n"
