"""Condition on captions, by a frozen, pretrained text encoder that runs once (Saharia et al. 2022, section 2.1).

The encoder is neither trained nor averaged (EMA) nor saved with the model: a saved model holds the encoder's name and
the hash of the encoder's weights.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from conditioning.base import (
    CaptionConfig,
    Condition,
    Conditioner,
    ConditioningError,
    Inputs,
    Progress,
    pad_length,
    texts,
)
from conditioning.encoders import Encoded, Encoder, load_encoder
from conditioning.sources import find, hidden_width

REFERENCE = "text_reference.json"
_OF_RUN = {"dropout", "column"}  # settings of a run's data and training, which a model does not need


class PretrainedTextConfig(CaptionConfig, frozen=True, extra="forbid"):
    """Config of a frozen, pretrained text encoder."""

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
        "as SDXL adds its pooled text: training then learns captions sooner",
    )


class PretrainedConditioner(Conditioner):
    """Turn captions into frozen token states [N, L, D] with a mask [N, L]; the null condition is the empty caption.

    Args:
        config: which encoder to use, and how its states are stored.
        device: where the encoder runs; by default the GPU if there is one.

    Raises:
        ConditioningError: the encoder cannot be found.
    """

    Config = PretrainedTextConfig
    modality = "text"
    marker = REFERENCE
    null = ""
    repeats = True

    def __init__(self, config: PretrainedTextConfig, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config = config
        self.source = find(config.model)
        self.width = hidden_width(self.source)
        self.vector_width = self.width if config.pool else None
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._encoder: Encoder | None = None
        self._null: Encoded | None = None

    @classmethod
    def build(cls, config: PretrainedTextConfig, **data: Any) -> "PretrainedConditioner":
        """Build the conditioner; its encoder is located now and opened by the first call of `prepare`.

        `config` names the encoder; `data` is ignored.

        Raises:
            ConditioningError: the encoder cannot be found.
        """
        return cls(config)

    @classmethod
    def widths(cls, config: PretrainedTextConfig, time_width: int | None) -> tuple[int, int | None]:
        """Return the channels of the encoder's states and, if `config.pool` is set, those of their mean.

        Raises:
            ConditioningError: the encoder cannot be found.
        """
        width = hidden_width(find(config.model))
        return width, width if config.pool else None

    @classmethod
    def load(cls, folder: Path, suffix: str = "") -> "PretrainedConditioner":
        """Load the conditioner that `folder`/text_reference.json describes, with `suffix` after text_reference.

        Raises:
            ConditioningError: the file is invalid, or the encoder is missing or now has other weights.
        """
        config, expected = _reference(folder, suffix)
        conditioner = cls(config)
        if (sha256 := conditioner.source.sha256()) != expected:
            raise ConditioningError(
                f"the text encoder {conditioner.config.model!r} has other weights than this model was trained with: "
                f"sha256 {sha256}, expected {expected}"
            )
        return conditioner

    @property
    def trainable(self) -> dict[str, nn.Module]:
        """Empty: the text encoder is frozen, so no network is trained jointly with the denoiser."""
        return {}

    @property
    def frozen_encoder(self) -> str:
        """The sha256 of the encoder's weights in hex, and the layer whose states are used."""
        return f"{self.source.sha256()} {self.config.layer}"

    @classmethod
    def frozen_encoder_in(cls, folder: Path, suffix: str = "") -> str:
        """Return `frozen_encoder` of the conditioner saved in `folder`; the encoder itself may be missing.

        Raises:
            ConditioningError: `folder`/text_reference.json is invalid.
        """
        config, sha256 = _reference(folder, suffix)
        return f"{sha256} {config.layer}"

    @property
    def cache_key(self) -> tuple[Any, ...]:
        """Key of cached encoded captions: the config, and hashes of the encoder's weights and settings.

        `pool` is not part of it, because only `forward` uses it.
        """
        return self.config.model_dump(exclude={"pool", *_OF_RUN}), self.source.sha256(), self.source.settings_sha256()

    @property
    def encoder_digest(self) -> str:
        """The sha256 of the encoder's weights followed by that of its config and tokenizer, in hex."""
        return f"{self.source.sha256()} {self.source.settings_sha256()}"

    def prepare(self, raw: Sequence[str | int], progress: Progress | None = None) -> Inputs:
        """Encode captions as {"states": [N, L, D], "mask": [N, L]}, where L is the longest caption's number of tokens.

        D is the number of channels of the encoder's states. Equal captions are encoded once, and `progress` counts
        different captions. The empty caption is encoded in a batch of its own, so that its states are equal bit for bit
        in every call.
        """
        captions = texts(raw)
        unique = sorted({*captions} - {""}, key=lambda caption: (len(caption), caption))
        batches = [self._empty()]
        done = 0
        for encoded in self.in_batches(len(unique), lambda rows: self._encode(unique[rows.start : rows.stop])):
            batches.append(encoded)
            done += len(encoded.mask)
            if progress:
                progress(done, len(unique))
        self.on_truncated(sum(batch.cut for batch in batches), len(unique), self.config.length)
        return _gather(batches, _rows(unique, captions))

    def forward(self, states: Tensor, mask: Tensor) -> Condition:
        """Return states [B, L, D] of any floating type and mask [B, L] as a condition in float32.

        If `config.pool` is set, the condition also has a vector: the mean of the tokens' states, scaled to a root mean
        square of 1.
        """
        condition = Condition(tokens=states.float(), mask=mask)
        if not self.config.pool:
            return condition
        mean = condition.pooled
        assert mean is not None
        return replace(condition, vector=F.normalize(mean, dim=1) * mean.shape[1] ** 0.5)

    def release(self) -> None:
        """Free the encoder, which `prepare` loads again when needed; the states of the empty caption are kept."""
        self._encoder = None

    def save(self, folder: Path, suffix: str = "") -> dict[str, tuple[str, str]]:
        """Write `folder`/text_reference.json with the config and the hash of the encoder's weights; return {}.

        `suffix` stands after text_reference.
        """
        config = self.config.model_dump(exclude=_OF_RUN)
        reference = {"config": config, "width": self.width, "sha256": self.source.sha256()}
        (folder / _file_name(suffix)).write_text(json.dumps(reference, indent=2) + "\n", encoding="utf-8")
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


