"""Sampling options of the models of a cascade: those that are for all of them, and those that are for one.

This module imports no heavy library, so that `--help` answers at once.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml

from ldm_kit.config import UserError, check, parse
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.sampler_options import OF_CONDITION, OF_THRESHOLD, SamplerOptions

if TYPE_CHECKING:
    from ldm_kit.models.pipeline import Pipeline

BY_STAGE = "--by_stage"
_OF_GUIDANCE = ("guidance_scale", "guidance_scales", *OF_CONDITION)


def values_by_stage(by_stage: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Return the sampling options of each model of a cascade that are given as OPTION=A/B/..., by their names.

    Args:
        by_stage: texts such as steps=50/20; a value that is empty, as in noise_level=/30, is left out.
        count: number of models.

    Raises:
        UserError: a text has another form, names no option or one that was named before, or has another number of
            values.
    """
    values: list[dict[str, Any]] = [{} for _ in range(count)]
    names = [text.partition("=")[0] for text in by_stage]
    for text, name in zip(by_stage, names, strict=True):
        if name not in SamplerOptions.model_fields or "=" not in text:
            options = ", ".join(SamplerOptions.model_fields)
            raise UserError(f"{BY_STAGE} is {text!r:.80}; expected OPTION=A/B/..., where OPTION is one of {options}")
        if names.count(name) > 1:
            raise UserError(f"{BY_STAGE} names {name} {names.count(name)} times; expected each option once")
        texts = text.partition("=")[2].split("/")
        if len(texts) != count:
            raise UserError(f"{BY_STAGE} {text} has {len(texts)} values, but the cascade has {count} models")
        for stage, given in zip(values, texts, strict=True):
            if given.strip():
                stage[name] = _value(text, given)
    return values


def _value(text: str, given: str) -> Any:
    try:
        return parse(given)
    except yaml.YAMLError:
        raise UserError(f"{BY_STAGE} {text!r:.80}: cannot read the value {given!r:.40}") from None


def with_values(options: Sequence[SamplingOptions], values: Sequence[dict[str, Any]]) -> list[SamplingOptions]:
    """Return the options of each model of a cascade, with those of `values` in the place of others.

    Raises:
        UserError: an option is out of range, or options exclude each other; the message names the model.
    """
    given = [{name: getattr(each, name) for name in each.model_fields_set} for each in options]
    pairs = enumerate(zip(given, values, strict=True), 1)
    return [check(SamplingOptions, {**shared, **own}, f"stage {number}") for number, (shared, own) in pairs]


def shared_options(options: SamplingOptions, stages: Sequence["Pipeline"]) -> list[SamplingOptions]:
    """Return options that are for all models of a cascade, for each model without those that it has no use for.

    These are the noise level of a picture for a model that takes none, guidance for one without captions or classes,
    and the clipping of pixels for one of latents.

    Raises:
        UserError: an option is of use to no model.
    """
    each = [_of_use(options, stage) for stage in stages]
    if idle := options.model_fields_set.difference(*(one.model_fields_set for one in each)):
        SamplingOptions.model_validate({name: getattr(options, name) for name in idle}).resolve(stages[0])  # says why
    return each


def _of_use(options: SamplingOptions, stage: "Pipeline") -> SamplingOptions:
    idle = {
        *(() if stage.picture is not None and stage.picture.takes_level else ("noise_level",)),
        *(_OF_GUIDANCE if stage.conditioner.null is None else ()),
        *(("clip", *OF_THRESHOLD) if stage.vae is not None and options.clip not in ("auto", "none") else ()),
    }
    return SamplingOptions.model_validate(
        {name: getattr(options, name) for name in options.model_fields_set if name not in idle}
    )
