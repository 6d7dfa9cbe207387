"""Models on the Hub: what is downloaded, and that a local copy spares the network."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

from ldm_kit.config import UserError
from ldm_kit.models.hub import AUTOENCODER, MODEL, locate, locate_pinned

WEIGHTS = "diffusion_pytorch_model.safetensors"
ROOT = ("config.json", WEIGHTS)
PIPELINE = ("model_index.json", "vae/config.json", f"vae/{WEIGHTS}", "unet/config.json", f"unet/{WEIGHTS}")
REST = ("pipeline.py", "a.ckpt", "sub/config.json")


class Hub:
    """A repository, of which a local copy may have some files, and the calls that were made."""

    def __init__(self, copy: Path, remote: tuple[str, ...], local: tuple[str, ...]) -> None:
        self.copy, self.remote, self.calls = copy, remote, []
        self.write(local)

    def write(self, names) -> None:
        for name in names:
            (self.copy / name).parent.mkdir(parents=True, exist_ok=True)
            (self.copy / name).write_text("{}")

    def download(self, name, *, revision, allow_patterns, ignore_patterns, local_files_only) -> str:
        self.calls.append("local" if local_files_only else "remote")
        if not local_files_only:
            self.write(name for name in self.remote if any(fnmatch(name, pattern) for pattern in allow_patterns))
        elif not self.copy.exists():
            raise FileNotFoundError
        return str(self.copy)

    @property
    def names(self) -> set[str]:
        return {str(path.relative_to(self.copy)) for path in self.copy.rglob("*") if path.is_file()}


@pytest.fixture
def hub_of(tmp_path, monkeypatch):
    def made(remote: tuple[str, ...], local: tuple[str, ...] = ()) -> Hub:
        hub = Hub(tmp_path / ("0a" * 20), remote, local)
        monkeypatch.setattr("huggingface_hub.snapshot_download", hub.download)
        return hub

    return made


@pytest.mark.parametrize(("content", "local"), [(MODEL, PIPELINE), (AUTOENCODER, PIPELINE), (AUTOENCODER, ROOT)])
def test_a_complete_local_copy_is_taken_without_the_network(hub_of, content, local):
    hub = hub_of((), local)
    found = locate("owner/name", None, "named by init", content)
    assert (found.folder, found.origin) == (hub.copy, ("owner/name", hub.copy.name))
    assert hub.calls == ["local"]


@pytest.mark.parametrize(
    ("content", "remote", "local", "expected"),
    [
        (MODEL, PIPELINE, (), {*PIPELINE, "sub/config.json"}),
        (MODEL, PIPELINE, PIPELINE[1:3], {*PIPELINE, "sub/config.json"}),
        (AUTOENCODER, PIPELINE, (), {*PIPELINE[1:3]}),
        (AUTOENCODER, PIPELINE, (PIPELINE[0], *PIPELINE[3:]), {*PIPELINE}),
        (AUTOENCODER, ROOT, (), {*ROOT}),
        (AUTOENCODER, ROOT, ROOT[:1], {*ROOT}),
    ],
)
def test_what_lacks_is_downloaded_once(hub_of, content, remote, local, expected):
    hub = hub_of((*remote, *REST), local)
    assert locate_pinned("owner/name@v2", "named by init", content).folder == hub.copy
    assert hub.calls == ["local", "remote"]
    assert hub.names == expected


@pytest.mark.parametrize(("content", "remote"), [(MODEL, ROOT), (AUTOENCODER, ("unet/config.json", f"unet/{WEIGHTS}"))])
def test_a_repository_of_something_else_is_refused(hub_of, content, remote):
    hub = hub_of(remote)
    with pytest.raises(UserError, match=r"^cannot find or download owner/name at revision v2, named by init: "):
        locate_pinned("owner/name@v2", "named by init", content)
    assert hub.calls == ["local", "remote"]
