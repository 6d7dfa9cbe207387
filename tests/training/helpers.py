"""Tiny runs on made-up pictures, in this process or in several that talk gloo."""

import hashlib
import json
import multiprocessing.context
import os
import socket
import sys
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from ldm_kit import config as configs
from ldm_kit.methods import check_run
from ldm_kit.methods.base import Collectives
from ldm_kit.methods.run_config import RunConfig
from ldm_kit.methods.train import open_method, open_start
from ldm_kit.training.session import Session, session

ROOT = Path(__file__).parents[2]

COMMON = {
    "data": {"source": "folder", "resolution": 16, "heldout": 0.0},
    "flip": True,
    "optim": {"lr": 1e-3, "warmup": 2},
    "train": {"steps": 8, "batch_size": 8, "checkpoint_every": 100},
    "log": {"tensorboard": False},
}
GAME = {"start": 2, "discriminator_start": 1, "ramp": 2, "weight": 0.5}
CRITERION = {
    "balance": "custom",
    "perceptual_weight": 0.0,
    "kl_weight": 1e-6,
    "learned_scale": False,
    "adversarial": GAME,
}
SHAPE = {"resolution": 16, "widths": [8, 16], "latent_channels": 2, "norm_num_groups": 4, "middle_attention": False}
STAGE_1 = {"perceptual": {"spec": "none"}, "loss": CRITERION, "discriminator": {"width": 8, "layers": 1}}
KL = {**COMMON, **STAGE_1, "autoencoder": {"kind": "kl", **SHAPE}}
REVIVAL = {"ema": True, "decay": 0.9, "revive_every": 3, "revive_below": 0.5}
VQ = {**COMMON, **STAGE_1, "autoencoder": {"kind": "vq", "codes": 32, **REVIVAL, **SHAPE}}
UNET = {
    "widths": [8, 16],
    "layers_per_block": 1,
    "attention_levels": [False, True],
    "heads": 2,
    "norm_num_groups": 4,
    "dropout": 0.1,
}
STAGE_2 = {**COMMON, "unet": UNET, "schedule": {"kind": "linear", "num_train_timesteps": 50}, "condition_dropout": 0.3}
STAGE_2["sample"] = {"steps": 2}
TEXT = {**STAGE_2, "condition": {"kind": "text", "width": 16, "layers": 1, "heads": 2, "vocabulary": 520, "length": 8}}
CLASSES = {**STAGE_2, "condition": {"kind": "class", "width": 16}}
HALF = {
    "widths": [8, 16],
    "layers_per_block": 1,
    "attention_levels": [False, True],
    "head_size": 8,
    "norm_num_groups": 4,
    "dropout": 0.1,
}
ENCODER = {
    "kind": "diffae",
    "z_width": 8,
    "widths": [8, 16],
    "attention_levels": [False, True],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
CODED = {
    "widths": [8, 16],
    "attention_levels": [False, True],
    "layers_per_block": 1,
    "time_width": 16,
    "norm_num_groups": 4,
    "dropout": 0.1,
}
DIFFAE = {**COMMON, "method": "diffae", "encoder": ENCODER, "unet": CODED, "schedule": STAGE_2["schedule"]}
DIFFAE["sample"] = {"encode_steps": 2, "decode_steps": 2}
TOKENS = {**DIFFAE, "code": {"kind": "tokens", "width": 4, "hidden": [8]}}
CLASSIFIER = {**COMMON, "method": "classifier", "net": HALF, "schedule": STAGE_2["schedule"], "shift": 2}


def picture_folder(path: Path, count: int = 24, side: int = 16, seed: int = 0) -> Path:
    """Random pictures with a caption and a label each."""
    path.mkdir(parents=True)
    pixels = torch.randint(0, 256, (count, side, side, 3), generator=torch.Generator().manual_seed(seed))
    lines = []
    for i in range(count):
        Image.fromarray(pixels[i].to(torch.uint8).numpy()).save(path / f"{i:03d}.png")
        lines.append({"file_name": f"{i:03d}.png", "text": f"a thing of kind {i % 5}", "label": "abc"[i % 3]})
    (path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def settings(tree: dict, pictures: Path, run: Path, *overrides: str) -> RunConfig:
    """A config out of one of the trees above."""
    tree = deepcopy(tree)
    tree["run"] = str(run)
    tree["data"]["path"] = str(pictures)
    for override in overrides:
        configs.assign(tree, override)
    return check_run(tree, "the test's config")


@dataclass
class Played:
    """What a run said at each step (as hex), and its weights at the end (as sha256 by player)."""

    lines: list[dict[str, str]]
    weights: dict[str, str]

    def numbers(self, name: str) -> torch.Tensor:
        return torch.tensor([float.fromhex(line[name]) for line in self.lines if name in line], dtype=torch.float64)


def play(
    config: RunConfig,
    resume: str | None = None,
    until: int | None = None,
    between: Callable[[int], object] = lambda number: None,
    opened: Callable[[Session], object] = lambda run: None,
) -> Played:
    """Train as the scripts do, without reports; stop after step `until`."""
    reset()
    with session(config, resume) as run:
        opened(run)
        collectives = Collectives(run.all_reduce_mean, run.all_reduce_sum, run.broadcast)
        method = open_method(config, None, run.device, collectives, start=open_start(config, run.resume))
        method.precision = run.precision
        trainer, lines = run.trainer(method, method.batches), []
        for step in trainer.train(method.batches):
            values = {**step.logs, **{f"{name}_norm": norm for name, norm in step.norms.items()}}
            means = {name: run.all_reduce_mean(value.detach().clone()) for name, value in values.items()}
            lines.append({"lr": step.lr.hex(), **{name: float(value).hex() for name, value in means.items()}})
            run.save_when_due(trainer, step)
            if step.number == until:
                break
            between(step.number)
        return Played(lines, {name: digest(module.state_dict()) for name, module in method.modules.items()})


def reset() -> None:
    """Accelerate keeps its state in the classes; forget it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """Sha256 over tensors, by name."""
    state = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        state.update(name.encode() + value.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
    return state.hexdigest()


def tensors_of(checkpoint: Path) -> dict[str, str]:
    """Sha256 of every tensor file of a checkpoint: models, averages, optimisers."""
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}


def context() -> multiprocessing.context.ForkServerContext:
    """Children from a server that has imported everything once: they start at once, and inherit no threads."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["ldm_kit.methods.latent", "ldm_kit.methods.autoencoder", "ldm_kit.training.session"])
    return server


def ranks(world: int, function: Callable, *args: object, folder: Path) -> list:
    """What `function(*args)` returns in each of several processes that talk gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    files = [folder / f"rank-{rank}.pt" for rank in range(world)]
    processes = [
        context().Process(target=_rank, args=(rank, world, port, files[rank], function, args)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(900)
    assert [process.exitcode for process in processes] == [0] * world
    return [torch.load(file, weights_only=False) for file in files]


def _rank(rank: int, world: int, port: int, file: Path, function: Callable, args: tuple) -> None:
    warnings.simplefilter("error")
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    torch.save(function(*args), file)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
