"""What we write says nothing of who wrote it or where: no path, no user, no machine.

The exception is a run's own folder: config.yaml, and `config` in a checkpoint's trainer_state.json, hold the paths that
the user gave, as given; and .lock names the process that holds the folder. None of that goes into a saved model.
"""

import getpass
import json
import os
import socket
import stat
from pathlib import Path

import pytest
from PIL import Image

from ldm_kit.data.webdataset import WebDatasetConfig, load
from ldm_kit.viz.png import read_metadata
from tests.data.archive_files import greys
from tests.world import World, through

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2


def traces(world: World) -> list[bytes]:
    """What must not be found: long enough not to stand in random bytes."""
    found = {
        str(world.root),
        str(world.models),
        str(Path.home()),
        os.getcwd(),
        "/tmp/",
        "/home/",
        getpass.getuser(),
        socket.gethostname(),
    }
    return [text.encode() for text in found if len(text) > 4]


def guilty(world: World, path: Path, content: bytes) -> list[str]:
    return [f"{path}: {trace!r}" for trace in traces(world) if trace in content]


@pytest.mark.parametrize("name", ["kl", "text", "class"])
def test_models_and_checkpoints_and_logs_and_pictures(world, name):
    run = world.model(name)
    own = {run / "config.yaml", run / ".lock"}
    files = [path for path in run.rglob("*") if path.is_file() and path not in own]
    assert {"metrics.jsonl", "manifest.json", "trainer_state.json"} <= {path.name for path in files}
    assert any(path.suffix == ".png" for path in files)
    found = []
    for path in files:
        content = path.read_bytes()
        if path.name == "trainer_state.json":
            content = json.dumps({k: v for k, v in json.loads(content).items() if k != "config"}).encode()
        found += guilty(world, path, content)
    assert not found


def test_the_paths_in_a_runs_config_are_those_that_were_given(world):
    """As given: relative paths stay relative, and nothing is added to them."""
    state = json.loads(next(world.model("text").rglob("trainer_state.json")).read_text())
    assert state["config"]["data"]["path"] == str(world.pictures)
    assert state["config"]["run"] == str(world.model("text"))


def test_pictures_say_how_they_were_drawn_and_no_more(world, tmp_path):
    model = world.model("text")
    assert through("sample", model, "red square", "--steps", "2", "--out", tmp_path / "out").status == 0
    (path,) = [path for path in (tmp_path / "out").rglob("*.png") if path.name[:8].isdigit()]
    said = read_metadata(path)
    assert "red square" in said.values()
    assert not guilty(world, path, path.read_bytes())
    assert not [
        value
        for value in said.values()
        if str(tmp_path) in value or str(world.root) in value or str(world.models) in value
    ]
    with Image.open(path) as image:
        assert not image.getexif()


def test_caches_are_named_by_hashes_and_hold_no_paths(world, tmp_path):
    world.model("text")
    greys(tmp_path / "secret-place" / "0.tar", 0, 3)
    load(WebDatasetConfig(path=tmp_path / "secret-place", resolution=8))
    cache = Path(os.environ["LDM_KIT_CACHE"])
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert {path.parent.relative_to(cache).parts[0] for path in files} >= {"latents", "shards"}
    assert not [line for path in files for line in guilty(world, path, path.read_bytes())]
    assert not [path for path in files if b"secret-place" in path.read_bytes()]


def test_every_file_may_be_read_by_whom_the_umask_allows(world):
    umask = os.umask(0)
    os.umask(umask)
    files = [*world.model("text").rglob("*"), *Path(os.environ["LDM_KIT_CACHE"]).rglob("*")]
    wrong = [path for path in files if path.is_file() and stat.S_IMODE(path.stat().st_mode) != 0o666 & ~umask]
    assert not wrong
