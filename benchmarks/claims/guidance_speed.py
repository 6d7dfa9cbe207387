"""How much faster the guidance scale as an input is than classifier-free guidance, with and without decoding.

`python -m benchmarks.claims.guidance_speed BASE RUN` samples the same prompts with the base, which is evaluated twice a
step, and with a model that takes the scale, once a step, in turn, and prints medians and their ratio.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.tables import markdown, page_of, write_section
from ldm_kit.cli import cli_errors
from ldm_kit.config import UserError
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline

HEAD = ("measured", "two evaluations a step, ms", "scale as input, ms", "times as fast")


def timed(call: Callable[[], Tensor], pipeline: Pipeline) -> tuple[Tensor, float]:
    """Return what a call returns, and the processor time that it took in milliseconds; on a GPU, wall time."""
    clock = time.process_time if pipeline.device.type == "cpu" else time.perf_counter
    start = clock()
    out = call()
    if pipeline.device.type == "cuda":
        torch.cuda.synchronize()
    return out, 1000 * (clock() - start)


def sample(pipeline: Pipeline, prompts: list[str], options: SamplingOptions) -> tuple[float, float]:
    """Return the milliseconds that a batch's latents take, with the text encoder, and those of decoding them."""
    resolved, seeds = options.resolve(pipeline), [*range(len(prompts))]
    latents, denoising = timed(lambda: deque(pipeline.states(prompts, seeds, resolved), maxlen=1)[0].x, pipeline)
    _, decoding = timed(lambda: pipeline.pictures(latents), pipeline)
    return denoising, decoding


def main(
    base: Annotated[Path, typer.Argument(help="run with classifier-free guidance")],
    run: Annotated[Path, typer.Argument(help="run that takes the guidance scale as input")],
    *,
    prompt: Annotated[str, typer.Option(help="prompt of all pictures")] = "a smiling face with ginger hair",
    batch: Annotated[int, typer.Option(min=1, help="pictures a batch")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="sampling steps of dpm++")] = 15,
    guidance_scale: Annotated[float, typer.Option(help="guidance scale")] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, help="batches of each model")] = 5,
    device: Annotated[str, typer.Option(help="device")] = "cpu",
    page: Annotated[bool, typer.Option(help="write the table into docs/results/few-steps.md")] = True,
) -> None:
    """Time both kinds of guidance in turn."""
    path = page_of("few-steps.md") if page else None
    models = [Pipeline.load(folder / "model", device) for folder in (base, run)]
    if [model.takes_scale for model in models] != [False, True]:
        raise UserError(f"expected {base} not to take the guidance scale as input, and {run} to take it")
    options = SamplingOptions(solver="dpm++", steps=steps, guidance_scale=guidance_scale)
    spent: dict[tuple[int, str], list[float]] = {}
    for index in range(-1, rounds):  # the first round is not counted
        for number, model in enumerate(models):
            denoising, decoding = sample(model, [prompt] * batch, options)
            if index >= 0:
                spent.setdefault((number, "latents alone"), []).append(denoising / batch)
                spent.setdefault((number, "with decoding"), []).append((denoising + decoding) / batch)
    rows: list[tuple[Any, ...]] = []
    for name in ("latents alone", "with decoding"):
        two, one = (statistics.median(spent[number, name]) for number in (0, 1))
        ratio = statistics.median(a / b for a, b in zip(spent[0, name], spent[1, name], strict=True))
        rows.append((f"{steps} steps, {name}", f"{two:.1f}", f"{one:.1f}", f"{ratio:.2f}"))
    if path is not None:
        write_section(path, "guidance speed", markdown(HEAD, rows))
    typer.echo(markdown(HEAD, rows))


if __name__ == "__main__":
    with cli_errors():
        typer.run(main)
