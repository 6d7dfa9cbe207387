"""Data sets on the Hugging Face Hub, pinned to a commit: files are downloaded once, and read as local ones are.

No code of a data set is run. A file that is complete in the cache is not asked for again.
"""

import json
import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ldm_kit.config import Config, UserError, cache_dir
from ldm_kit.data import atomic, peers
from ldm_kit.data.bucket_sizes import BucketsConfig
from ldm_kit.data.captions import KINDS
from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.image_kinds import is_picture
from ldm_kit.data.parquet import ParquetConfig
from ldm_kit.data.webdataset import WebDatasetConfig

LIST = "files.json"  # in the local copy's folder: the files that were downloaded for each path
_NAME, _COMMIT = re.compile(r"[\w.-]+/[\w.-]+"), re.compile(r"[0-9a-f]{40}")
_log = logging.getLogger("ldm_kit.data")
Files = FolderConfig | WebDatasetConfig | ParquetConfig


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"{name!r:.80} names no data set; expected owner/name")
    return name


def _check_commit(revision: str) -> str:
    if not _COMMIT.fullmatch(revision):
        raise ValueError(
            f"{revision!r:.80} is no commit; expected its 40 hex digits, as a branch or tag may change under a run"
        )
    return revision


def _check_inside(data: Any) -> Any:
    if getattr(data, "range", None) is not None:
        raise ValueError("range is for folders on this machine; download the data set, and say data.source: folder")
    path = PurePosixPath(data.path.as_posix())
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"path {path} leads outside; expected a path in the repository, such as data")
    return data


class HubConfig(Config):
    """Options of a data source that is a data set on the Hugging Face Hub."""

    source: Literal["hub"] = Field(default="hub", description="which data: a data set on the Hugging Face Hub")
    name: Annotated[str, AfterValidator(_check_name)] = Field(description="the data set on the Hub, owner/name")
    revision: Annotated[str, AfterValidator(_check_commit)] = Field(description="its commit, 40 hex digits")
    data: Annotated[Files, Field(discriminator="source"), AfterValidator(_check_inside)] = Field(
        description="how its files are read: source parquet, webdataset or folder, with all options; path is that in "
        "the repository: a folder (. for all), a file or a pattern with braces"
    )

    @property
    def resolution(self) -> int:
        """Pixels along each side of a picture."""
        return self.data.resolution

    @property
    def channels(self) -> int:
        """Channels of a picture: 1 grey, 3 RGB, 4 RGBA."""
        return self.data.channels

    @property
    def alpha(self) -> str:
        """What transparency means."""
        return self.data.alpha

    @property
    def buckets(self) -> BucketsConfig | None:
        """Aspect-ratio buckets; None: squares."""
        return self.data.buckets


def local_config(config: HubConfig) -> Files:
    """Download the files of a data set that are not in the cache; return the config by which the copy is read.

    Of the processes on a machine, the first downloads, and the others wait.

    Raises:
        UserError: the data set cannot be reached, has no such commit, or no file that the path names.
    """
    folder = cache_dir() / "hub" / config.name.replace("/", "--") / config.revision
    path = config.data.path.as_posix()
    peers.from_first(peers.host(), partial(_download, config, folder, path))
    return config.data.model_copy(update={"path": folder / path})


def _download(config: HubConfig, folder: Path, path: str) -> None:
    """Download the files of a data set under `path` into `folder`, unless a list there says that they are complete."""
    key = f"{config.data.source} {path}"
    lists = _read_lists(folder)
    if all((folder / name).is_file() for name in lists.get(key, [""])):
        return
    from huggingface_hub import HfApi, snapshot_download

    def files() -> list[str]:
        return HfApi().list_repo_files(config.name, repo_type="dataset", revision=config.revision)

    names = [name for name in _asked(config, files) if _is_under(name, path) and _is_read(name, config.data)]
    if not names:
        raise UserError(
            f"the data set {config.name} has no files for source {config.data.source} under {path}; look at "
            f"https://huggingface.co/datasets/{config.name}/tree/{config.revision}"
        )
    _log.warning("downloading %d files of %s at %s into %s", len(names), config.name, config.revision[:12], folder)
    options = {"repo_type": "dataset", "revision": config.revision, "local_dir": folder}
    _asked(config, partial(snapshot_download, config.name, allow_patterns=[*map(_literal, names)], **options))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{missing[0]} of the data set {config.name} did not arrive in {folder}; try again")
    atomic.write(folder / LIST, json.dumps({**lists, key: names}).encode())


def _asked(config: HubConfig, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as error:  # of many unrelated classes: no network, no such data set or commit, no permission
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot download the data set {config.name} at {config.revision[:12]}, which is not complete in "
            f"{cache_dir()} ({type(error).__name__}: {reason:.160}); expected a network, and a token if it is private"
        ) from None


def _read_lists(folder: Path) -> dict[str, Sequence[str]]:
    try:
        return json.loads((folder / LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _is_under(name: str, path: str) -> bool:
    """Return whether a file lies under a path of the repository, or may be one that a pattern with braces names."""
    prefix, brace, _ = path.partition("{")
    return name.startswith(prefix) if brace else path in (".", name) or name.startswith(f"{path}/")


def _is_read(name: str, data: Files) -> bool:
    """Return whether a file is one that the reader of `data` takes; hidden files are not."""
    pure = PurePosixPath(name)
    if any(each.startswith(".") for each in pure.parts):
        return False
    if isinstance(data, FolderConfig):
        return is_picture(name) or pure.suffix[1:] in KINDS or pure.stem == "metadata"
    return pure.suffix == (".parquet" if isinstance(data, ParquetConfig) else ".tar")


def _literal(name: str) -> str:
    """Return a pattern that matches one file's name alone."""
    return re.sub(r"([*?[])", r"[\1]", name)
