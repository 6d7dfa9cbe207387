"""Drawing to a folder: prompts in, named PNGs and a grid out."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import UserError
from ldm_kit.models import folder
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.options import SamplingOptions, check_options, check_unconditional_options
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.solvers import diffusers_solvers
from ldm_kit.solvers.table import DIFFUSERS_PREFIX
from ldm_kit.viz.grid import grid
from ldm_kit.viz.png import MAX_SEED, file_name, save_png

PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
GRID = 400  # most pictures in the grid


@dataclass(frozen=True)
class GenerationRequest:
    """What to draw: prompts given and from a file, `count` pictures each, from seeds that count up from `seed`."""

    prompts: tuple[str, ...] = ()
    prompts_file: Path | None = None
    count: int = 1
    seed: int = 0
    batch_size: int = 32

    def texts(self) -> list[str]:
        """All prompts.

        Raises:
            UserError: the file cannot be read or holds no prompt.
        """
        if self.prompts_file is None:
            return list(self.prompts)
        try:
            lines = self.prompts_file.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise UserError(f"cannot read prompts from {self.prompts_file}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.prompts_file} is not UTF-8 text (byte {error.start}); expected one prompt a line"
            ) from None
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise UserError(f"{self.prompts_file} holds no prompt; expected one a line")
        return [*self.prompts, *found]


@dataclass(frozen=True)
class GuideModels:
    """Folders of what guides from outside: a noisy classifier, and a worse model for autoguidance."""

    classifier: Path | None = None
    worse: Path | None = None


class GenerationResult(NamedTuple):
    """How many pictures were drawn, and where they are shown together."""

    pictures: int
    path: Path


def generate_to_folder(
    model: Path,
    order: GenerationRequest,
    wish: SamplingOptions,
    out: Path,
    *,
    guides: GuideModels | None = None,
    device: str | None = None,
    precision: str = "no",
    metadata: bool = True,
) -> GenerationResult:
    """Draw an order into `out`.

    Raises:
        UserError: a number out of range; no such model, solver, precision or device; prompts or guides that do not fit
            the model.
    """
    check_options(wish)
    guides = guides or GuideModels()
    _refuse(order, precision)
    _refuse_idle(guides, wish)
    texts = order.texts()
    pipeline = _opened(model, guides, folder.device_named(device), PRECISIONS[precision])
    jobs = [(text, order.seed + k) for text in _fitting(pipeline, texts, wish) for k in range(order.count)]
    wish = pipeline.resolve(wish)
    out.mkdir(parents=True, exist_ok=True)
    shown: list[Tensor] = []
    drawn = _drawn(pipeline, jobs, wish, order.batch_size)
    for index, picture in enumerate(tqdm(drawn, total=len(jobs), unit="picture")):
        text, seed = jobs[index]
        about = _about(text, seed, wish) if metadata else None
        save_png(grid(picture[None], 1, padding=0), out / file_name(seed, index, text), about)
        if index < GRID:
            shown.append(picture)
    columns = order.count if order.count > 1 else min(8, math.ceil(math.sqrt(len(shown))))
    sheet = grid(
        torch.stack(shown), columns, scale=max(1, 96 // shown[0].shape[-1]), captions=[t for t, _ in jobs[:GRID]]
    )
    save_png(sheet, out / "grid.png", _settings(wish) if metadata else None)
    return GenerationResult(len(jobs), out / "grid.png")


def _drawn(pipeline: Pipeline, jobs: list[tuple[str, int]], wish: SamplingOptions, batch: int) -> Iterator[Tensor]:
    for part in pipeline.draw([text for text, _ in jobs], [seed for _, seed in jobs], wish, batch):
        yield from part


def _about(text: str, seed: int, wish: SamplingOptions) -> dict[str, str]:
    return {"prompt": text, "seed": str(seed), **_settings(wish)}


def _settings(wish: SamplingOptions) -> dict[str, str]:
    return {"settings": json.dumps(asdict(wish))}


def _opened(model: Path, guides: GuideModels, device: torch.device, precision: torch.dtype | None) -> Pipeline:
    pipeline = Pipeline.load(folder.model_folder(model), device, precision)
    classifier = None if guides.classifier is None else NoisyClassifier.load(guides.classifier, device)
    worse = None if guides.worse is None else Pipeline.load(folder.model_folder(guides.worse), device, precision)
    return pipeline.with_guides(classifier, worse)


def _fitting(pipeline: Pipeline, texts: list[str], wish: SamplingOptions) -> list[str]:
    """The prompts, once they and the wish are known to fit the model; all of it is said before anything is written."""
    _refuse_walk(pipeline, pipeline.resolve(wish))
    texts = _prompted(pipeline, texts, wish) if pipeline.conditioner.null is None else texts
    if not texts:
        raise UserError("this model draws from prompts or class names; give at least one, or --prompts_file")
    guided = pipeline.conditioner.null is not None and wish.guidance_scale != 1
    pipeline.conditioner.prepare([*texts, wish.negative or ""] if guided else texts)
    if pipeline.worse is not None:
        pipeline.worse.conditioner.prepare(texts)
    pipeline.labels(texts, wish)
    return texts


def _refuse_walk(pipeline: Pipeline, wish: SamplingOptions) -> None:
    """Refuse a settled wish that this model's samplers could not follow."""
    times = pipeline.times(wish)
    if pipeline.vae is not None and wish.clip != "none":
        raise UserError(f"--clip {wish.clip} is for pixels, but this model draws latents, which have no range")
    if wish.algorithm == 1 and len(times) == 2:
        raise UserError("--algorithm 1 shifts by a step's variance, and a single one has none; expected more --steps")
    if wish.solver.startswith(DIFFUSERS_PREFIX):
        try:
            diffusers_solvers.build_diffusers_scheduler(
                wish.solver.removeprefix(DIFFUSERS_PREFIX), pipeline.schedule, times
            )
        except ValueError as error:
            raise UserError(f"--solver {wish.solver}: {error}") from None


def _prompted(pipeline: Pipeline, texts: list[str], wish: SamplingOptions) -> list[str]:
    """What an unconditional model is told: nothing, or a classifier's classes."""
    check_unconditional_options(wish)
    named = pipeline.classifier is not None and wish.classifier_class is None
    if named and not texts:
        raise UserError("a classifier needs a class; give class names as prompts, or --classifier_class NAME")
    if texts and not named:
        raise UserError(f"this model is unconditional and takes no prompt, got {texts[0]!r:.80}; use --count alone")
    return texts or [""]


def _refuse(order: GenerationRequest, precision: str) -> None:
    counts = {"--count": order.count, "--batch_size": order.batch_size}
    if few := [f"{flag} is {value}; expected 1 or more" for flag, value in counts.items() if value < 1]:
        raise UserError(few[0])
    if not 0 <= order.seed <= MAX_SEED - order.count + 1:
        raise UserError(f"--seed is {order.seed}; expected 0 to 2^64 - --count")
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; known are {', '.join(PRECISIONS)}")


def _refuse_idle(guides: GuideModels, wish: SamplingOptions) -> None:
    """Refuse settings of a guide that is not there."""
    said = {
        "--classifier_scale": wish.classifier_scale is not None,
        "--classifier_class": wish.classifier_class is not None,
        "--algorithm": wish.algorithm is not None,
    }
    if guides.classifier is None and any(said.values()):
        raise UserError(f"{next(flag for flag in said if said[flag])} needs --classifier DIR, a noisy classifier")
    if guides.worse is None and wish.autoguidance_scale is not None:
        raise UserError("--autoguidance_scale needs --worse DIR, a worse model of the same pictures")
