"""Sentences between steps."""

import sys

import torch.distributed as dist
from tqdm import tqdm


def say(text: str) -> None:
    """A sentence on stderr, above any progress bar, from the main process alone."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        tqdm.write(text, file=sys.stderr)
