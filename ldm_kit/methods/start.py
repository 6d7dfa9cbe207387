"""Locate the trained weights that a run starts from (`init`), and keep the structure of its networks in checkpoints.

A resumed run has its weights in the checkpoint, so the model that it started from need not be there any more. But a
checkpoint holds only tensors. So `start.json` in it has what else the networks are built from.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ldm_kit.config import UserError
from ldm_kit.data import peers
from ldm_kit.methods.export import saved_model
from ldm_kit.models.growth import public_config
from ldm_kit.models.hub import HubContent, locate_pinned
from ldm_kit.training.training_state import START_FILE


def locate_start(init: str, content: HubContent) -> tuple[Path, str]:
    """Return the folder of a saved model that `init` names, and its name for messages, "init NAME".

    A checkpoint is exported to the cache, with averaged weights; a model on the Hub is downloaded. The first process of
    each machine does so before the others, which find it there.

    Args:
        init: a saved model, a run, a checkpoint, or owner/name or owner/name@REVISION on the Hub.
        content: what is needed of a repository on the Hub.

    Raises:
        UserError: there is no such model, or the checkpoint cannot be exported; on this process or another.
    """
    group, locate = peers.everyone(), partial(_locate, init, content)
    return peers.agreed(group, lambda: peers.first_alone(locate))[group.rank]


def _locate(init: str, content: HubContent) -> tuple[Path, str]:
    with peers.shared_by(peers.Alone(), peers.Alone()):  # an export makes caches, in which the others take no part
        return _located(init, content)


def _located(init: str, content: HubContent) -> tuple[Path, str]:
    folder, origin = locate_pinned(init, "named by init", content)
    if origin is not None:
        return folder, f"init {origin.name}@{origin.commit}"
    return saved_model(folder, device="cpu"), f"init {init}"


def structure_of(network: Any) -> dict[str, Any]:
    """Return the class name and the config of a diffusers network, as JSON values."""
    return {"class": type(network).__name__, "config": public_config(network)}


def from_structure(structure: Any, classes: Mapping[str, Any], checkpoint: Path) -> Any:
    """Build the network of which `structure_of` returned the structure, with random weights.

    Args:
        structure: class name and config.
        classes: class name -> class, of all classes that are allowed.
        checkpoint: the checkpoint that holds the structure, for the message.

    Raises:
        UserError: the structure is invalid.
    """
    match structure:
        case {"class": str(name), "config": dict(config)} if name in classes:
            return classes[name].from_config(config)
        case _:
            raise UserError(f"{checkpoint / START_FILE} describes no network; expected one of {', '.join(classes)}")


def resumed_note(sha256: str) -> str:
    """Return a sentence for the log of a resumed run that started from trained weights."""
    return f"init is not read again: the checkpoint has the weights of this run, which started from sha256 {sha256}"


def trainable(*networks: nn.Module) -> None:
    """Turn loaded networks to float32, training mode and gradients, in place."""
    for network in networks:
        network.float().train().requires_grad_(True)
