"""Edit your own picture with a trained model.

python edit.py --model runs/diffae --image my.png --attribute "skin tone: dark" --strength 0.3
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ldm_kit.cli import cli_errors, run_cli

Model = Annotated[Path, typer.Option(help="a saved model's folder, or a run's")]
Image = Annotated[Path, typer.Option(help="the picture; scaled and cropped to the model's size")]
Images = Annotated[Path, typer.Option(help="a folder of pictures")]
Out = Annotated[Path, typer.Option(help="folder for the pictures and sheet.png")]
DrawSteps = Annotated[int, typer.Option(help="steps of drawing")]
InvertSteps = Annotated[int, typer.Option("--invert_steps", help="steps that read a picture's stochastic code")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; the accelerator if there is one")]
Precision = Annotated[str, typer.Option(help="no, bf16 or fp16 autocast")]
Metadata = Annotated[bool, typer.Option("--metadata/--no_metadata", help="settings in the PNGs")]
Prompt = Annotated[str | None, typer.Option(help="what to draw; none for unconditional models")]
Guidance = Annotated[float, typer.Option("--guidance_scale", help="classifier-free; 1 is none")]
Negative = Annotated[str | None, typer.Option("--negative_prompt", help="what to steer away from")]
Count = Annotated[int, typer.Option(help="pictures")]
Seed = Annotated[int, typer.Option(help="of the first picture; the next counts up")]
Stop = Annotated[float, typer.Option(help="PDAE: share of the last steps left to the frozen model; 0.3 after a prior")]
Batch = Annotated[int, typer.Option("--batch_size", help="pictures at once; changes no picture")]
OUT = Path("edits")


def change(
    model: Model,
    image: Image,
    attribute: Annotated[list[str], typer.Option(help='"glasses", "skin tone: dark", "skin tone: light > dark"')],
    strength: Annotated[list[float] | None, typer.Option(help="one each, or one for all; typical if left out")] = None,
    strip: Annotated[str | None, typer.Option(help='strengths side by side: "-0.3,0,0.3"')] = None,
    steps: DrawSteps = 100,
    invert_steps: InvertSteps = 250,
    stop: Stop = 0.0,
    out: Out = OUT,
    device: Device = None,
    precision: Precision = "no",
    metadata: Metadata = True,
) -> None:
    """Change attributes of a picture (semantic model); the word `change` may be left out."""
    with cli_errors():
        from ldm_kit.editing.attributes import change
        from ldm_kit.editing.context import EditContext, Steps

        place = EditContext(model, out, device, precision, metadata)
        done = change(place, image, attribute, strength or (), strip, Steps(invert_steps, steps, stop))
        typer.echo(done)


def learn(
    model: Model,
    images: Annotated[Path | None, typer.Option(help="a folder of pictures, labelled or not")] = None,
    labels: Annotated[Path | None, typer.Option(help=".csv or .jsonl: file_name and attributes")] = None,
    column: Annotated[list[str] | None, typer.Option(help="of the labels; all if left out")] = None,
    pair: Annotated[str | None, typer.Option(help="column that is equal for counterparts")] = None,
    openmoji: Annotated[bool, typer.Option("--openmoji", help="gender, skin tone and group of OpenMoji")] = False,
    positive: Annotated[Path | None, typer.Option(help="a folder of a dozen examples")] = None,
    negative: Annotated[Path | None, typer.Option(help="counter-examples; the training set if left out")] = None,
    name: Annotated[str | None, typer.Option(help="what the examples have in common")] = None,
    estimator: Annotated[Literal["classifier", "means"], typer.Option(help="how labels are used")] = "classifier",
    device: Device = None,
) -> None:
    """Learn attributes from labels, from OpenMoji or from a dozen examples, and save them with the model."""
    with cli_errors():
        from ldm_kit.editing.context import EditContext
        from ldm_kit.editing.fit_directions import FitOptions
        from ldm_kit.editing.learn import TrainingExamples, describe_directions, learn_attributes

        source = (images, labels, openmoji, positive, negative, name, tuple(column or ()), pair)
        place = EditContext(model, OUT, device)
        found = learn_attributes(place, TrainingExamples(*source, FitOptions(estimator=estimator)))
        typer.echo(
            "\n".join([*describe_directions(found), f"{len(found.names)} directions saved in {place.directions}"])
        )


def interpolate(
    model: Model,
    image: Annotated[list[Path], typer.Option(help="the two pictures, each by its own --image")],
    count: Annotated[int, typer.Option(help="pictures, both ends among them")] = 8,
    along: Annotated[
        Literal["latent", "trajectory"], typer.Option(help="trajectory: a PDAE's gradients are mixed at every step")
    ] = "latent",
    morph: Annotated[Path | None, typer.Option(help="an animation as well: .gif, .png or .apng")] = None,
    duration: Annotated[int, typer.Option(help="milliseconds of its frames")] = 80,
    steps: DrawSteps = 100,
    invert_steps: InvertSteps = 250,
    stop: Stop = 0.0,
    out: Out = OUT,
    device: Device = None,
    precision: Precision = "no",
    metadata: Metadata = True,
) -> None:
    """Pictures between two (semantic model)."""
    with cli_errors():
        from ldm_kit.editing.context import EditContext, Steps
        from ldm_kit.editing.interpolation import InterpolationOptions, interpolate

        place = EditContext(model, out, device, precision, metadata)
        done = interpolate(
            place, image, InterpolationOptions(count, along, morph, duration), Steps(invert_steps, steps, stop)
        )
        typer.echo(done)


def mix(
    model: Model,
    content: Annotated[Path, typer.Option(help="the picture that says what is shown")],
    details: Annotated[Path, typer.Option(help="the picture that lends its stochastic details")],
    steps: DrawSteps = 100,
    invert_steps: InvertSteps = 250,
    stop: Stop = 0.0,
    out: Out = OUT,
    device: Device = None,
    precision: Precision = "no",
    metadata: Metadata = True,
) -> None:
    """What one picture shows with another's details (semantic model)."""
    with cli_errors():
        from ldm_kit.editing.attributes import mix
        from ldm_kit.editing.context import EditContext, Steps

        place = EditContext(model, out, device, precision, metadata)
        done = mix(place, content, details, Steps(invert_steps, steps, stop))
        typer.echo(done)


