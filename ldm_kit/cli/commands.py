"""The console script `ldm-kit`; `python -m ldm_kit`, and so `accelerate launch -m ldm_kit`, is the same program."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ldm_kit.cli import built_in, plans, programs, sharing
from ldm_kit.cli.app import run_page
from ldm_kit.cli.errors import cli_errors, run_app
from ldm_kit.cli.flags import flatten, run_cli
from ldm_kit.config import UserError
from ldm_kit.convert.options import (
    ConsistencyModelsOptions,
    GuidedDiffusionOptions,
    PdaeOptions,
    SemanticCheckpointOptions,
)
from ldm_kit.inference.requests import EvaluationRequest, GuideModels, LikelihoodRequest, MemorisationRequest
from ldm_kit.models.options import SamplingOptions

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Train, sample, edit and evaluate latent diffusion models."
)
convert = typer.Typer(no_args_is_help=True, help="Turn other projects' checkpoints into saved models.")
app.add_typer(convert, name="convert")
Out = Annotated[Path, typer.Argument(help="a new folder for the saved model")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="keys that have changed since, such as data.path=elsewhere")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; the accelerator if there is one")]

app.command()(plans.new)
app.command()(plans.train)
app.command("train-ae")(programs.train_ae)
app.command("train-ldm")(programs.train_ldm)
app.command()(flatten(programs.sample))
app.command("app")(flatten(run_page))
app.command()(sharing.card)
app.command()(sharing.push)


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    add_help_option=False,
    help="Edit a picture: attributes, interpolation, prompts, masks; `ldm-kit edit --help` lists what there is.",
)
def edit(context: typer.Context) -> None:
    """Run the command of `edit.py` that the rest of the command line names."""
    run_cli(programs.EDIT, context.args, "ldm-kit edit")


@app.command()
def configs(
    name: Annotated[str | None, typer.Argument(help="a config, such as faces/ldm_text; left out: list them")] = None,
    out: Annotated[Path | None, typer.Option(help="a new file to copy it to; left out: print it")] = None,
) -> None:
    """List the configs that come with the kit, print one, or copy one to change it."""
    with cli_errors():
        if name is None and out is not None:
            raise UserError(f"--out {out} needs the name of the config to copy; `ldm-kit configs` lists them")
        if name is None:
            for each in built_in.names():
                typer.echo(f"{each:32} {built_in.summary(each)}")
        elif out is None:
            typer.echo(built_in.text(name), nl=False)
        else:
            typer.echo(f"written to {built_in.copy(name, out)}")


@app.command()
def doctor(
    device: Device = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="about how long to time kernels")] = 3.0,
) -> None:
    """Print versions, time and check this machine's kernels, and say which precision and memory layout pay on it."""
    with cli_errors():
        from ldm_kit.cli.doctor import examine

        if not examine(device, seconds, typer.echo):
            raise typer.Exit(1)


@app.command()
@flatten
def evaluate(
    paths: Annotated[
        list[Path],
        typer.Argument(help="a saved model, an autoencoder, a run, or a folder of pictures; or several runs"),
    ],
    request: EvaluationRequest,
    options: SamplingOptions,
    guides: GuideModels,
) -> None:
    """Compare a model's pictures with reference pictures: FID or another Fréchet distance, KID, precision and so on."""
    with cli_errors():
        from ldm_kit.inference.evaluate import default_out, is_main_process, run_evaluation

        if request.out is None:
            default_out(paths)  # whose folder must be writable
        result = run_evaluation(paths, request, options, guides)
        if is_main_process():
            typer.echo(f"{result}\n")  # before it is written, which may fail
            typer.echo(f"written to {result.write(request.out or default_out(paths))}")


@app.command()
@flatten
def memorisation(
    path: Annotated[Path, typer.Argument(help="a saved diffusion model, a run, or a folder of pictures")],
    request: MemorisationRequest,
    options: SamplingOptions,
    guides: GuideModels,
) -> None:
    """Find samples that are copies of training pictures; write a sheet with the nearest training picture of each."""
    with cli_errors():
        from ldm_kit.inference.evaluate_processes import is_main_process
        from ldm_kit.inference.memorisation import default_out, find_memorised
        from ldm_kit.paths import check_writable

        if request.out is None:
            check_writable(default_out(path).parent)
        report = find_memorised(path, request, options, guides)
        if is_main_process():
            typer.echo(f"{report}\n")
            typer.echo("written to {} and {}".format(*report.write(request.out or default_out(path), request.rows)))


