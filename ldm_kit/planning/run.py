"""Run a plan: both stages, from where an earlier run of it stopped, and a sheet of pictures at the end."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ldm_kit.config import UserError
from ldm_kit.data.batches import spread
from ldm_kit.data.buckets import square_split
from ldm_kit.data.sources import load
from ldm_kit.methods import read_run
from ldm_kit.methods.conditions import Conditions
from ldm_kit.methods.latent_config import LatentRun
from ldm_kit.methods.run_config import RunConfig, method_name
from ldm_kit.methods.train import train
from ldm_kit.models.folder import device_named
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.planning.files import PlanFiles, expected_psnr
from ldm_kit.training.log import FILE, last_evaluation
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
        UserError: several processes were launched, or a config cannot be used; see `ldm_kit.train`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # a process group ends with the training that opened it
        commands = " and ".join(f"{command} {path}" for command, path in zip(_commands(plan), plan.stages, strict=True))
        raise UserError(
            f"ldm-kit train takes one process; on several, launch each stage, {commands}, and then ldm-kit train for "
            "the sheet of pictures"
        )
    configs = [read_run(path) for path in plan.stages]  # all, before the first is trained
    latent = configs[-1]
    if not isinstance(latent, LatentRun):
        raise UserError(f"{plan.stages[-1]} trains {method_name(latent)}; expected latent diffusion")
    if latent.condition.takes_pictures:
        raise UserError(f"{plan.stages[-1]} is conditioned on pictures; train its stages with train-ae and train-ldm")
    spent = [_train_stage(plan, number, config, say) for number, config in enumerate(configs)]
    timed = [(seconds, expected) for seconds, expected in zip(spent, plan.seconds, strict=True) if seconds]
    path = plan.folder / SHEET
    psnr = last_evaluation(Path(configs[0].run) / FILE).get("heldout_psnr")
    result = PlanResult(tuple(s for s, _ in timed), tuple(e for _, e in timed), psnr, path)
    _write_sheet(path, latent)
    content = {"seconds": result.seconds, "expected_seconds": result.expected, "psnr": result.psnr}
    (plan.folder / RESULT).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return result


def _commands(plan: PlanFiles) -> list[str]:
    return ["train-ae", "train-ldm"][-len(plan.stages) :]


def _train_stage(plan: PlanFiles, number: int, config: RunConfig, say: Callable[[str], object]) -> float:
    """Train a stage, if it is not finished; return its seconds, or 0 if it was trained, in whole or part, before."""
    run, title = Path(config.run), f"{number + 1}/{len(plan.stages)}  {plan.stages[number].name}"
    if (run / "model").is_dir():
        say(f"{title}: trained already, {run / 'model'}")
        return 0.0
    unfinished = any(run.glob("checkpoint-*"))
    say(f"{title}: about {plan.seconds[number] / 60:.1f} minutes{', resumed' if unfinished else ''}")
    began = time.monotonic()
    train(config, resume="latest" if unfinished else None)
    return 0.0 if unfinished else time.monotonic() - began


def _write_sheet(path: Path, config: LatentRun) -> None:
    """Sample pictures for held-out captions or classes, and save a sheet of real and sampled ones."""
    data = square_split(load(config.data))
    heldout = len(data.heldout) >= SHOWN
    pictures = data.heldout if heldout else data.train
    real = pictures.pictures(spread(len(pictures), SHOWN))
    conditions = Conditions.open(config.condition, data)
    prompts = conditions.examples(len(real))  # of the same pictures
    pipeline = Pipeline.load(Path(config.run) / "model", device_named(None))
    captions = None if pipeline.conditioner.null is None else [conditions.caption(prompt) for prompt in prompts]
    sampled = torch.cat([*pipeline.generate(prompts, range(len(prompts)), None, SHOWN)])
    sections = [
        Section(f"pictures of the folder{', not trained on' if heldout else ''}", real, captions),
        Section("sampled by the model", sampled, captions),
    ]
    save_png(sheet(sections, ""), path)
