"""Results of the page: pictures in a private folder, with what the user had set to make them."""

import shutil
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm_kit.app.options import MAX_RESULTS
from ldm_kit.viz.png import read_metadata

_SHEETS = ("grid.png", "sheet.png")


@dataclass(frozen=True)
class Result:
    """Pictures of one request, and the values of the page's fields with which they were made."""

    tab: str  # name of the tab
    model: str  # name of the model
    folder: Path  # holds the PNGs
    values: Mapping[str, Any]  # values of the tab's fields, by name
    note: str = ""  # sentences on the result
    key: str = ""  # key of the tab
    summary: Mapping[str, Any] = field(default_factory=dict[str, Any])  # what describes the result in the history

    @property
    def pictures(self) -> list[tuple[str, str]]:
        """Path and caption of each picture, in order."""
        paths = [path for path in self.folder.glob("*.png") if path.name not in _SHEETS]
        return [(str(path), _caption(path)) for path in sorted(paths, key=lambda path: path.name.split("-")[1])]

    @property
    def thumbnail(self) -> str:
        """Path of the picture that stands for the result: the first sample, or the last picture of an edit."""
        return self.pictures[0 if (self.folder / "grid.png").exists() else -1][0]

    @property
    def title(self) -> str:
        """A few words for the history: the prompt, or else the tab."""
        text = next((str(self.values[name]) for name in ("prompt", "class_name") if self.values.get(name)), self.tab)
        return text if len(text) <= 40 else f"{text[:39]}…"

    def archive(self) -> str:
        """Return the path of a ZIP file of all pictures, written at the first call."""
        path = self.folder / "pictures.zip"
        if not path.exists():
            with zipfile.ZipFile(path, "w") as archive:
                for picture in sorted(self.folder.glob("*.png")):
                    archive.write(picture, picture.name)
        return str(path)

    def settings(self) -> str:
        """Return the settings as lines of Markdown: model, tab and each value that says something."""
        rows = [f"**{name.replace('_', ' ')}** {_shown(value)}" for name, value in self.summary.items() if _says(value)]
        return " · ".join([f"**{self.tab}** with {self.model}", *rows])


@dataclass
class Workspace:
    """The private folder of one server: uploads and results, removed when the server ends."""

    root: Path  # the folder, which only its user can read
    results: Path = field(init=False)

    def __post_init__(self) -> None:
        self.results = self.root / "results"
        self.results.mkdir(mode=0o700, exist_ok=True)

    def new_folder(self) -> Path:
        """Return the path of a new folder for a result, whose name cannot be guessed."""
        return self.results / uuid.uuid4().hex

    def add(self, history: Sequence[Result], result: Result) -> list[Result]:
        """Return a history with a new result in front; what is over `MAX_RESULTS` is removed from the disk."""
        results = [result, *history]
        remove(results[MAX_RESULTS:])
        return results[:MAX_RESULTS]


def remove(results: Sequence[Result]) -> None:
    """Remove results from the disk, such as those of a browser that has left."""
    for result in results:
        shutil.rmtree(result.folder, ignore_errors=True)


def _caption(path: Path) -> str:
    metadata = read_metadata(path)
    if "picture" in metadata:
        return metadata["picture"]
    prompt, seed = metadata.get("prompt", ""), metadata.get("seed", "")
    return f"seed {seed}, {prompt}" if prompt else f"seed {seed}"


def _says(value: Any) -> bool:
    return value not in (None, "", [], False) and not isinstance(value, Mapping) and not str(value).startswith("/")


def _shown(value: Any) -> str:
    text = " / ".join(str(value).splitlines()) if isinstance(value, str) else str(value)
    return text if len(text) <= 200 else f"{text[:199]}…"
