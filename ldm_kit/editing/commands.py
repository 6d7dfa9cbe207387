"""The commands of `edit.py`: each takes a context and its options, and returns the text to print.

No torch at import, as `--help` must not wait for it.
"""

import logging
from collections.abc import Callable

from ldm_kit.editing.context import EditContext, ModelContext
from ldm_kit.editing.embedding_options import BlendOptions, TextDiffOptions
from ldm_kit.editing.options import (
    ChangeOptions,
    DecodeOptions,
    EncodeOptions,
    InterpolationOptions,
    MixOptions,
    NeighboursOptions,
    TrainingExamples,
)
from ldm_kit.editing.report_options import ReportOptions
from ldm_kit.editing.sample_options import Img2ImgOptions, InpaintOptions, RepromptOptions, SamplePriorOptions

_log = logging.getLogger("ldm_kit.editing")


def change(context: EditContext, options: ChangeOptions) -> str:
    """Change attributes of a picture by a semantic model.

    `context` has the model and the output folder, `options` the flags of `edit.py change`. Returns the text to print.
    On the command line the word `change` may be left out.
    """
    from ldm_kit.editing.attributes import change_attributes

    return str(change_attributes(context, options))


def learn(context: ModelContext, options: TrainingExamples) -> str:
    """Learn a semantic model's attribute directions from labels, a built-in data set or a dozen examples; save them.

    `context` has the model, `options` the flags of `edit.py learn`. Returns the text to print.
    """
    from ldm_kit.editing.learn import describe_directions, learn_attributes

    directions = learn_attributes(context, options)
    count = f"{len(directions.names)} directions saved in {context.directions}"
    return "\n".join([*describe_directions(directions), count])


def report(context: ModelContext, options: ReportOptions) -> str:
    """Measure how disentangled a semantic model's codes are, and how exact its edits are; write the results as JSON.

    `context` has the model, `options` the flags of `edit.py report`. Returns the text to print.
    """
    from ldm_kit.editing.report import describe, report_model

    measured, path = report_model(context, options)
    return f"{describe(measured)}\n\nreport in {path}"


def interpolate(context: EditContext, options: InterpolationOptions) -> str:
    """Interpolate between two pictures by a semantic model.

    `context` has the model and the output folder, `options` the flags of `edit.py interpolate`. Returns the text to
    print.
    """
    from ldm_kit.editing.interpolation import interpolate_pictures

    return str(interpolate_pictures(context, options))


def mix(context: EditContext, options: MixOptions) -> str:
    """Combine the content of one picture with the details of another by a semantic model.

    `context` has the model and the output folder, `options` the flags of `edit.py mix`. Returns the text to print.
    """
    from ldm_kit.editing.attributes import mix_pictures

    return str(mix_pictures(context, options))


def neighbours(context: ModelContext, options: NeighboursOptions) -> str:
    """List the pictures whose semantic codes are most similar to the code of one picture.

    `context` has the model, `options` the flags of `edit.py neighbours`. Returns the text to print.
    """
    from ldm_kit.editing.attributes import find_neighbours

    return "\n".join(f"{cosine:6.3f} {name}" for name, cosine in find_neighbours(context, options))


def encode(context: ModelContext, options: EncodeOptions) -> str:
    """Encode the pictures of a folder into one file of codes by a semantic model.

    `context` has the model, `options` the flags of `edit.py encode`. Returns the text to print.
    """
    from ldm_kit.editing.attributes import encode_folder

    return encode_folder(context, options)


def decode(context: EditContext, options: DecodeOptions) -> str:
    """Decode pictures from a file of codes that `encode` wrote, by a semantic model.

    `context` has the model and the output folder, `options` the flags of `edit.py decode`. Returns the text to print.
    """
    from ldm_kit.editing.attributes import decode_file

    return str(decode_file(context, options))


def sample(context: EditContext, options: SamplePriorOptions) -> str:
    """Sample new pictures from a semantic model's prior over codes, trained by a run with `method: prior`.

    `context` has the model and the output folder, `options` the flags of `edit.py sample`. Returns the text to print.
    """
    from ldm_kit.editing.sample_prior import sample_prior

    return str(sample_prior(context, options))


def draw(context: EditContext, options: SamplePriorOptions) -> str:
    """Sample new pictures as `sample` does, and log a warning: `draw` is the old name of this command.

    `context` has the model and the output folder, `options` the flags of `edit.py sample`. Returns the text to print.
    """
    _log.warning("draw is now called sample; the old name is read for one more release")
    return sample(context, options)


def reprompt(context: EditContext, options: RepromptOptions) -> str:
    """Invert a picture and sample it under another prompt or class.

    `context` has the model and the output folder, `options` the flags of `edit.py reprompt`. Returns the text to print.
    """
    from ldm_kit.editing.prompt_edits import reprompt_picture

    result, reconstruction = reprompt_picture(context, options)
    return f"{reconstruction}\n{result}"


def img2img(context: EditContext, options: Img2ImgOptions) -> str:
    """Add noise to a picture and sample it again from there, by any model but a semantic one.

    `context` has the model and the output folder, `options` the flags of `edit.py img2img`. Returns the text to print.
    """
    from ldm_kit.editing.prompt_edits import img2img_picture

    return str(img2img_picture(context, options))


def inpaint(context: EditContext, options: InpaintOptions) -> str:
    """Sample the masked part of a picture again, by any model but a semantic one.

    `context` has the model and the output folder, `options` the flags of `edit.py inpaint`. Returns the text to print.
    """
    from ldm_kit.editing.prompt_edits import inpaint_picture

    return str(inpaint_picture(context, options))


def blend(context: EditContext, options: BlendOptions) -> str:
    """Sample pictures between two pictures by a model that is conditioned on image embeddings.

    `context` has the model and the output folder, `options` the flags of `edit.py blend`. Returns the text to print.
    """
    from ldm_kit.editing.embedding_edits import blend_pictures

    return str(blend_pictures(context, options))


def textdiff(context: EditContext, options: TextDiffOptions) -> str:
    """Move the image embedding of a picture by the difference of two texts, and sample pictures of it.

    `context` has the model and the output folder, `options` the flags of `edit.py textdiff`. Returns the text to print.
    """
    from ldm_kit.editing.embedding_edits import move_by_text

    return str(move_by_text(context, options))


COMMANDS: tuple[Callable[..., str], ...] = (
    change,
    learn,
    report,
    interpolate,
    mix,
    neighbours,
    encode,
    decode,
    sample,
    draw,
    reprompt,
    img2img,
    inpaint,
    blend,
    textdiff,
)
