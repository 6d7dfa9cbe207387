"""Autoguidance whose weaker model costs no training: the same U-Net with its self-attention switched off.

Autoguidance (Karras et al. 2024) extrapolates away from the prediction of a weaker model of the same condition. One
that is at hand without training is the model itself with self-attention replaced by its values alone (Ahn et al. 2024,
"Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance"). `python -m benchmarks.claims.free_guides RUN`
samples the prompts of `benchmarks.claims.few_steps` with it, beside no guidance and classifier-free guidance.
"""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from diffusers.models.attention_processor import Attention
from torch import Tensor

from benchmarks.claims.few_steps import Judge
from benchmarks.tables import markdown, page_of, write_section
from ldm_kit.cli import cli_errors
from ldm_kit.config import UserError
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline

HEAD = ("guidance, one training", "scale", "prompted values shown, %", "all ten shown, %", "Lite0 distance")


class ValuesAlone:
    """An attention processor whose attention map is the identity: each position gets its own value."""

    def __call__(self, attn: Attention, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        layers: Any = attn
        linear, dropout = layers.to_out
        return dropout(linear(layers.to_v(hidden_states)))


def without_self_attention(pipeline: Pipeline) -> Pipeline:
    """Return a copy of a model whose U-Net attends to the condition alone.

    Raises:
        UserError: the U-Net has no self-attention.
    """
    unet: Any = deepcopy(pipeline.unet)
    own: list[Any] = [module for name, module in unet.named_modules() if name.endswith("attn1")]
    if not own:
        raise UserError("the U-Net has no self-attention to switch off; expected transformer blocks")
    for module in own:
        module.set_processor(ValuesAlone())
    return replace(pipeline, unet=unet)


def main(
    run: Annotated[Path, typer.Argument(help="run of a model of faces")],
    prompts: Annotated[int, typer.Option(min=1, help="most prompts of each kind")] = 100,
    steps: Annotated[int, typer.Option(min=1, help="sampling steps of dpm++")] = 15,
    page: Annotated[bool, typer.Option(help="write the table into docs/results/few-steps.md")] = True,
) -> None:
    """Compare no guidance, classifier-free guidance, and autoguidance by the model without self-attention."""
    path = page_of("few-steps.md") if page else None
    model = Pipeline.load(run / "model")
    weak = model.with_guides(autoguidance_model=without_self_attention(model))
    judge, rows = Judge.open(run, prompts), []
    ways = [("none", model, 1.0)]
    ways += [("classifier-free", model, scale) for scale in (1.5, 2.0, 3.0)]
    ways += [("by the model without self-attention", weak, scale) for scale in (1.25, 1.5, 2.0, 3.0)]
    for name, pipeline, scale in ways:
        options = SamplingOptions(solver="dpm++", steps=steps, guidance_scale=scale)
        figures, _ = judge.measure(pipeline, options)
        rows.append((name, scale, *(f"{value:.1f}" for value in (figures.mean, figures.every, figures.distance))))
        typer.echo(rows[-1])
    if path is not None:
        write_section(path, "free guides", markdown(HEAD, rows))
    typer.echo(markdown(HEAD, rows))


if __name__ == "__main__":
    with cli_errors():
        typer.run(main)
