"""Sample pictures from a trained model.

python sample.py runs/demo/ldm "ginger hair in a bun, full beard, winking, smiling, tan skin, blue T-shirt" --count 4
"""

from pathlib import Path
from typing import Annotated

import typer

from ldm_kit.cli import cli_errors, run_cli
from ldm_kit.inference.requests import GenerationRequest, GuideModels, OutputOptions
from ldm_kit.models.options import SamplingOptions


def main(
    model: Annotated[
        Path, typer.Argument(help="a saved model's folder (model_index.json), a run's, or a checkpoint's")
    ],
    request: GenerationRequest,
    options: SamplingOptions,
    guides: GuideModels,
    output: OutputOptions,
    *,
    checkpoint: Annotated[str | None, typer.Option(help="of a run: best, last, or a checkpoint's name or step")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="8 steps and bf16, where left out")] = False,
) -> None:
    """Sample every prompt `count` times; a picture depends on its prompt, seed and settings, but for rounding."""
    with cli_errors():
        from ldm_kit.inference.generate import generate_to_folder
        from ldm_kit.methods.export import saved_model

        if fast:
            options, output = options.fast(), output.fast()
        folder = saved_model(model, checkpoint, output.device)
        typer.echo(str(generate_to_folder(folder, request, options, guides, output)))


if __name__ == "__main__":
    run_cli(main)
