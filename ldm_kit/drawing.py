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
from ldm_kit.evaluation.files import file_name, save_png
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
            lines = self.prompts_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read prompts from {self.prompts_file}: {error}") from None
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise UserError(f"{self.prompts_file} holds no prompt; expected one a line")
        return [*self.prompts, *found]


class Drawn(NamedTuple):
    """How many pictures were drawn, and where they are shown together."""

    count: int
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
        UserError: no such model, solver, precision or device; prompts for a model without a condition, or none for one.
    """
    _refuse(wish, precision)
    pipeline = Pipeline.load(_model_folder(model), _device(device), PRECISIONS[precision])
    texts = _texts(pipeline, order)
    jobs = [(text, order.seed + k) for text in texts for k in range(order.count)]
    pictures: list[Tensor] = []
    for index, picture in enumerate(
        tqdm(_drawn(pipeline, jobs, wish, order.batch_size), total=len(jobs), unit="picture")
    ):
        text, seed = jobs[index]
        about = _about(text, seed, wish) if metadata else None
        save_png(grid(picture[None], 1, padding=0), out / file_name(seed, index, text), about)
        pictures.append(picture)
    shown = pictures[:GRID]
    columns = order.count if order.count > 1 else min(8, math.ceil(math.sqrt(len(shown))))
    sheet = grid(
        torch.stack(shown), columns, scale=max(1, 96 // shown[0].shape[-1]), captions=[t for t, _ in jobs[:GRID]]
    )
    save_png(sheet, out / "grid.png", {"settings": json.dumps(asdict(wish))} if metadata else None)
    return Drawn(len(pictures), out / "grid.png")


def _drawn(pipeline: Pipeline, jobs: list[tuple[str, int]], wish: Wish, batch: int) -> Iterator[Tensor]:
    for part in pipeline.draw([text for text, _ in jobs], [seed for _, seed in jobs], wish, batch):
        yield from part


def _about(text: str, seed: int, wish: Wish) -> dict[str, str]:
    return {"prompt": text, "seed": str(seed), "settings": json.dumps(asdict(wish))}


def _texts(pipeline: Pipeline, order: Order) -> list[str]:
    texts = order.texts()
    if pipeline.conditioner.null is None and texts:
        raise UserError(f"this model is unconditional and takes no prompt, got {texts[0]!r:.80}; use --count alone")
    if pipeline.conditioner.null is not None and not texts:
        raise UserError("this model draws from prompts or class names; give at least one, or --prompts_file")
    return texts or [""]


def _refuse(wish: Wish, precision: str) -> None:
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
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"cannot use the device {name!r}: {str(error).splitlines()[0]}") from None
    return device