def _file_name(suffix: str) -> str:
    return REFERENCE.replace(".", f"{suffix}.")


def _reference(folder: Path, suffix: str = "") -> tuple[PretrainedTextConfig, str]:
    """Read `folder`/text_reference.json: a conditioner's config, and the sha256 of its encoder's weights.

    Raises:
        ConditioningError: the file is invalid.
    """
    path = folder / _file_name(suffix)
    try:
        match json.loads(path.read_text(encoding="utf-8")):
            case {"config": dict(config), "sha256": str(sha256)}:
                return PretrainedTextConfig(**config), sha256
            case other:
                text = f"{other!r:.80}"
    except (OSError, ValueError, RecursionError) as error:  # no JSON, or values that are not valid
        text = f"not readable ({str(error).partition(chr(10))[0]:.80})"
    raise ConditioningError(f"{path} is {text}; expected a config and a sha256")


def _store(states: Tensor, dtype: torch.dtype) -> Tensor:
    """Clamp states to the range of `dtype`, then cast them: a T5's states do not fit float16."""
    limit = torch.finfo(dtype).max
    return states.clamp(-limit, limit).to(dtype)


def _rows(unique: Sequence[str], captions: Sequence[str]) -> Tensor:
    """Return the row of each caption, [N], in a table of states with a row for "", then one for each of `unique`."""
    row = {caption: index for index, caption in enumerate(["", *unique])}
    return torch.tensor([row[caption] for caption in captions], dtype=torch.long)


def _gather(batches: Sequence[Encoded], rows: Tensor) -> Inputs:
    length = max(batch.mask.shape[1] for batch in batches)
    states = torch.cat([pad_length(batch.states, length) for batch in batches])
    mask = torch.cat([pad_length(batch.mask, length) for batch in batches])
    return {"states": states[rows], "mask": mask[rows]}
