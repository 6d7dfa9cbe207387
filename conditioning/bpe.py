"""A byte-level BPE tokenizer of CLIP's kind (Radford et al. 2021), learned from the user's own captions."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
SMALLEST_VOCABULARY = 2 * 256 + 2
"""Least number of tokens: 256 bytes, 256 bytes at a word's end, start and end; they can write every caption."""

logger = logging.getLogger("conditioning")


def train_tokenizer(captions: Iterable[str], vocabulary: int, length: int) -> "CLIPTokenizer":
    """Train a `CLIPTokenizer` on captions; the order of the captions does not matter.

    Args:
        captions: training captions.
        vocabulary: greatest number of tokens in the tokenizer's vocabulary, at least 514.
        length: number of tokens to which each caption is padded or cut (`model_max_length`).

    Token ids are in CLIP's order: 256 bytes, 256 bytes at a word's end, merges by rank, start, end. Captions are padded
    with the end token.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    letters = alphabet + [letter + WORD_END for letter in alphabet]
    merges = _merges(captions, alphabet, vocabulary - SMALLEST_VOCABULARY)
    tokens = dict.fromkeys([*letters, *(left + right for left, right in merges), START, END])
    return _clip_tokenizer({token: index for index, token in enumerate(tokens)}, merges, model_max_length=length)


def save_tokenizer(tokenizer: "CLIPTokenizer", folder: Path) -> None:
    """Write tokenizer.json (transformers 5), vocab.json and merges.txt (transformers 4 and others) into `folder`."""
    tokenizer.backend_tokenizer.no_padding()  # settings of the last call are no part of the tokenizer
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def load_tokenizer(folder: Path) -> "CLIPTokenizer":
    """Load the tokenizer that `save_tokenizer` wrote into `folder`, without network access."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    for option in ("is_local", "local_files_only"):  # loading options, which transformers would save with it
        tokenizer.init_kwargs.pop(option, None)
    return tokenizer


def overflowing(batch: Any) -> int:
    """Return how many captions of a tokenized batch (transformers' BatchEncoding) were too long and were cut."""
    return sum(bool(encoding.overflowing) for encoding in batch.encodings or [])


def report_truncated(cut: int, total: int, length: int) -> None:
    """Log one line if any captions were cut: `cut` of `total`, to `length` tokens."""
    if cut:
        logger.warning("%d of %d captions are longer than %d tokens; their ends are cut", cut, total, length)


def _merges(captions: Iterable[str], alphabet: list[str], count: int) -> list[tuple[str, str]]:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    clip = _clip_tokenizer({START: 0, END: 1}, []).backend_tokenizer
    learner = Tokenizer(BPE(end_of_word_suffix=WORD_END))
    learner.normalizer, learner.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=2 * len(alphabet) + count,
        min_frequency=2,
        show_progress=False,
        # Named here, else they are numbered in the order of a randomly seeded hash map, and ties break by number.
        special_tokens=[letter + WORD_END for letter in alphabet],
        initial_alphabet=alphabet,
        end_of_word_suffix=WORD_END,
    )
    learner.train_from_iterator(captions, trainer)
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"][:count]]


def _clip_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]], **settings: Any) -> "CLIPTokenizer":
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab=vocab, merges=merges, **settings)  # pyright: ignore[reportArgumentType]
