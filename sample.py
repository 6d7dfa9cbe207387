"""Draw pictures with a trained model.

python sample.py runs/demo/ldm/model "woman astronaut, dark skin tone" --count 4 --guidance_scale 3
"""

from pathlib import Path
from typing import Annotated

import typer

from ldm_kit.cli import door, serve


def main(
    model: Annotated[Path, typer.Argument(help="a saved model's folder (model_index.json), or a run's")],
    prompts: Annotated[list[str] | None, typer.Argument(help="prompts, or class names; none for unconditional")] = None,
    prompts_file: Annotated[Path | None, typer.Option("--prompts_file", help="a text file, one prompt a line")] = None,
    count: Annotated[int, typer.Option(help="pictures of each prompt")] = 1,
    seed: Annotated[int, typer.Option(help="seed of each prompt's first picture; the next counts up")] = 0,
    steps: Annotated[int, typer.Option(help="sampling steps")] = 20,
    solver: Annotated[str, typer.Option(help="ddpm, ddim, dpm++, unipc, heun or euler-a")] = "dpm++",
    guidance_scale: Annotated[float, typer.Option("--guidance_scale", help="1 is no guidance")] = 3.0,
    negative_prompt: Annotated[str | None, typer.Option("--negative_prompt", help="what to steer away from")] = None,
    out: Annotated[Path, typer.Option(help="folder for the pictures and grid.png")] = Path("samples"),
    batch_size: Annotated[int, typer.Option("--batch_size", help="pictures at once; changes no picture")] = 32,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; the accelerator if there is one")] = None,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16 autocast")] = "no",
    metadata: Annotated[bool, typer.Option("--metadata/--no_metadata", help="prompt and settings in the PNGs")] = True,
) -> None:
    """Draw every prompt `count` times; a picture depends on its prompt, seed and settings alone."""
    with door():
        from ldm_kit.drawing import Order, draw_to_folder
        from ldm_kit.pipeline import Wish

        wish = Wish(steps, solver, guidance_scale, negative_prompt)
        order = Order(tuple(prompts or ()), prompts_file, count, seed, batch_size)
        grid = draw_to_folder(model, order, wish, out, device=device, precision=precision, metadata=metadata)
        typer.echo(f"{grid.pictures} pictures in {out}, all of them in {grid.path}")


if __name__ == "__main__":
    serve(main)
