"""Several conditioners of one model: captions and classes, or captions by several encoders."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from conditioning.base import Conditioner, Inputs, Progress, drop
from conditioning.combined_config import MOST, CombinedConfig, parts_of
from conditioning.condition import Condition, ConditioningError
from conditioning.joining import inputs_of, join_tokens, joined_widths
from conditioning.registry import CONDITIONERS, kind_of
from conditioning.suffixes import SUFFIXES, suffixes_of

FILE = "conditioners.json"


class CombinedConditioner(Conditioner):
    """Turn prompts into the conditions of several conditioners, and join these.

    Args:
        parts: the conditioners.
        sources: for each of them, where it takes its values: "caption", "class" or the name of a column.

    Raises:
        ConditioningError: vectors cannot be added, or a kind that is not built in comes twice.
    """

    Config = CombinedConfig
    marker = FILE
    components = MappingProxyType(
        {f"{name}{end}": entry for kind in CONDITIONERS for name, entry in kind.components.items() for end in SUFFIXES}
    )
    null = ""

    def __init__(self, parts: Sequence[Conditioner], sources: Sequence[str]) -> None:
        super().__init__()
        self.parts, self.part_sources = nn.ModuleList(parts), tuple(sources)
        self.suffixes = suffixes_of(parts)
        self.modality = " and ".join(dict.fromkeys(member.modality for member in parts))
        self.width, self.vector_width = joined_widths([(member.width, member.vector_width) for member in parts])

    @property
    def _parts(self) -> list[Conditioner]:
        return [*self.parts]  # pyright: ignore[reportReturnType]

    @property
    def sources(self) -> tuple[str, ...]:
        """The different sources of values, each once: the parts of a prompt, in which pictures have none."""
        rows = zip(self._parts, self.part_sources, strict=True)
        return tuple(dict.fromkeys(source for member, source in rows if not member.reads_pictures))

    @property
    def reads_pictures(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether one of the conditions is the embedding of a picture."""
        return self.image_conditioner is not None

    @property
    def image_conditioner(self) -> Conditioner | None:
        """The conditioner that reads pictures; None: there is none."""
        return next((member for member in self._parts if member.reads_pictures), None)

    def embedded(self, embeddings: Tensor) -> Inputs:
        """Return the inputs of N embeddings of pictures, as those of the member that reads them."""
        return {f"{self._index}.{name}": value for name, value in super().embedded(embeddings).items()}

    @property
    def _index(self) -> int:
        return [member.reads_pictures for member in self._parts].index(True)

    @property
    def drops(self) -> int:
        """Number of conditions, each of which is dropped by itself."""
        return len(self.parts)

    @classmethod
    def build(
        cls, config: CombinedConfig, *, captions: Sequence[str] = (), classes: Sequence[str] = (), **data: Any
    ) -> "CombinedConditioner":
        """Build each conditioner; `captions` are the prompts that `config.values` returned.

        Raises:
            ConditioningError: one of them cannot be built.
        """
        columns = dict(zip(config.sources, parts_of(captions, config.sources), strict=True))
        opener = {"open_encoder": data.pop("open_encoder", None)}
        parts = []
        for each in config.members:
            texts = [str(text) for text in columns.get(each.source, ())]
            more = {**data, **(opener if each.reads_pictures else {})}
            parts.append(_kind(each.kind).build(each, captions=texts, classes=classes, **more))
        return cls(parts, [each.source for each in config.members])

    @classmethod
    def widths(cls, config: CombinedConfig, time_width: int | None) -> tuple[int | None, int | None] | None:
        """Return the widths of the joined tokens and vectors; None if those of a member are not known."""
        widths = [_kind(each.kind).widths(each, time_width) for each in config.members]
        present = [width for width in widths if width is not None]
        return joined_widths(present) if len(present) == len(widths) else None

    def fits(self, config: CombinedConfig) -> bool:
        """Return whether a run with `config` can go on with all of these conditioners."""
        same = [each.kind for each in config.members] == [kind_of(type(member)) for member in self._parts]
        return same and all(member.fits(each) for member, each in zip(self._parts, config.members, strict=True))

    def with_classes(self, classes: Sequence[str]) -> tuple["CombinedConditioner", str | None]:
        """Return these conditioners for a run whose pictures have `classes`, and a sentence on what is new."""
        pairs = [member.with_classes(classes) for member in self._parts]
        notes = [note for _, note in pairs if note is not None]
        return CombinedConditioner([member for member, _ in pairs], self.part_sources), "; ".join(notes) or None

    @property
    def structure(self) -> dict[str, Any]:
        """Kind, source and structure of each member."""
        rows = zip(self._parts, self.part_sources, strict=True)
        return {
            "parts": [{"kind": kind_of(type(member)), "source": source, **member.structure} for member, source in rows],
        }

    @classmethod
    def from_structure(cls, structure: Mapping[str, Any]) -> "CombinedConditioner":
        """Build the conditioners whose structures `structure` has; their weights are random."""
        rows = structure["parts"]
        return cls([_kind(row["kind"]).from_structure(row) for row in rows], [row["source"] for row in rows])

    @classmethod
    def load(cls, folder: Path, suffix: str = "") -> "CombinedConditioner":
        """Load the conditioners that `folder`/conditioners.json names.

        Raises:
            ConditioningError: the file is invalid, or a conditioner cannot be loaded.
        """
        return cls._open(folder, whole=False)

    @classmethod
    def load_whole(cls, folder: Path, suffix: str = "") -> "CombinedConditioner":
        """Load what `load` loads; raises ConditioningError also if weights have tensors of no use."""
        return cls._open(folder, whole=True)

    @classmethod
    def _open(cls, folder: Path, *, whole: bool) -> "CombinedConditioner":
        parts, rows = [], _rows(folder)
        for kind, suffix, _ in rows:
            load = kind.load_whole if whole else kind.load
            parts.append(load(folder, suffix) if suffix else load(folder))
        return cls(parts, [source for *_, source in rows])

    @property
    def trainable(self) -> dict[str, nn.Module]:
        """Networks trained jointly with the denoiser, by the component folder in which `save` puts each."""
        pairs = zip(self._parts, self.suffixes, strict=True)
        return {f"{name}{end}": network for member, end in pairs for name, network in member.trainable.items()}

    @property
    def encoder_digest(self) -> str | None:
        """Hashes of the frozen encoders; None: there are none."""
        return " ".join(filter(None, (member.encoder_digest for member in self._parts))) or None

    @property
    def frozen_encoder(self) -> str | None:
        """What the states of the frozen encoders depend on; None: there are none."""
        return " ".join(filter(None, (member.frozen_encoder for member in self._parts))) or None

    @classmethod
    def frozen_encoder_in(cls, folder: Path, suffix: str = "") -> str | None:
        """Return `frozen_encoder` of the conditioners saved in `folder`, without loading the encoders."""
        texts = [
            kind.frozen_encoder_in(folder, suffix) if suffix else kind.frozen_encoder_in(folder)
            for kind, suffix, _ in _rows(folder)
        ]
        return " ".join(filter(None, texts)) or None

    def prepare(self, raw: Sequence[str | int], progress: Progress | None = None) -> Inputs:
        """Turn N prompts into the inputs of each member, by names such as "0.ids" and "1.labels".

        Raises:
            ConditioningError: a prompt has a wrong number of parts, or a member is no caption or no known class.
        """
        columns = dict(zip(self.sources, parts_of(raw, self.sources), strict=True))
        prepared: Inputs = {}
        for index, (member, source) in enumerate(zip(self._parts, self.part_sources, strict=True)):
            member.on_truncated, member.in_batches = self.on_truncated, self.in_batches
            values = member.prepare([""] * len(raw) if member.reads_pictures else columns[source], progress)
            prepared |= {f"{index}.{name}": value for name, value in values.items()}
        return prepared

    def forward(self, **inputs: Tensor) -> Condition:
        """Return the joined condition of B samples, from the inputs [B, ...] of each member."""
        conditions = [member(**inputs_of(index, inputs)) for index, member in enumerate(self.parts)]
        tokens, mask = join_tokens(conditions)
        vectors = [condition.vector for condition in conditions if condition.vector is not None]
        vector = None
        if vectors:
            vector = torch.stack(vectors).sum(0) if tokens is None else torch.cat(vectors, dim=1)
        return Condition(tokens, mask, vector)

    def drop(self, inputs: Inputs, null: Inputs, dropped: Tensor) -> Inputs:
        """Replace the inputs of member p of sample b by the null condition's where `dropped` [B, P] is True."""
        result: Inputs = {}
        for index in range(len(self.parts)):
            own = drop(inputs_of(index, inputs), inputs_of(index, null), dropped[:, index])
            result |= {f"{index}.{name}": value for name, value in own.items()}
        return result

    def release(self) -> None:
        """Free the frozen encoders."""
        for member in self._parts:
            member.release()

    def save(self, folder: Path, suffix: str = "") -> dict[str, tuple[str, str]]:
        """Write the component folders of each member, and `folder`/conditioners.json; return the folders' entries."""
        entries: dict[str, tuple[str, str]] = {}
        rows = [*zip(self._parts, self.suffixes, self.part_sources, strict=True)]
        for member, suffix, _ in rows:
            entries |= member.save(folder, suffix) if suffix else member.save(folder)
        listed = [{"kind": kind_of(type(member)), "suffix": end, "source": source} for member, end, source in rows]
        (folder / FILE).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
        return entries

    def class_names(self, prompts: Sequence[str | int]) -> list[str] | None:
        """Return the class name of each prompt, if exactly one member is of classes; else None."""
        columns = dict(zip(self.sources, parts_of(prompts, self.sources), strict=True))
        rows = zip(self._parts, self.part_sources, strict=True)
        names = [member.class_names(columns[source]) for member, source in rows if not member.reads_pictures]
        present = [value for value in names if value is not None]
        return present[0] if len(present) == 1 else None


def _kind(kind: str) -> type[Conditioner]:
    return next(conditioner for conditioner in CONDITIONERS if kind_of(conditioner) == kind)


def _rows(folder: Path) -> list[tuple[type[Conditioner], str, str]]:
    """Read class, suffix of the folders, and source of each conditioner from `folder`/conditioners.json.

    Raises:
        ConditioningError: the file is invalid.
    """
    path, kinds = folder / FILE, {kind_of(conditioner): conditioner for conditioner in CONDITIONERS}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        result = [(kinds[row["kind"]], str(row["suffix"]), str(row["source"])) for row in rows]
        valid = 0 < len(result) <= MOST and all(suffix in SUFFIXES for _, suffix, _ in result)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        result, valid = [], False
    if not valid:
        raise ConditioningError(f"{path} lists no conditioners; expected kind, suffix and source of 1 to {MOST}")
    return result
