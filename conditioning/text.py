"""Condition on captions, by a small CLIP text model trained with the denoiser (Rombach et al. 2022, section 3.3).

The token states equal those that diffusers' `StableDiffusionPipeline.encode_prompt` computes from the saved folder:
captions are padded to `length` tokens, attention is causal, the final LayerNorm is included, padding is attended to.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from conditioning.base import (
    CaptionConfig,
    Condition,
    Conditioner,
    ConditioningError,
    Inputs,
    Progress,
    texts,
)
from conditioning.bpe import (
    SMALLEST_VOCABULARY,
    load_tokenizer,
    overflowing,
    save_tokenizer,
    train_tokenizer,
)
from conditioning.loaded import check_tensors
from conditioning.text_structure import check_shape, from_structure, structure_of

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

ENCODER, TOKENIZER = "text_encoder", "tokenizer"
CHUNK = 4096


class TextConfig(CaptionConfig, frozen=True, extra="forbid"):
    """Config of a text encoder that is trained from scratch."""

    kind: Literal["text"] = Field("text", description="a small CLIP text model, trained with the denoiser")
    width: int = Field(128, ge=1, description="channels of the tokens, the denoiser's cross-attention width")
    layers: int = Field(2, ge=1, description="transformer layers")
    heads: int = Field(4, ge=1, description="attention heads; divides the width")
    expansion: int = Field(4, ge=1, description="width of the feed-forward layers, divided by width")
    vocabulary: int = Field(
        2048, description="most tokens of the tokenizer, at least 514: every byte, each at a word's end, start and end"
    )
    length: int = Field(32, ge=3, description="tokens of a caption, start and end included; longer ones are cut")

    @field_validator("vocabulary")
    @classmethod
    def _writes_every_caption(cls, vocabulary: int) -> int:
        if vocabulary < SMALLEST_VOCABULARY:
            raise ValueError(
                f"{vocabulary} tokens cannot write every caption; expected {SMALLEST_VOCABULARY} or more: the 256 "
                "bytes, each again as the end of a word, start and end"
            )
        return vocabulary

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "TextConfig":
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, got width {self.width} and {self.heads} heads")
        return self


class TextConditioner(Conditioner):
    """Turn captions into token ids [N, L], and ids into states [B, L, D]; the null condition is the empty caption.

    Args:
        text_encoder: CLIP's text model, of width D.
        tokenizer: pads and cuts captions to its `model_max_length` of L tokens.
    """

    Config = TextConfig
    modality = "text"
    marker = ENCODER
    components = MappingProxyType(
        {
            ENCODER: ("transformers", ("CLIPTextModel",)),
            TOKENIZER: ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
        }
    )
    null = ""
    repeats = True

    def __init__(self, text_encoder: "CLIPTextModel", tokenizer: "CLIPTokenizer") -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.width = int(text_encoder.config.hidden_size)
        self.length = int(tokenizer.model_max_length)

    @classmethod
    def build(cls, config: TextConfig, *, captions: Sequence[str] = (), **data: Any) -> "TextConditioner":
        """Train a tokenizer on `captions`, and initialise the text encoder at random (from torch's global generator).

        `config` has the sizes of both; `data` is ignored.

        Raises:
            ConditioningError: there are no captions.
        """
        if not captions:
            raise ConditioningError('conditioning of kind "text" needs captions to train its tokenizer on, got none')
        tokenizer = train_tokenizer(texts(captions), config.vocabulary, config.length)
        return cls(_fresh_encoder(config, tokenizer), tokenizer)

    @classmethod
    def widths(cls, config: TextConfig, time_width: int | None) -> tuple[int, None]:
        """Return the width of the tokens; there is no vector."""
        return config.width, None

    def fits(self, config: TextConfig) -> bool:
        """Return whether `config` has the width of this encoder; its tokenizer is kept, whatever `vocabulary` says.

        Raises:
            ConditioningError: the width is the same, but the number of layers or heads, the expansion or the length of
                a caption is not.
        """
        if config.width != self.width:
            return False
        check_shape(config, self.text_encoder.config, self.length)
        return True

    @property
    def structure(self) -> dict[str, Any]:
        """The text encoder's config, and the tokenizer's files as text."""
        return structure_of(self.text_encoder, self.tokenizer)

    @classmethod
    def from_structure(cls, structure: Mapping[str, Any]) -> "TextConditioner":
        """Build the text encoder, with random weights, and the tokenizer whose config and files `structure` has.

        Raises:
            ConditioningError: the structure is invalid.
        """
        return cls(*from_structure(structure))

    @classmethod
    def load(cls, folder: Path, suffix: str = "") -> "TextConditioner":
        """Load text_encoder and tokenizer, with `suffix` after both, as `save` or Stable Diffusion 1 has them.

        Raises:
            ConditioningError: the weights lack tensors.
        """
        return cls._open(folder, suffix, whole=False)

    @classmethod
    def load_whole(cls, folder: Path, suffix: str = "") -> "TextConditioner":
        """Load what `load` loads; raises ConditioningError also if the weights have tensors of no use."""
        return cls._open(folder, suffix, whole=True)

    @classmethod
    def _open(cls, folder: Path, suffix: str, *, whole: bool) -> "TextConditioner":
        from transformers import CLIPTextModel

        path = folder / f"{ENCODER}{suffix}"
        with quiet():
            kind: Any = CLIPTextModel
            encoder, report = kind.from_pretrained(
                path,
                use_safetensors=True,
                local_files_only=True,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
        check_tensors(path, report, whole=whole)
        return cls(encoder, load_tokenizer(folder / f"{TOKENIZER}{suffix}"))

    @property
    def trainable(self) -> dict[str, nn.Module]:
        """The text encoder, trained jointly with the denoiser, by the folder in which it is saved."""
        return {ENCODER: self.text_encoder}

    def prepare(self, raw: Sequence[str | int], progress: Progress | None = None) -> Inputs:
        """Turn N captions into {"ids": int64 [N, L]}, cut or padded to L tokens; log how many captions were cut.

        `progress` is called after each batch with the number of captions done and their total.
        """
        captions, cut = texts(raw), 0
        ids = torch.empty(len(captions), self.length, dtype=torch.long)
        for start in range(0, len(captions), CHUNK):
            chunk = captions[start : start + CHUNK]
            batch = self.tokenizer(chunk, padding="max_length", max_length=self.length, truncation=True)
            ids[start : start + len(chunk)] = torch.tensor(batch["input_ids"])
            cut += overflowing(batch)
            if progress:
                progress(start + len(chunk), len(captions))
        self.on_truncated(cut, len(captions), self.length)
        return {"ids": ids}

    def forward(self, ids: Tensor) -> Condition:
        """Encode ids [B, L] as tokens [B, L, D], without a mask: as in Stable Diffusion, padding is attended to."""
        return Condition(tokens=self.text_encoder(ids).last_hidden_state)

    def release(self) -> None:
        """Do nothing: there is nothing to free."""

    def save(self, folder: Path, suffix: str = "") -> dict[str, tuple[str, str]]:
        """Write `folder`/text_encoder and `folder`/tokenizer, with `suffix` after both; transformers opens them."""
        encoder, tokenizer = f"{ENCODER}{suffix}", f"{TOKENIZER}{suffix}"
        _save_encoder(self.text_encoder, folder / encoder)
        save_tokenizer(self.tokenizer, folder / tokenizer)
        return {encoder: ("transformers", "CLIPTextModel"), tokenizer: ("transformers", "CLIPTokenizer")}


@contextmanager
def quiet() -> Iterator[None]:
    """Turn off transformers' progress bars and its reports on missing weights within the context."""
    from transformers.utils import logging

    enabled, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if enabled:
            logging.enable_progress_bar()


def _fresh_encoder(config: TextConfig, tokenizer: Any) -> "CLIPTextModel":
    from transformers import CLIPTextConfig, CLIPTextModel

    shape = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=config.width * config.expansion,
        projection_dim=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.length,
        hidden_act="gelu",  # one fused kernel, where CLIP's quick_gelu is two
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel._from_config(shape, attn_implementation="sdpa")


def _save_encoder(encoder: "CLIPTextModel", folder: Path) -> None:
    """Write the encoder into `folder` in the format of published Stable Diffusion models.

    Both transformers 4 and 5 read this format.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    encoder.config.architectures, encoder.config.dtype = ["CLIPTextModel"], encoder.dtype
    encoder.config.save_pretrained(folder)
    state = {f"text_model.{name}": value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