def neighbours(
    model: Model,
    image: Image,
    among: Annotated[Path, typer.Option(help="a folder of pictures, or a file that encode wrote")],
    count: Count = 8,
    out: Out = OUT,
    device: Device = None,
) -> None:
    """The pictures most like one, by their codes (semantic model)."""
    with cli_errors():
        from ldm_kit.editing.attributes import neighbours
        from ldm_kit.editing.context import EditContext

        for name, cosine in neighbours(EditContext(model, out, device), image, among, count):
            typer.echo(f"{cosine:6.3f} {name}")


def encode(
    model: Model,
    images: Images,
    out: Annotated[Path, typer.Option(help="the file to write")] = Path("codes.safetensors"),
    details: Annotated[bool, typer.Option("--details/--no_details", help="x_T beside z")] = True,
    invert_steps: InvertSteps = 250,
    batch_size: Batch = 32,
    device: Device = None,
    precision: Precision = "no",
) -> None:
    """Codes of a folder's pictures into one file (semantic model)."""
    with cli_errors():
        from ldm_kit.editing.attributes import encode
        from ldm_kit.editing.context import EditContext, Steps

        place = EditContext(model, out, device, precision)
        count = encode(place, images, Steps(invert_steps), details=details, batch=batch_size)
        typer.echo(f"codes of {count} pictures in {out}")


def decode(
    model: Model,
    codes: Annotated[Path, typer.Option(help="a file that encode wrote")],
    steps: DrawSteps = 100,
    stop: Stop = 0.0,
    seed: Seed = 0,
    out: Out = OUT,
    batch_size: Batch = 32,
    device: Device = None,
    precision: Precision = "no",
    metadata: Metadata = True,
) -> None:
    """Pictures of encoded ones (semantic model)."""
    with cli_errors():
        from ldm_kit.editing.attributes import decode
        from ldm_kit.editing.context import EditContext, Steps

        place = EditContext(model, out, device, precision, metadata)
        typer.echo(decode(place, codes, Steps(draw=steps, stop=stop), seed, batch_size))