@app.command()
@flatten
def nll(
    run: Annotated[Path, typer.Argument(help="the folder of a run on pixels, or the model/ within it")],
    request: LikelihoodRequest,
    overrides: Overrides = None,
    device: Device = None,
) -> None:
    """Compute an upper bound, in bits per dimension, on the negative log-likelihood of a run's held-out pictures."""
    with cli_errors():
        from ldm_kit.inference.likelihood import evaluate_likelihood

        typer.echo(evaluate_likelihood(run, request, device, overrides or ()))


@app.command()
def export(
    run: Annotated[
        Path, typer.Argument(help="the folder of a run, or of one of its checkpoints; with --lora, of a model")
    ],
    overrides: Overrides = None,
    checkpoint: Annotated[str | None, typer.Option(help="best, last, or a checkpoint's name or step; last")] = None,
    out: Annotated[Path | None, typer.Option(help="a new folder; left out: the run's model/, or beside it")] = None,
    device: Device = None,
    *,
    lora: Annotated[list[str] | None, typer.Option(help="merge a LoRA, PATH or PATH:SCALE; may be given again")] = None,
    single_file: Annotated[
        Path | None, typer.Option("--single_file", help="write a saved model's weights to this .safetensors instead")
    ] = None,
) -> None:
    """Save the model of a run's checkpoint, with averaged (EMA) weights, in the format of a finished run's model/."""
    with cli_errors():
        if single_file is not None:
            sharing.export_single(run, single_file, checkpoint=checkpoint, out=out, lora=lora, overrides=overrides)
            return
        if lora:
            from ldm_kit.methods.lora_export import export_with_lora

            typer.echo(f"model in {export_with_lora(run, lora, out, checkpoint, device)}")
            return
        from ldm_kit.methods.export import export as export_model

        typer.echo(f"model in {export_model(run, checkpoint, out, overrides or (), device=device)}")


@app.command()
def cascade(
    models: Annotated[list[Path], typer.Argument(help="the base model, then those that upscale, in order")],
    out: Annotated[Path, typer.Option(help="a new folder for the cascade")],
    by_stage: Annotated[
        list[str] | None,
        typer.Option(
            "--by_stage", help="OPTION=A/B/..., a sampling option of each model to save, such as noise_level=/100"
        ),
    ] = None,
) -> None:
    """Put a model and models that upscale its pictures into one folder, which sample.py and evaluate run as a whole.

    Example: ldm-kit cascade runs/faces/small runs/faces/upscale --out runs/faces/cascade
    """
    with cli_errors():
        from ldm_kit.inference.build_cascade import build_cascade

        typer.echo(f"cascade in {build_cascade(models, out, by_stage or ())}")


@convert.command("guided-diffusion")
@flatten
def guided_diffusion(
    checkpoint: Annotated[Path, typer.Argument(help="weights of openai/guided-diffusion, .pt or .safetensors")],
    out: Out,
    options: GuidedDiffusionOptions,
) -> None:
    """Convert a denoiser or a noisy classifier of openai/guided-diffusion to a saved model."""
    with cli_errors():
        from ldm_kit.convert.guided_diffusion import convert_guided_diffusion

        typer.echo(convert_guided_diffusion(checkpoint, out, options))


convert.command("single-file")(flatten(sharing.single_file))


@convert.command("consistency-models")
@flatten
def consistency_models(
    checkpoint: Annotated[Path, typer.Argument(help="weights of openai/consistency_models, .pt or .safetensors")],
    out: Out,
    options: ConsistencyModelsOptions,
) -> None:
    """Convert a consistency model of openai/consistency_models to a folder that diffusers opens."""
    with cli_errors():
        from ldm_kit.convert.consistency_models import convert_consistency_models

        typer.echo(convert_consistency_models(checkpoint, out, options))


@convert.command()
@flatten
def diffae(
    checkpoint: Annotated[Path, typer.Argument(help="last.ckpt of phizaz/diffae: an autoencoder, or one with a prior")],
    out: Out,
    options: SemanticCheckpointOptions,
) -> None:
    """Convert a diffusion autoencoder of phizaz/diffae to a saved model."""
    with cli_errors():
        from ldm_kit.convert.diffae import convert_diffae

        typer.echo(convert_diffae(checkpoint, out, options))


@convert.command()
@flatten
def pdae(
    checkpoint: Annotated[Path, typer.Argument(help="an autoencoder's checkpoint.pt of ckczzj/PDAE")],
    out: Out,
    options: PdaeOptions,
) -> None:
    """Convert a PDAE of ckczzj/PDAE to two saved models: OUT/base, the pretrained model, and OUT/model, its PDAE."""
    with cli_errors():
        from ldm_kit.convert.pdae import convert_pdae

        typer.echo(convert_pdae(checkpoint, out, options))


def main() -> NoReturn:
    """Run `ldm-kit` with the command line of this process."""
    run_app(app, sys.argv[1:], "ldm-kit")
