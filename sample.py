"""Draw pictures with a trained model.

python sample.py runs/demo/ldm/model "woman astronaut, dark skin tone" --count 4 --guidance_scale 3
"""

from pathlib import Path
from typing import Annotated

import typer

from ldm_kit.cli import cli_errors, run_cli


def main(
    model: Annotated[Path, typer.Argument(help="a saved model's folder (model_index.json), or a run's")],
    prompts: Annotated[list[str] | None, typer.Argument(help="prompts, or class names; none for unconditional")] = None,
    prompts_file: Annotated[Path | None, typer.Option("--prompts_file", help="a text file, one prompt a line")] = None,
    count: Annotated[int, typer.Option(help="pictures of each prompt")] = 1,
    seed: Annotated[int, typer.Option(help="seed of each prompt's first picture; the next counts up")] = 0,
    fast: Annotated[bool, typer.Option("--fast", help="what time allows: 8 steps, bf16 (docs/performance.md)")] = False,
    steps: Annotated[int | None, typer.Option(help="sampling steps; left out: 20, or 8 with --fast")] = None,
    solver: Annotated[
        str, typer.Option(help="ddpm, ddpm-large, ddim, dpm++, unipc, heun, euler-a, sde or diffusers:CLASS")
    ] = "dpm++",
    spacing: Annotated[str, typer.Option(help="trailing, leading, linspace; ddim25; 90,60,60,20,20")] = "trailing",
    eta: Annotated[float, typer.Option(help="noise of ddim's steps; 1 is as much as ddpm's")] = 0.0,
    clip: Annotated[
        str, typer.Option(help="what is predicted: none, clip, dynamic or published; auto: clip pixels")
    ] = "auto",
    guidance_scale: Annotated[float, typer.Option("--guidance_scale", help="classifier-free; 1 is none")] = 3.0,
    negative_prompt: Annotated[str | None, typer.Option("--negative_prompt", help="what to steer away from")] = None,
    rescale: Annotated[float, typer.Option("--guidance_rescale", help="0 to 1: tame guidance's contrast")] = 0.0,
    interval: Annotated[tuple[float, float], typer.Option("--guidance_interval", help="of time; 0 is clean")] = (0, 1),
    classifier: Annotated[Path | None, typer.Option(help="a noisy classifier; its classes are the prompts")] = None,
    classifier_scale: Annotated[float | None, typer.Option("--classifier_scale", help="1 left out; 0 is none")] = None,
    classifier_class: Annotated[str | None, typer.Option("--classifier_class", help="in the prompts' place")] = None,
    algorithm: Annotated[int | None, typer.Option(help="1 shifts the mean (ddpm's default), 2 shifts eps")] = None,
    worse: Annotated[Path | None, typer.Option(help="a worse model of the same, for autoguidance")] = None,
    autoguidance_scale: Annotated[float | None, typer.Option("--autoguidance_scale", help="2 left out")] = None,
    out: Annotated[Path, typer.Option(help="folder for the pictures and grid.png")] = Path("samples"),
    batch_size: Annotated[int, typer.Option("--batch_size", help="pictures at once; changes no picture")] = 32,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; the accelerator if there is one")] = None,
    precision: Annotated[str | None, typer.Option(help="no, bf16 or fp16; left out: no, or bf16 with --fast")] = None,
    metadata: Annotated[bool, typer.Option("--metadata/--no_metadata", help="prompt and settings in the PNGs")] = True,
) -> None:
    """Draw every prompt `count` times; a picture depends on its prompt, seed and settings alone."""
    with cli_errors():
        from ldm_kit.inference.generate import GenerationRequest, GuideModels, generate_to_folder
        from ldm_kit.models.options import FAST_STEPS, SamplingOptions

        steps = steps if steps is not None else FAST_STEPS if fast else SamplingOptions.steps
        precision = precision or ("bf16" if fast else "no")
        free = (guidance_scale, negative_prompt, rescale, interval)
        by_others = (classifier_scale, classifier_class, algorithm, autoguidance_scale)
        wish = SamplingOptions(steps, solver, *free, spacing, eta, clip, *by_others)
        order = GenerationRequest(tuple(prompts or ()), prompts_file, count, seed, batch_size)
        more = {"device": device, "precision": precision, "metadata": metadata}
        grid = generate_to_folder(model, order, wish, out, guides=GuideModels(classifier, worse), **more)
        typer.echo(f"{grid.pictures} pictures in {out}, all of them in {grid.path}")


if __name__ == "__main__":
    run_cli(main)