def sample_prior(
    model: Model,
    prompt: Annotated[str | None, typer.Option("--prompt", "--class", help="what the prior is told")] = None,
    count: Count = 8,
    seed: Seed = 0,
    attribute: Annotated[str | None, typer.Option(help="draw until the code has this learned attribute")] = None,
    threshold: Annotated[float | None, typer.Option(help="of its probability; 0.5 left out")] = None,
    tries: Annotated[int, typer.Option(help="codes for a picture, at most")] = 1000,
    steps: Annotated[int, typer.Option(help="steps of the code")] = 100,
    decode_steps: Annotated[int, typer.Option("--decode_steps", help="steps of the picture")] = 100,
    guidance_scale: Guidance = 1.0,
    clip: Annotated[
        Literal["none", "published"], typer.Option(help="published: codes are clipped as PDAE's code does by mistake")
    ] = "none",
    stop: Stop = 0.0,
    out: Out = OUT,
    batch_size: Batch = 32,
    device: Device = None,
    precision: Precision = "no",
    metadata: Metadata = True,
) -> None:
    """New pictures out of a prior over codes (semantic model trained with `method: prior`)."""
    with cli_errors():
        from ldm_kit.editing.context import EditContext
        from ldm_kit.editing.prompt_edits import SampleSeeds
        from ldm_kit.editing.rejection_sampling import attribute_threshold
        from ldm_kit.editing.sample_prior import PriorOptions, sample_prior

        place = EditContext(model, out, device, precision, metadata)
        how = PriorOptions(steps, decode_steps, guidance_scale, stop, batch_size, clip)
        typer.echo(
            sample_prior(place, SampleSeeds(prompt, count, seed), how, attribute_threshold(attribute, threshold, tries))
        )


def reprompt(
    model: Model,
    image: Image,
    source: Annotated[str, typer.Option(help="what the picture shows: a prompt or a class")],
    prompt: Annotated[str, typer.Option(help="what it shall show")],
    steps: DrawSteps = 50,
    guidance_scale: Guidance = 3.0,
    negative_prompt: Negative = None,
    strength: Annotated[float, typer.Option(help="share of the way to noise; less keeps more")] = 1.0,
    refine: Annotated[int, typer.Option(help="further evaluations a step of the inversion; 3 is nearly exact")] = 0,
    out: Out = OUT,
    device: Device = None,
    precision: Precision = "no",
    metadata: Metadata = True,
) -> None:
    """Invert a picture and draw it under another prompt or class (model of text or classes)."""
    with cli_errors():
        from ldm_kit.editing.context import EditContext
        from ldm_kit.editing.inversion import Img2ImgOptions
        from ldm_kit.editing.prompt_edits import reprompt

        how = Img2ImgOptions(steps, guidance_scale, negative_prompt, strength, refine)
        done, told = reprompt(EditContext(model, out, device, precision, metadata), image, source, prompt, how)
        typer.echo(f"{told}\n{done}")


def img2img(
    model: Model,
    image: Image,
    prompt: Prompt = None,
    strength: Annotated[float, typer.Option(help="share of the way to noise, over 0 to 1")] = 0.6,
    count: Count = 1,
    seed: Seed = 0,
    steps: DrawSteps = 50,
    guidance_scale: Guidance = 3.0,
    negative_prompt: Negative = None,
    out: Out = OUT,
    device: Device = None,
    precision: Precision = "no",
    metadata: Metadata = True,
) -> None:
    """Draw a picture again from a noisy version of itself (any model but semantic ones)."""
    with cli_errors():
        from ldm_kit.editing.context import EditContext
        from ldm_kit.editing.inversion import Img2ImgOptions
        from ldm_kit.editing.prompt_edits import SampleSeeds, img2img

        how = Img2ImgOptions(steps, guidance_scale, negative_prompt, strength)
        done = img2img(
            EditContext(model, out, device, precision, metadata), image, SampleSeeds(prompt, count, seed), how
        )
        typer.echo(done)


def inpaint(
    model: Model,
    image: Image,
    mask: Annotated[Path, typer.Option(help="a picture: white is painted anew, black stays")],
    prompt: Prompt = None,
    resample: Annotated[int, typer.Option(help="how often each step is gone; more fits better")] = 4,
    count: Count = 1,
    seed: Seed = 0,
    steps: DrawSteps = 50,
    guidance_scale: Guidance = 3.0,
    negative_prompt: Negative = None,
    out: Out = OUT,
    device: Device = None,
    precision: Precision = "no",
    metadata: Metadata = True,
) -> None:
    """Paint a masked part of a picture anew (any model but semantic ones)."""
    with cli_errors():
        from ldm_kit.editing.context import EditContext
        from ldm_kit.editing.inversion import Img2ImgOptions
        from ldm_kit.editing.prompt_edits import SampleSeeds, inpaint

        place = EditContext(model, out, device, precision, metadata)
        how = Img2ImgOptions(steps, guidance_scale, negative_prompt)
        done = inpaint(place, image, mask, SampleSeeds(prompt, count, seed), how, resample)
        typer.echo(done)


main = (change, learn, interpolate, mix, neighbours, encode, decode, sample_prior, reprompt, img2img, inpaint)

if __name__ == "__main__":
    run_cli(main)
