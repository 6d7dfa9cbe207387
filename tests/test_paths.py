"""Output paths are checked before the work whose results go there: before a model is opened or a picture encoded."""

import errno
import re
from pathlib import Path

import pytest
import typer.testing

from ldm_kit.cli import app
from ldm_kit.config import UserError
from ldm_kit.paths import check_writable, check_writable_file
from tests.world import World, through

IMAGE = "--image {tmp}/a.png"
COMMANDS = [
    "sample nowhere cat --out {file}/out",
    f"edit change --model nowhere {IMAGE} --attribute red --out {{file}}/out",
    f"edit interpolate --model nowhere {IMAGE} {IMAGE} --out {{file}}/out",
    f"edit interpolate --model nowhere {IMAGE} {IMAGE} --morph {{file}}/x.gif",
    "edit mix --model nowhere --content {tmp}/a.png --details {tmp}/a.png --out {file}/out",
    "edit decode --model nowhere --codes {tmp}/x.safetensors --out {file}/out",
    "edit sample --model nowhere --out {file}/out",
    f"edit reprompt --model nowhere {IMAGE} --source a --prompt b --out {{file}}/out",
    f"edit img2img --model nowhere {IMAGE} --out {{file}}/out",
    f"edit inpaint --model nowhere {IMAGE} --mask {{tmp}}/a.png --out {{file}}/out",
    f"edit blend --model nowhere {IMAGE} {IMAGE} --out {{file}}/out",
    f"edit textdiff --model nowhere {IMAGE} --source a --target b --out {{file}}/out",
    "edit encode --model nowhere --images {tmp} --out {file}/x.safetensors",
    f"edit neighbours --model nowhere {IMAGE} --among {{tmp}} --out {{file}}/out",
    "edit learn --model {file} --positive {tmp} --name x",
]
CONSOLE = [
    "convert guided-diffusion nowhere.pt {file}/out --kind unet --image_size 64",
    "convert diffae nowhere.ckpt {file}/out",
    "convert pdae nowhere.pt {file}/out",
    "export {run}/checkpoint-00000008 --out {file}/out",
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_text("kept")
    return path


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_says_at_once_where_it_cannot_write(file, tmp_path, words):
    script, *arguments = words.format(file=file, tmp=tmp_path).split()
    found = through(script, *arguments)
    assert found.status == 2
    assert re.search(rf"cannot write to {file}.*: {file} is no folder; name another one", found.errors[0])
    assert file.read_text() == "kept"


@pytest.mark.parametrize("words", CONSOLE)
def test_the_console_script_too(world: World, file, words):
    run = world.model("text") if "{run}" in words else None
    found = typer.testing.CliRunner().invoke(app, words.format(file=file, run=run).split())
    assert found.exit_code == 2
    assert f"{file} is no folder; name another one" in found.output


def test_training_asks_before_it_encodes(world: World, file, monkeypatch):
    monkeypatch.setattr("ldm_kit.methods.inputs.encode", lambda *_: pytest.fail("a picture was encoded"))
    tree = world.ldm("plain", "never") | {"latents": str(file / "latents")}
    assert "is no folder; name another one" in through("train_ldm", world.write(tree, "never.yaml")).errors[0]
    tree = world.ldm("class", "never") | {"sample": {"prompts": ["purple"]}, "latents": str(file / "latents")}
    assert "sample.prompts: " in through("train_ldm", world.write(tree, "never.yaml")).errors[0]


def test_what_is_not_there_yet_is_judged_by_its_nearest_parent(tmp_path, monkeypatch):
    check_writable(tmp_path / "a" / "b")
    check_writable_file(tmp_path / "a" / "b.gif")
    with pytest.raises(UserError, match="it is a folder; name a file"):
        check_writable_file(tmp_path)
    assert list(tmp_path.iterdir()) == []

    def read_only(dir: Path) -> None:
        assert dir == tmp_path
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    with pytest.raises(UserError, match=r"cannot write to .*b: Read-only file system; name another folder"):
        check_writable(tmp_path / "a" / "b")
