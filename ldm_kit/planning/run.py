"""Run a plan: both stages, from where an earlier run of it stopped, and a sheet of pictures at the end."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ldm_kit.config import UserError
from ldm_kit.data.batches import spread
from ldm_kit.data.images import PictureSet
from ldm_kit.data.sources import load
from ldm_kit.methods import read_run
from ldm_kit.methods.latent_config import LatentRun
from ldm_kit.methods.train import train
from ldm_kit.models.folder import device_named
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.planning.files import PlanFiles, expected_psnr
from ldm_kit.training.log import FILE
from ldm_kit.viz.png import save_png
from ldm_kit.viz.sheet import Section, sheet

SHEET, RESULT, SHOWN = "sheet.png", "result.json", 8


@dataclass(frozen=True)
class PlanResult:
    """What the trainings of a plan took and reached, beside what was expected."""

    seconds: tuple[float, ...]  # of each stage that was trained now
    expected: tuple[float, ...]  # seconds that were planned for these
    psnr: float | None  # dB, of held-out pictures; None: no stage 1, or nothing held out
    sheet: Path  # PNG of real and sampled pictures

    def sentences(self, psnr: tuple[float, float] | None) -> list[str]:
        """Return lines for the user; `psnr` is the range that the plan expects."""
        took, planned = sum(self.seconds) / 60, sum(self.expected) / 60
        lines = [f"trained in {took:.1f} minutes, planned were {planned:.1f}"] if self.seconds else ["trained before"]
        if self.psnr is not None and psnr is not None:
            lines.append(f"stage 1: {self.psnr:.1f} dB PSNR; expected {expected_psnr(psnr)}")
        return [*lines, f"look at {self.sheet}"]


def run_plan(plan: PlanFiles, say: Callable[[str], object]) -> PlanResult:
    """Train the stages that are not finished, resumed from their last checkpoints, and sample a sheet of pictures.

    Args:
        plan: the plan's files.
        say: prints a line.

    Raises:
        UserError: a config cannot be used; see `ldm_kit.train`.
    """
    configs = [read_run(path) for path in plan.stages]  # all, before the first is trained
    seconds: list[float] = []
    expected: list[float] = []
    for number, (path, config, planned) in enumerate(zip(plan.stages, configs, plan.seconds, strict=True), 1):
        run = Path(config.run)
        if (run / "model").is_dir():
            say(f"{number}/{len(configs)}  {path.name}: trained already, {run / 'model'}")
            continue
        unfinished = any(run.glob("checkpoint-*"))
        say(
            f"{number}/{len(configs)}  {path.name}: about {planned / 60:.0f} minutes{', resumed' if unfinished else ''}"
        )
        began = time.monotonic()
        train(config, resume="latest" if unfinished else None)
        if not unfinished:
            seconds.append(time.monotonic() - began)
            expected.append(planned)
    latent = configs[-1]
    if not isinstance(latent, LatentRun):
        raise UserError(f"{plan.stages[-1]} is of the method {type(latent).__name__}; expected latent diffusion")
    result = PlanResult(tuple(seconds), tuple(expected), _psnr(plan), _sheet(plan, latent))
    _write(plan.folder / RESULT, result)
    return result


def _psnr(plan: PlanFiles) -> float | None:
    """Return the held-out PSNR that the last evaluation of stage 1 logged."""
    path = plan.folder / "ae" / FILE
    if not path.is_file():
        return None
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return next((line["heldout_psnr"] for line in reversed([*lines]) if "heldout_psnr" in line), None)


def _sheet(plan: PlanFiles, config: LatentRun) -> Path:
    """Sample pictures for held-out captions or classes, and save a sheet of real and sampled ones."""
    data = load(config.data)
    pictures = data.heldout if len(data.heldout) else data.train
    rows = spread(len(pictures), SHOWN)
    prompts, captions = _prompts(pictures, rows, config.condition.kind)
    pipeline = Pipeline.load(Path(config.run) / "model", device_named(None))
    sampled = torch.cat([*pipeline.generate(prompts, range(len(rows)), None, SHOWN)])
    real = pictures.pictures(rows)
    sections = [
        Section(f"pictures of the folder{', not trained on' if len(data.heldout) else ''}", real, captions),
        Section("sampled by the model", sampled, captions),
    ]
    path = plan.folder / SHEET
    save_png(sheet(sections, ""), path)
    return path


def _prompts(pictures: PictureSet, rows: list[int], kind: str) -> tuple[list[str | int], list[str] | None]:
    records = [pictures.records[row] for row in rows]
    if kind == "none":
        return [""] * len(rows), None
    if kind == "class":
        names = [pictures.classes[record.label or 0] for record in records]
        return [*names], names
    return [record.text for record in records], [record.text for record in records]


def _write(path: Path, result: PlanResult) -> None:
    content = {"seconds": result.seconds, "expected_seconds": result.expected, "psnr": result.psnr}
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
