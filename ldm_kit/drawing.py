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
from ldm_kit.evaluation.files import MAX_SEED, file_name, save_png
from ldm_kit.evaluation.pictures import grid
from ldm_kit.nets.solvers import SOLVERS
from ldm_kit.pipeline import Pipeline, Wish

PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
GRID = 400  # most pictures in the grid


@dataclass(frozen=True)
class Order:
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


class Drawn(NamedTuple):
    """How many pictures were drawn, and where they are shown together."""

    pictures: int
    path: Path


def draw_to_folder(
    model: Path,
    order: Order,
    wish: Wish,
    out: Path,
    *,
    device: str | None = None,
    precision: str = "no",
    metadata: bool = True,
) -> Drawn:
    """Draw an order into `out`.

    Raises:
        UserError: a number out of range; no such model, solver, precision or device; prompts that do not fit the model.
    """
    _refuse(order, wish, precision)
    texts = order.texts()
    pipeline = Pipeline.load(_model_folder(model), _device(device), PRECISIONS[precision])
    jobs = [(text, order.seed + k) for text in _fitting(pipeline, texts, wish) for k in range(order.count)]
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
    return Drawn(len(jobs), out / "grid.png")


def _drawn(pipeline: Pipeline, jobs: list[tuple[str, int]], wish: Wish, batch: int) -> Iterator[Tensor]:
    for part in pipeline.draw([text for text, _ in jobs], [seed for _, seed in jobs], wish, batch):
        yield from part


def _about(text: str, seed: int, wish: Wish) -> dict[str, str]:
    return {"prompt": text, "seed": str(seed), **_settings(wish)}


def _settings(wish: Wish) -> dict[str, str]:
    return {"settings": json.dumps(asdict(wish))}


def _fitting(pipeline: Pipeline, texts: list[str], wish: Wish) -> list[str]:
    """The prompts, once they and the wish are known to fit the model; all of it is said before anything is written."""
    if wish.steps > (most := pipeline.schedule_config.steps):
        raise UserError(f"--steps {wish.steps} is more than the {most} times that this model was trained on")
    if pipeline.conditioner.null is None:
        if texts or wish.negative is not None:
            raise UserError(
                f"this model is unconditional and takes no prompt, got {(texts or [wish.negative])[0]!r:.80}; "
                "use --count alone"
            )
        return [""]
    if not texts:
        raise UserError("this model draws from prompts or class names; give at least one, or --prompts_file")
    if wish.negative is not None and wish.guidance_scale == 1:
        raise UserError("--negative_prompt has no effect at --guidance_scale 1; expected another scale")
    pipeline.conditioner.prepare([*texts, wish.negative or ""])
    return texts


def _refuse(order: Order, wish: Wish, precision: str) -> None:
    counts = {"--count": order.count, "--steps": wish.steps, "--batch_size": order.batch_size}
    if few := [f"{flag} is {value}; expected 1 or more" for flag, value in counts.items() if value < 1]:
        raise UserError(few[0])
    if not 0 <= order.seed <= MAX_SEED - order.count + 1:
        raise UserError(f"--seed is {order.seed}; expected 0 to 2^64 - --count")
    if not (wish.guidance_scale >= 0 and math.isfinite(wish.guidance_scale)):
        raise UserError(f"--guidance_scale is {wish.guidance_scale}; expected a number of 0 or more, 1 is no guidance")
    if wish.solver not in SOLVERS:
        raise UserError(f"unknown solver {wish.solver!r}; known are {', '.join(SOLVERS)}")
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; known are {', '.join(PRECISIONS)}")


def _model_folder(path: Path) -> Path:
    """The model's folder itself, or the finished one in a run's folder."""
    inside = path / "model"
    return inside if not (path / "model_index.json").exists() and (inside / "model_index.json").exists() else path


def _device(name: str | None) -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name is None:
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"cannot use the device {name!r}: {str(error).splitlines()[0]}") from None
    return device
