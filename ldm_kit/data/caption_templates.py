"""Captions made from a template, such as "a photo of {class}" or "{caption}, {style}", whose names are values."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from string import Formatter
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, Field, model_validator

from ldm_kit.config import Config, UserError
from ldm_kit.data.metadata import Entry, and_more
from ldm_kit.data.records import Record, Records

CAPTION, CLASS = "caption", "class"  # names of a template that are no columns
P = TypeVar("P")


def names_in(template: str) -> list[str]:
    """Return the names in braces of a template, each once, in order; doubled braces stand for braces.

    Raises:
        ValueError: braces do not match, or hold anything but a name.
    """
    names: list[str] = []
    for _, name, form, conversion in Formatter().parse(template):
        if name is None:
            continue
        if form or conversion or not name.strip() or name.isdecimal() or {*name} & {*".[]{}"}:
            raise ValueError(f"{{{name}}} is no name; expected names such as {{{CLASS}}} or {{{CAPTION}}}")
        names.append(name)
    return [*dict.fromkeys(names)]


def _check_template(template: str) -> str:
    try:
        names_in(template)
    except ValueError as error:
        raise ValueError(f"{template!r:.80} is no template: {error}") from None
    return template


class CaptionedConfig(Config):
    """Base of the configs of data sources whose captions can be made from a template."""

    caption_template: Annotated[str, AfterValidator(_check_template)] | None = Field(
        default=None,
        min_length=1,
        description='caption to make of each picture\'s values: "a photo of {class}", or "{caption}, {style}" with the '
        "metadata column style; null: the captions as they are",
    )

    @property
    def columns(self) -> Collection[str] | None:
        """Names of the values that a template can use beside caption and class; None: the metadata say which."""
        return None

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if self.caption_template is None or (columns := self.columns) is None:
            return self
        allowed = [CAPTION, CLASS, *columns]
        if unknown := [name for name in names_in(self.caption_template) if name not in allowed]:
            raise ValueError(
                f"caption_template has {{{unknown[0]}}}, but source {_source(self)} has only {', '.join(allowed)}"
            )
        return self


def _source(config: Config) -> str:
    return str(getattr(config, "source", ""))


def check_entries(entries: Sequence[Entry], config: CaptionedConfig) -> None:
    """Check, before any picture is read, that each picture of a folder has the values that the template needs.

    Raises:
        UserError: one lacks a value; the message names it.
    """
    if config.caption_template is None:
        return
    for name in names_in(config.caption_template):
        _check_none_lacks([entry.name for entry in entries if not _value(entry, name, entry.label)], name, config)


def _check_none_lacks(names: Sequence[str], value: str, config: CaptionedConfig) -> None:
    if names:
        raise UserError(
            f"data.caption_template is {config.caption_template!r:.80}, but {names[0]} has no {value}{and_more(names)}"
            "; expected a value for every picture"
        )


def _value(entry: Entry | Record, name: str, label: str | None) -> str:
    """Return the value that a template's `name` stands for; "" if the picture lacks it."""
    if name == CLASS:
        return "" if label is None else label.replace("_", " ")
    return entry.text if name == CAPTION else entry.fields.get(name, "")


def captioned(pictures: P, config: CaptionedConfig) -> P:
    """Return a picture set (a dataclass with `records` and `classes`) with captions made by the config's template.

    A picture with several captions has one for each if the template has {caption}, else one.

    Raises:
        UserError: a picture lacks a value that the template names.
    """
    if config.caption_template is None:
        return pictures
    source: Any = pictures
    return replace(source, records=_templated(source.records, source.classes, config))


def _templated(records: Sequence[Record], classes: Sequence[str], config: CaptionedConfig) -> Records:
    template = config.caption_template or ""
    names = names_in(template)
    lacking: dict[str, list[str]] = {name: [] for name in names}

    def filled(record: Record) -> Record:
        values = {name: _value(record, name, _class_name(record, classes)) for name in names}
        for name in (name for name, value in values.items() if not value):
            lacking[name].append(record.name)
        several = record.captions if CAPTION in values else (record.text,)
        first, *others = (_fill(template, values, caption) for caption in several)
        return replace(record, text=first, others=tuple(others))

    result = Records.of(map(filled, records))
    for name in names:
        _check_none_lacks(lacking[name], name, config)
    return result


def _class_name(record: Record, classes: Sequence[str]) -> str | None:
    return None if record.label is None else classes[record.label]


def _fill(template: str, values: Mapping[str, str], caption: str) -> str:
    return template.format_map({**values, CAPTION: caption})
