"""Claims about prompt fidelity on OpenMoji: how often the drawing nearest to a picture is the prompted one."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import kit
from benchmarks.claims.drawings import (
    OPTIONS,
    Drawings,
    choose_prompts,
    judges,
    measure_fidelity,
    reference_features,
    without_twins,
)
from ldm_kit.cli import cli_errors
from ldm_kit.config import UserError
from ldm_kit.data.images import PictureSet, Split
from ldm_kit.metrics.fidelity import Fidelity, table


def fidelity(
    model: Annotated[Path, typer.Option(help="model of a text-to-image run on OpenMoji")] = kit.QUICK / "model",
    prompts: Annotated[int, typer.Option(help="most prompts of each kind")] = 200,
) -> None:
    """Sample pictures for seen, held-out and unseen captions, and print how often the nearest drawing is theirs."""
    with cli_errors():
        if not model.is_dir():
            raise UserError(f"no model in {model}; train {kit.AE} and {kit.LDM}, or name another: --model")
        typer.echo(table(measure(kit.load_pipeline(model), kit.load_openmoji(), prompts)))


def measure(pipeline: kit.Pipeline, split: Split, prompts: int) -> dict[str, Fidelity]:
    """Measure the fidelity of a pipeline's pictures to at most `prompts` captions of each part, by name of the row."""
    drawings, rows = Drawings.all(split), {}
    texts = {name: choose_prompts(pictures, prompts, name) for name, pictures in _parts(split).items()}
    options = kit.SamplingOptions().resolve(pipeline, OPTIONS)
    pictures = {
        name: kit.generate(pipeline, captions, range(len(captions)), options) for name, captions in texts.items()
    }
    for judge, features in judges(pipeline.vae, torch.device("cpu")).items():
        references = reference_features(drawings, features)
        for name, captions in texts.items():
            row = measure_fidelity(drawings, references, pictures[name], captions, features)
            rows[f"{name}, nearest in {judge}"] = row
    return rows


def _parts(split: Split) -> dict[str, PictureSet]:
    parts = {"seen in training": split.train, "held-out pictures": without_twins(split.heldout, split.train)}
    return parts | ({"unseen combinations": split.compositional} if split.compositional is not None else {})
