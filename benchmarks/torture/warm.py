"""Everything that a door needs, imported before processes are forked: they then start at once."""

import importlib
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

NEEDED = (
    *("train_ae", "train_ldm", "ldm_kit.methods.autoencoder", "ldm_kit.methods.choose", "ldm_kit.reports"),
    *("ldm_kit.studios.choose", "ldm_kit.training.session", "tests.training.helpers"),
    *("benchmarks.torture.faults", "benchmarks.torture.resume", "benchmarks.torture.worlds"),
)


def after_step() -> None:
    """One thread, in this process as in those that are forked: bits depend on the number."""
    torch.set_num_threads(1)
    for name in NEEDED:
        importlib.import_module(name)
