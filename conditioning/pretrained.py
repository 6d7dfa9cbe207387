"""Captions through a frozen, pretrained text encoder whose states are computed once (Saharia et al. 2022, section 2.1).

The encoder is no part of the model: it is not trained, not averaged, and a saved model only refers to it by name and
by the hash of its weights.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from conditioning import sources
from conditioning.base import Condition, Conditioner, ConditioningError, Inputs, Progress, pad_length, texts
from conditioning.bpe import report_truncated
from conditioning.encoders import Encoded, Encoder, load_encoder

REFERENCE = "text_reference.json"
BATCH = 64


class PretrainedTextConfig(BaseModel):
    """A frozen text encoder that somebody else trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["pretrained"] = Field("pretrained", description="a frozen, pretrained text encoder")
    model: str = Field(description="folder, Hub name, 'package:NAME' or 'open_clip:ARCHITECTURE/WEIGHTS'")
    length: int = Field(77, ge=2, description="most tokens of a caption, special ones included; longer ones are cut")
    layer: int = Field(-1, le=-1, description="hidden state to use: -1 the last with its norm, -2 the one before")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="how states are stored; bfloat16 has the range of float32, which T5 needs"
    )
    pool: bool = Field(
        False,
        description="beside attention to the tokens, their mean is mapped and added to the time embedding, "
        "as SDXL adds its pooled text: a caption is then heard sooner",
    )


class PretrainedConditioner(Conditioner):
    """Captions -> frozen states [N, L, D] with mask [N, L]; the null is the encoded empty caption."""

    null = ""

    def __init__(self, config: PretrainedTextConfig, device: torch.device | str | None = None) -> None:
        """device: where the encoder runs; by default the GPU if there is one. Raises ConditioningError if not found."""
        super().__init__()
        self.config = config
        self.source = sources.find(config.model)
        self.width = sources.hidden_width(self.source)
        self.vector_width = self.width if config.pool else None
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._encoder: Encoder | None = None
        self._null: Encoded | None = None

    @classmethod
    def load(cls, folder: Path) -> "PretrainedConditioner":
        """From `folder`/text_reference.json; raises ConditioningError if the encoder now has other weights."""
        reference = json.loads((folder / REFERENCE).read_text(encoding="utf-8"))
        conditioner = cls(PretrainedTextConfig(**reference["config"]))
        if (found := conditioner.source.sha256()) != reference["sha256"]:
            raise ConditioningError(
                f"the text encoder {conditioner.config.model!r} has other weights than this model was trained with: "
                f"sha256 {found}, expected {reference['sha256']}"
            )
        return conditioner

    @property
    def trainable(self) -> dict[str, nn.Module]:
        """Nothing is trained."""
        return {}

    def prepare(self, raw: Sequence[str | int], progress: Progress | None = None) -> Inputs:
        """Captions -> {"states": [N, L, D], "mask": [N, L]}, L the longest real length; equal captions encode once.

        The empty caption is always encoded alone, so that it is the same bits in every call.
        """
        captions = texts(raw)
        unique = sorted({*captions} - {""}, key=lambda caption: (len(caption), caption))
        parts = [self._empty()]
        for start in range(0, len(unique), BATCH):
            parts.append(self._encode(unique[start : start + BATCH]))
            if progress:
                progress(min(start + BATCH, len(unique)), len(unique))
        report_truncated(sum(part.cut for part in parts), len(unique), self.config.length)
        return _gather(parts, _rows(unique, captions))

    def forward(self, states: Tensor, mask: Tensor) -> Condition:
        """states: [B, L, D] of any floating type, mask: [B, L] -> the same as a condition, in float32.

        With `pool` it has a vector too: the mean of the tokens' states, its components with a root mean square of 1.
        """
        condition = Condition(tokens=states.float(), mask=mask)
        if not self.config.pool:
            return condition
        mean = condition.pooled
        assert mean is not None
        return replace(condition, vector=F.normalize(mean, dim=1) * mean.shape[1] ** 0.5)

    def release(self) -> None:
        """Free the encoder; the null stays, and `prepare` loads the encoder again when it needs it."""
        self._encoder = None

    def save(self, folder: Path) -> dict[str, tuple[str, str]]:
        """Write `folder`/text_reference.json: the config, and the sha256 of the weights. No component of diffusers."""
        reference = {"config": self.config.model_dump(), "width": self.width, "sha256": self.source.sha256()}
        (folder / REFERENCE).write_text(json.dumps(reference, indent=2) + "\n", encoding="utf-8")
        return {}

    def _empty(self) -> Encoded:
        if self._null is None:
            self._null = self._encode([""])
        return self._null

    def _encode(self, captions: Sequence[str]) -> Encoded:
        if self._encoder is None:
            self._encoder = load_encoder(self.source, self.config.length, self.config.layer, self.device)
        states, mask, cut = self._encoder(captions)
        mask = mask.clone()
        mask[:, 0] = True  # attention over nothing at all is attention over the padding
        return Encoded(_store(states, getattr(torch, self.config.dtype)), mask, cut)


def _store(states: Tensor, dtype: torch.dtype) -> Tensor:
    """Clamped to the range of `dtype`: the states of a T5 do not fit float16."""
    limit = torch.finfo(dtype).max
    return states.clamp(-limit, limit).to(dtype)


def _rows(unique: Sequence[str], captions: Sequence[str]) -> Tensor:
    """[N] row of each caption in the table [empty, *unique]."""
    row = {caption: index for index, caption in enumerate(["", *unique])}
    return torch.tensor([row[caption] for caption in captions], dtype=torch.long)


def _gather(parts: Sequence[Encoded], rows: Tensor) -> Inputs:
    length = max(part.mask.shape[1] for part in parts)
    states = torch.cat([pad_length(part.states, length) for part in parts])
    mask = torch.cat([pad_length(part.mask, length) for part in parts])
    return {"states": states[rows], "mask": mask[rows]}
