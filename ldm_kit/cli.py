"""What all doors share (one sentence for a user's mistake), and the console script `ldm-kit`."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from ldm_kit.config import OldNameWarning, UserError

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


@contextlib.contextmanager
def cli_errors() -> Iterator[None]:
    """Turn a user's mistake into one sentence on stderr and exit status 2; let real faults through with their trace."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        with _short_warnings():
            yield
    except UserError as error:
        _stop(str(error))
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        _stop(f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}")
    except (ValueError, RuntimeError) as error:
        _stop(_told(error))


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """Show a warning about an old name as one line on stderr, without the source line that Python adds."""
    show = warnings.showwarning

    def show_line(message: Warning | str, category: type[Warning], *arguments: Any, **named: Any) -> None:
        if issubclass(category, OldNameWarning):
            typer.echo(f"warning: {message}", err=True)
        else:
            show(message, category, *arguments, **named)

    with warnings.catch_warnings():
        warnings.showwarning = show_line
        yield


def _told(error: Exception) -> str:
    """The sentence of a room's own error; raises what is none."""
    import torch  # imported here: `--help` must not wait for it

    from autoencoder.base import AutoencoderError
    from conditioning.base import ConditioningError

    if isinstance(error, AutoencoderError | ConditioningError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "out of memory on the device; take a smaller train.micro_batch (the result stays the same) or "
            "--batch_size, a lower precision (bf16), a smaller resolution, or a smaller network"
        )
    raise error


def run_cli(
    main: Callable[..., Any] | Sequence[Callable[..., Any]], arguments: Sequence[str] | None = None
) -> NoReturn:
    """Run a door's `main` as a command: its parameters are the flags, its docstring the help.

    Several functions are subcommands by their names; the first may be left out.
    """
    commands = (main,) if callable(main) else main
    door_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=len(commands) > 1)
    for command in commands:
        door_app.command()(command)
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(commands) > 1 and given and given[0] not in {"--help", *(command.__name__ for command in commands)}:
        given = [commands[0].__name__, *given]
    try:
        sys.exit(door_app(given, standalone_mode=False))
    except Exception as error:
        told = getattr(error, "format_message", None)  # click's own errors, whose class typer keeps to itself
        if told is None:
            raise
        text = " ".join(told().split()).rstrip(".")
        typer.echo(f"error: {text[:1].lower()}{text[1:]}; see --help", err=True)
        sys.exit(2)


def _stop(sentence: str) -> NoReturn:
    typer.echo(f"error: {sentence}", err=True)
    raise typer.Exit(2)


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
