"""Find a saved model by the name of its folder, or by its name on the Hugging Face Hub, pinned to a commit.

Only safetensors and text files are downloaded; a complete local copy is taken before the network is asked.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from autoencoder import saved
from autoencoder.base import AutoencoderError
from conditioning import sources
from ldm_kit.config import UserError
from ldm_kit.models.folder import INDEX

HUB_NAME, COMMIT = re.compile(r"\w[\w.-]*/\w[\w.-]*"), re.compile(r"[0-9a-f]{40}")
_WITH_WEIGHTS = ("unet", "vae", "vqvae", "text_encoder", "class_encoder")  # names of the components with weights
_WEIGHTS = tuple(
    f"{name}{shard}.safetensors" for name in ("diffusion_pytorch_model", "model") for shard in ("", "-*-of-*")
)
_NETWORK = ("config.json", *_WEIGHTS[:2])  # the files of one network of diffusers


class Origin(NamedTuple):
    """Where a model was downloaded from: a repository on the Hugging Face Hub, at one commit."""

    name: str  # owner/name
    commit: str  # 40 hex digits

    def __str__(self) -> str:
        return f"{self.name} at {self.commit[:12]}"


class Located(NamedTuple):
    """A saved model that was found."""

    folder: Path  # the model's folder; for a model from the Hub, the folder of its local copy
    origin: Origin | None  # repository on the Hub; None: a folder of the user's


class HubContent(NamedTuple):
    """What a caller needs of a repository on the Hub; nothing else is downloaded."""

    files: Sequence[str]  # patterns of file names
    complete: Callable[[Path], bool]  # function that tells whether a local copy has all that is needed


def _has_model(folder: Path) -> bool:
    """Return whether the local copy of a Hub model has model_index.json, and weights in each component's folder."""
    components = [folder / name for name in _WITH_WEIGHTS if (folder / name).is_dir()]
    return (folder / INDEX).is_file() and all(any(path.glob("*.safetensors")) for path in components)


def _has_autoencoder(folder: Path) -> bool:
    """Return whether a local copy has config.json and weights of an autoencoder, where `saved.find` looks for it."""
    try:
        return any(saved.find(folder).glob("*.safetensors"))
    except AutoencoderError:
        return False


MODEL = HubContent(
    ["*.json", "tokenizer/*.txt", *(f"{component}/{name}" for component in _WITH_WEIGHTS for name in _WEIGHTS)],
    _has_model,
)
"""A diffusion model with all its components."""

AUTOENCODER = HubContent(
    [f"{folder}{name}" for folder in ("", "vae/", "vqvae/") for name in _NETWORK], _has_autoencoder
)
"""An autoencoder alone: a repository's only network, or that of a diffusion model."""


def locate(model: Path | str, revision: str | None, what: str, content: HubContent = MODEL) -> Located:
    """Find a model's folder. If `model` is both the path of a folder and a name on the Hub, the folder is meant.

    Args:
        model: a folder, or `owner/name` on the Hub.
        revision: branch, tag or commit on the Hub; None: main.
        what: what the model is for, as error messages call it, such as "the frozen model".
        content: what is needed of a repository on the Hub. A local copy that has it is taken without the network.

    Raises:
        UserError: `model` is a folder and `revision` is not None; or the model is not in the cache and cannot be
            downloaded.
    """
    folder = Path(model)
    if folder.exists() or not HUB_NAME.fullmatch(str(model)):
        if revision is not None:
            raise UserError(f"{model} is no model on the Hub, but a folder, which has no revision {revision!r:.80}")
        return Located(folder, None)
    copy = sources.snapshot(str(model), [*content.files], content.complete, ignored=None, revision=revision)
    if copy is None:
        at = "" if revision is None else f" at revision {revision:.80}"
        raise UserError(
            f"cannot find or download {model}{at}, {what}: there is no such folder, and as a model of safetensors on "
            "the Hub it is neither in the local cache nor to be downloaded now"
        )
    return Located(copy, Origin(str(model), copy.name))


def locate_pinned(model: str, what: str, content: HubContent = MODEL) -> Located:
    """Find a model by a folder, `owner/name`, or `owner/name@REVISION` (a branch, tag or commit); see `locate`."""
    name, at, revision = model.rpartition("@")
    if at and HUB_NAME.fullmatch(name) and not Path(model).exists():
        return locate(name, revision or None, what, content)
    return locate(model, None, what, content)
