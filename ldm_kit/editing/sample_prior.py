"""`edit.py sample`: new codes from a model's prior, and the pictures decoded from them."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.editing import operations
from ldm_kit.editing.context import EditContext, EditResult
from ldm_kit.editing.image_io import save_result
from ldm_kit.editing.rejection_sampling import AttributeThreshold, sample_accepted
from ldm_kit.editing.sample_options import SamplePriorOptions
from ldm_kit.models.directions import Directions
from ldm_kit.models.protocol import Code, encoder_digest, normalise
from ldm_kit.models.semantic import SemanticModel


class SamplePriorResult(NamedTuple):
    """Result of `sample_prior`; `str(...)` of it is the text that `edit.py sample` prints."""

    result: EditResult  # the number of pictures, and the path of the sheet that shows them
    acceptance: str | None  # a sentence on the share of accepted codes; None: no attribute was asked for

    def __str__(self) -> str:
        return f"{self.result}" if self.acceptance is None else f"{self.acceptance}\n{self.result}"


def sample_prior(context: EditContext, options: SamplePriorOptions) -> SamplePriorResult:
    """Sample new pictures, each from its own seed: a code from the model's prior, decoded with a random x_T.

    Args:
        context: the model and the output folder.
        options: class or prompt, seeds, and steps. If they name an attribute, only codes that have it are accepted.

    Raises:
        UserError: the model has no prior, the class or prompt does not fit the prior, the attribute is unknown, no code
            was accepted for a picture, or the number of steps is above the number of training timesteps.
    """
    model = context.load_semantic_model(context.precision)
    options, note = _resolve(model, options)
    z, captions, acceptance = _sample_codes(context, model, options)
    code = Code(z, model.noise(options.seeds))
    pictures = operations.decode(model, code, options.decode_steps, options.batch_size, stop=options.stop)
    columns = min(8, options.count)
    result = save_result(context, pictures, captions, columns=columns, seeds=options.seeds, **_settings(options))
    return SamplePriorResult(result._replace(note=note), acceptance)


def _resolve(model: SemanticModel, options: SamplePriorOptions) -> tuple[SamplePriorOptions, str]:
    """Return `options`, with values saved with the model for those that the user left out, and a note on these values.

    Raises:
        UserError: the model has no prior, a number of steps is above the number of training timesteps, or the user asks
            for guidance but the prior's null condition was never trained.
    """
    if model.prior is None:
        raise UserError("this model has no prior to sample codes from; train one with `method: prior`")
    given, times = options.model_fields_set, model.prior.schedule_config.num_train_timesteps
    steps = options.steps if "steps" in given else None
    scale = options.guidance_scale if "guidance_scale" in given else None
    steps, scale = model.saved.of_prior(steps, scale, times, options.prompt is not None)
    if steps > times:
        raise UserError(f"--steps {steps}: cannot walk {times} training times in {steps} steps; expected 1 to {times}")
    resolved, note = operations.resolve_steps(model, options)
    return resolved.model_copy(update={"steps": steps, "guidance_scale": scale}), note


def attribute_threshold(options: SamplePriorOptions) -> AttributeThreshold | None:
    """Return the condition under which codes are accepted; None if the options name no attribute.

    The threshold of the attribute's probability is 0.5 if the options have none.
    """
    if options.attribute is None:
        return None
    threshold = 0.5 if options.threshold is None else options.threshold
    return AttributeThreshold(options.attribute, threshold, options.tries)


def _settings(options: SamplePriorOptions) -> dict[str, object]:
    """Return the settings of sampling, by name, for the PNGs' metadata.

    Count, prompt, steps and guidance scale are always recorded; clipping, the attribute with its threshold, and `stop`
    only if they are used.
    """
    criterion = attribute_threshold(options)
    threshold = {} if criterion is None else {"attribute": criterion.attribute, "threshold": criterion.threshold}
    numbers = {"steps": options.steps, "guidance_scale": options.guidance_scale}
    clip = {} if options.clip == "none" else {"clip": options.clip}
    return {"sampled": options.count, "prompt": options.prompt} | threshold | numbers | clip | options.settings


def _sample_codes(
    context: EditContext, model: SemanticModel, options: SamplePriorOptions
) -> tuple[Tensor, list[str], str | None]:
    """Sample codes z [N, D] from `model`'s prior; return them, not normalised, their captions, and a sentence.

    The sentence says what fraction of the codes was accepted. It is None if `options` name no attribute, as all codes
    are then accepted. `context` has the folder of attribute directions.
    """

    def sample(seeds: Sequence[int]) -> Tensor:
        prompts = None if options.prompt is None else [options.prompt] * len(seeds)
        return model.sample_z(seeds, options.steps, prompts, guidance_scale=options.guidance_scale, clip=options.clip)

    criterion = attribute_threshold(options)
    if criterion is None:
        return sample(options.seeds), options.captions, None
    direction = Directions.load(context.directions, encoder_digest(model))[criterion.attribute]
    codes = sample_accepted(sample, lambda z: direction.logit(normalise(model, z)), options.seeds, criterion)
    percentages = codes.probability.tolist()
    captions = [f"{caption}, {p:.0%}" for caption, p in zip(options.captions, percentages, strict=True)]
    return (
        codes.z,
        captions,
        f"{codes.rate:.1%} of {codes.tried} codes passed: {criterion.attribute} with a probability over "
        f"{criterion.threshold:g}",
    )
