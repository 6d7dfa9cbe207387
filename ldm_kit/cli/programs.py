"""The programs that train, sample and edit; the scripts at the top of the repository and `ldm-kit` both run them."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ldm_kit.cli import built_in
from ldm_kit.cli.errors import cli_errors
from ldm_kit.config import tree
from ldm_kit.editing.commands import COMMANDS
from ldm_kit.inference.requests import CascadeOptions, GenerationRequest, GuideModels, LoraModels, OutputOptions
from ldm_kit.models.options import SamplingOptions

RunConfig = Annotated[
    Path, typer.Argument(help="YAML config, or one that `ldm-kit configs` lists, such as faces/ldm_text")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, dotted, such as optim.lr=3e-4")]
Resume = Annotated[str | None, typer.Option(help="`latest`, or a checkpoint's folder")]


def train_ae(config: RunConfig, overrides: Overrides = None, resume: Resume = None) -> None:
    """Train an autoencoder; its folder ends up holding model/, pictures/, metrics.jsonl and checkpoints."""
    _train(config, overrides, resume, "autoencoder")


def train_ldm(config: RunConfig, overrides: Overrides = None, resume: Resume = None) -> None:
    """Train a diffusion model; its folder ends up holding model/, pictures/, metrics.jsonl and checkpoints."""
    _train(config, overrides, resume, None)


def _train(config: Path, overrides: list[str] | None, resume: str | None, method: str | None) -> None:
    with cli_errors():
        content = tree(
            built_in.locate(config), overrides or ()
        )  # refuses a wrong file or override before the slow import of torch
        from ldm_kit.methods import check_run
        from ldm_kit.methods.train import train

        train(check_run(content, str(config), method), resume=resume)


def sample(
    model: Annotated[
        Path, typer.Argument(help="a saved model's folder (model_index.json), a run's, or a checkpoint's")
    ],
    request: GenerationRequest,
    options: SamplingOptions,
    guides: GuideModels,
    output: OutputOptions,
    *,
    lora: LoraModels,
    stages: CascadeOptions,
    checkpoint: Annotated[str | None, typer.Option(help="of a run: best, last, or a checkpoint's name or step")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="8 steps and bf16, where left out")] = False,
) -> None:
    """Sample every prompt `count` times; a picture depends on its prompt, seed and settings, but for rounding."""
    with cli_errors():
        from ldm_kit.inference.generate import generate_to_folder
        from ldm_kit.inference.generate_cascade import cascade_to_folder, check_alone, check_single, is_cascade
        from ldm_kit.methods.export import saved_model

        if fast:
            options, output = options.fast(), output.fast()
        folder = saved_model(model, checkpoint, output.device)
        if is_cascade(folder):
            check_alone(guides, lora)
            typer.echo(str(cascade_to_folder(folder, request, options, output, stages)))
            return
        check_single(stages, model)
        typer.echo(str(generate_to_folder(folder, request, options, guides, output, lora=lora.lora)))


def _printed(command: Callable[..., str]) -> Callable[..., None]:
    """Return a command that prints its result, or a user's mistake in one sentence."""

    @functools.wraps(command)
    def run(*arguments: object, **options: object) -> None:
        with cli_errors():
            typer.echo(command(*arguments, **options))

    return run


EDIT: tuple[Callable[..., None], ...] = tuple(_printed(command) for command in COMMANDS)
