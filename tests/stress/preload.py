"""Imports of every trial's process, made once in the server that processes are forked from."""

import importlib
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)  # bits depend on the number
SCRIPTS = ("train_ae", "train_ldm", "ldm_kit.methods.train")
TRIALS = ("tests.stress.faults", "tests.stress.resume", "tests.stress.world_size")
for name in (*SCRIPTS, "ldm_kit.training.session", *TRIALS):
    importlib.import_module(name)
