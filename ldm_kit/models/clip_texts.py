"""The text encoder of an open_clip model, whose embeddings are compared with those of pictures."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm_kit.config import UserError

BATCH = 256  # texts that are encoded at once


def text_encoder(model: Any, architecture: str, device: torch.device) -> Callable[[Sequence[str]], Tensor]:
    """Return a function of N texts to their embeddings, float32 [N, D] on the CPU.

    Longer texts are cut to the model's number of tokens. The tokenizer is opened when the function is called, which
    raises UserError if that fails: some architectures' tokenizers are the Hub's.

    Args:
        model: an open_clip model.
        architecture: its name in open_clip, which determines the tokenizer.
        device: where the model is put.
    """
    import open_clip

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        try:
            tokenizer = open_clip.get_tokenizer(architecture)
        except Exception as error:  # of many unrelated classes: no network, no such file, a missing package
            reason = " ".join(str(error).split())
            raise UserError(f"the tokenizer of open_clip's {architecture} cannot be opened: {reason:.200}") from None
        encoder = model.eval().to(device)
        chunks = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        return torch.cat([encoder.encode_text(tokenizer([*chunk]).to(device)).float().cpu() for chunk in chunks])

    return encode
