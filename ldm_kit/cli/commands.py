"""The console script `ldm-kit`: versions, likelihoods, and checkpoints of other projects."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ldm_kit.cli.errors import cli_errors

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Latent diffusion: what does not train.")
convert = typer.Typer(no_args_is_help=True, help="Turn other projects' checkpoints into saved models.")
app.add_typer(convert, name="convert")
Out = Annotated[Path, typer.Argument(help="a new folder for the saved model")]
Side = Annotated[int | None, typer.Option("--image_size", min=8, help="of the pictures, if the file does not say it")]
Statistics = Annotated[Path | None, typer.Option(help="mean and deviation of codes: .safetensors, .pt or latent.pkl")]
Images = Annotated[Path | None, typer.Option(help="or the training pictures, a folder, to compute them from")]
Attributes = Annotated[Path | None, typer.Option(help="their names, one a line; the 40 of CelebA if left out")]
Judge = Annotated[Path | None, typer.Option("--classifier", help="its attributes become directions for edit.py")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; the accelerator if there is one")]


@app.command()
def doctor() -> None:
    """Say which versions and devices there are."""
    import torch

    from ldm_kit.training.run_folder import versions

    for name, found in versions().items():
        typer.echo(f"{name:14} {found}")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    typer.echo(f"{'device':14} {device}\n{'attention':14} sdpa (cpu: math)\n{'threads':14} {torch.get_num_threads()}")


@app.command()
def nll(
    run: Annotated[Path, typer.Argument(help="the folder of a run on pixels, or the model/ within it")],
    count: Annotated[int | None, typer.Option(help="held-out pictures; all when left out")] = None,
    times: Annotated[int | None, typer.Option(help="random times of each, an estimate; all when left out")] = None,
    seed: Annotated[int, typer.Option(help="of noise and times")] = 0,
    batch_size: Annotated[int, typer.Option("--batch_size", help="pictures at once; changes no number")] = 64,
    device: Device = None,
) -> None:
    """Bound the negative log-likelihood, in bits per dimension, of a run's held-out pictures under its model."""
    with cli_errors():
        from ldm_kit.inference.likelihood import LikelihoodRequest, evaluate_likelihood

        typer.echo(evaluate_likelihood(run, LikelihoodRequest(count, times, seed, batch_size), device))


@convert.command("guided-diffusion")
def guided_diffusion(
    checkpoint: Annotated[Path, typer.Argument(help="weights of openai/guided-diffusion, .pt or .safetensors")],
    out: Out,
    kind: Annotated[Literal["unet", "classifier"], typer.Option(help="unet: the denoiser")],
    image_size: Annotated[int, typer.Option("--image_size", min=1, help="side of the pictures it was trained on")],
    schedule: Annotated[Literal["linear", "cosine"], typer.Option(help="its noise (cosine for 64 px)")] = "linear",
    head_size: Annotated[int, typer.Option("--head_size", min=1, help="channels of an attention head")] = 64,
    heads: Annotated[int | None, typer.Option(min=1, help="heads of every attention, instead of --head_size")] = None,
    new_order: Annotated[
        bool, typer.Option("--new_attention_order", help="trained with use_new_attention_order")
    ] = False,
    classes: Annotated[Path | None, typer.Option(help="a text file of class names, one a line, in their order")] = None,
) -> None:
    """Turn a denoiser or a noisy classifier of openai/guided-diffusion into a saved model."""
    with cli_errors():
        from ldm_kit.convert.guided_diffusion import Origin, convert_guided_diffusion
        from ldm_kit.convert.guided_diffusion_layout import Heads

        origin = Origin(kind, image_size, schedule, Heads(head_size, heads, new_order), classes)
        typer.echo(convert_guided_diffusion(checkpoint, out, origin))


@convert.command()
def diffae(
    checkpoint: Annotated[Path, typer.Argument(help="last.ckpt of phizaz/diffae: an autoencoder, or one with a prior")],
    out: Out,
    image_size: Side = None,
    statistics: Statistics = None,
    images: Images = None,
    classifier: Judge = None,
    attributes: Attributes = None,
    device: Device = None,
) -> None:
    """Turn a diffusion autoencoder of phizaz/diffae into a saved model."""
    with cli_errors():
        from ldm_kit.convert.common import Beside
        from ldm_kit.convert.diffae import convert_diffae

        beside = Beside(image_size, statistics, images, classifier, attributes, device)
        typer.echo(convert_diffae(checkpoint, out, beside))


@convert.command()
def pdae(
    checkpoint: Annotated[Path, typer.Argument(help="an autoencoder's checkpoint.pt of ckczzj/PDAE")],
    out: Out,
    image_size: Side = None,
    statistics: Statistics = None,
    images: Images = None,
    classifier: Judge = None,
    attributes: Attributes = None,
    prior: Annotated[Path | None, typer.Option(help="a latent_denoise_fn's checkpoint.pt")] = None,
    heads: Annotated[int, typer.Option(min=1, help="heads of the U-Net's attention")] = 1,
    encoder_heads: Annotated[int, typer.Option("--encoder_heads", min=1, help="heads of the encoder's")] = 4,
    device: Device = None,
) -> None:
    """Turn a PDAE of ckczzj/PDAE into two saved models: OUT/base, which is frozen, and OUT/model on it."""
    with cli_errors():
        from ldm_kit.convert.common import Beside
        from ldm_kit.convert.pdae import Origin, convert_pdae

        beside = Beside(image_size, statistics, images, classifier, attributes, device)
        typer.echo(convert_pdae(checkpoint, out, Origin(beside, prior, heads, encoder_heads)))
