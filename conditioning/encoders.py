"""Frozen text encoders, from captions to hidden states of tokens and masks; not saved with the trained model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from conditioning.base import ConditioningError
from conditioning.bpe import overflowing
from conditioning.sources import Source, opening
from conditioning.text import quiet


class Encoded(NamedTuple):
    """Token states of B captions, on the CPU; the longest caption has L tokens, each state D channels."""

    states: Tensor  # [B, L, D] float32
    mask: Tensor  # [B, L] bool, False for padding
    cut: int  # number of captions that were longer than the encoder's `length` and were cut


class Encoder(Protocol):
    """Protocol of a frozen text encoder; a caption's states do not depend on its batch, up to rounding."""

    def __call__(self, captions: Sequence[str]) -> Encoded:
        """Encode captions as token states, padded to the longest caption of the batch."""
        ...


def load_encoder(source: Source, length: int, layer: int, device: torch.device) -> Encoder:
    """Load a frozen text encoder in float32.

    Args:
        source: the encoder's files.
        length: most tokens of a caption; longer captions are cut.
        layer: which layer's hidden states to return, from the end: -1 is the last layer, after the final norm; -2 is
            the layer before it, without the norm.
        device: where the encoder runs.

    Raises:
        ConditioningError: the encoder cannot be opened, takes fewer than `length` tokens, or has no such layer.
    """
    with opening(source.folder):
        if source.architecture is None:
            return _load_transformers(source, length, layer, device)
        if layer != -1:
            raise ConditioningError(f"open_clip encoders give the last layer (-1) only, got layer {layer}")
        return _load_open_clip(source, length, device)


@dataclass(frozen=True, eq=False)
class TransformersEncoder:
    """Text encoder of the library transformers: maps captions to the hidden states of their tokens, `Encoded`.

    Attributes:
        model: CLIPTextModel, a T5 encoder, or any other model whose output has last_hidden_state [B, L, D].
        tokenizer: the model's tokenizer.
        length: most tokens of a caption, special tokens included; longer captions are cut.
        layer: layer whose hidden states are returned, from the end: -1 for last_hidden_state, else the index in the
            model's hidden_states.
    """

    model: nn.Module
    tokenizer: Any
    length: int
    layer: int

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Encoded:
        """Encode captions as token states, padded to the longest caption of the batch."""
        batch = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.length, padding_side="right"
        )
        ids, mask = (torch.tensor(batch[key]) for key in ("input_ids", "attention_mask"))
        device = next(self.model.parameters()).device
        output = self.model(
            input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=self.layer != -1
        )
        states = output.last_hidden_state if self.layer == -1 else output.hidden_states[self.layer]
        return Encoded(states.float().cpu(), mask.bool(), overflowing(batch))


@dataclass(frozen=True, eq=False)
class OpenClipEncoder:
    """Text encoder of an open_clip model: maps captions to the output of `ln_final` for all their tokens, `Encoded`.

    Attributes:
        model: the open_clip model, without its image tower.
        tokenizer: the model's tokenizer.
        norm: the model's `ln_final`.
        positions: tokens of the model's input, to which captions are padded.
        length: most tokens of a caption, special tokens included; longer captions are cut.
    """

    model: Any
    tokenizer: Any
    norm: nn.Module
    positions: int
    length: int

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Encoded:
        """Encode captions as token states, padded to the longest caption of the batch.

        The model is causal and takes exactly `positions` tokens; the states after the longest caption are cut off.
        """
        ids = self.tokenizer(list(captions), context_length=self.length)
        cut = sum(len(self.tokenizer.encode(caption)) + 2 > self.length for caption in captions)
        padded = nn.functional.pad(ids, (0, self.positions - self.length))
        states = self._after_norm(padded.to(next(self.model.parameters()).device))
        mask = torch.arange(self.length) <= ids.argmax(dim=1, keepdim=True)  # the end token has the highest id
        longest = int(mask.sum(dim=1).max())
        return Encoded(states[:, :longest].float().cpu(), mask[:, :longest], cut)

    def _after_norm(self, ids: Tensor) -> Tensor:
        outputs: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            outputs.append(output)

        handle = self.norm.register_forward_hook(keep)
        try:
            self.model.encode_text(ids)
        finally:
            handle.remove()
        return outputs[0]


def _load_transformers(source: Source, length: int, layer: int, device: torch.device) -> TransformersEncoder:
    from transformers import AutoConfig, AutoTokenizer

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config: Any = AutoConfig.from_pretrained(source.folder, **local)
    tokenizer: Any = AutoTokenizer.from_pretrained(source.folder, **local)
    shape = config.get_text_config()
    _check_length(length, min(tokenizer.model_max_length, getattr(shape, "max_position_embeddings", length)))
    if not -shape.num_hidden_layers - 1 <= layer <= -1:
        raise ConditioningError(f"layer must be -{shape.num_hidden_layers + 1}..-1 for this encoder, got {layer}")
    with quiet():
        model = _model_class(config).from_pretrained(
            source.folder, use_safetensors=True, dtype=torch.float32, local_files_only=True
        )
    return TransformersEncoder(model.eval().requires_grad_(False).to(device), tokenizer, length, layer)


def _model_class(config: Any) -> Any:
    import transformers

    if config.model_type in ("clip", "clip_text_model"):
        return transformers.CLIPTextModel
    # Else AutoModel would open a T5 with its decoder.
    listed = type(config) in transformers.models.auto.modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING
    return transformers.AutoModelForTextEncoding if listed else transformers.AutoModel


def _load_open_clip(source: Source, length: int, device: torch.device) -> OpenClipEncoder:
    import open_clip

    assert source.architecture is not None
    model: Any = open_clip.create_model(
        source.architecture,
        pretrained=str(source.weights[0]),
        pretrained_text=False,
        force_quick_gelu=source.quick_gelu,
        require_pretrained=True,
    )
    model.visual = nn.Identity()
    tower: Any = model.text if isinstance(model, open_clip.CustomTextCLIP) else model
    _check_length(length, int(tower.context_length))
    tokenizer = open_clip.get_tokenizer(source.architecture)
    model = model.eval().requires_grad_(False).to(device)
    return OpenClipEncoder(model, tokenizer, tower.ln_final, int(tower.context_length), length)


def _check_length(length: int, most: int) -> None:
    if length > most:
        raise ConditioningError(f"this text encoder takes at most {most} tokens, got length {length}")
