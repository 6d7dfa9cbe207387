"""Command lines: a mistake is one sentence, a real fault keeps its trace, and a config class is a set of flags."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch
import typer
from pydantic import AliasChoices, Field, field_validator, model_validator
from typer.testing import CliRunner

from autoencoder.base import AutoencoderError
from conditioning.base import ConditioningError
from ldm_kit.cli import app, built_in, cli_errors, main, programs, run_cli
from ldm_kit.cli.commands import doctor
from ldm_kit.config import Config, UserError, check
from ldm_kit.training import kernels


def left_by(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Exit status and stderr of a script within which something is raised."""

    def main() -> None:
        with cli_errors():
            raise error

    with pytest.raises(SystemExit) as stopped:
        run_cli(main, [])
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize("kind", [UserError, AutoencoderError, ConditioningError])
def test_a_mistake_is_one_sentence(capsys, kind):
    assert left_by(kind("this is wrong; expected that"), capsys) == (2, "error: this is wrong; expected that\n")


def test_the_system_refuses(capsys, tmp_path):
    for error, said in (
        (FileExistsError(17, "File exists", str(tmp_path)), "file exists"),
        (PermissionError(13, "Permission denied", str(tmp_path)), "permission denied"),
        (OSError(28, "No space left on device", str(tmp_path)), "no space left on device"),
    ):
        assert left_by(error, capsys) == (2, f"error: {tmp_path}: {said}\n")


def test_out_of_memory_names_the_ways_out(capsys):
    status, said = left_by(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), capsys)
    assert status == 2
    for way in ("train.micro_batch", "--batch_size", "bf16", "smaller resolution", "smaller network"):
        assert way in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("bug"), RuntimeError("bug"), KeyError("bug"), OSError("bug")])
def test_real_faults_keep_their_trace(error):
    with pytest.raises(type(error), match="bug"), cli_errors():
        raise error


def test_an_interrupt_is_no_mistake(capsys):
    assert left_by(KeyboardInterrupt(), capsys) == (130, "")


def test_doctor_names_what_results_depend_on(capsys):
    doctor(seconds=0.1)
    said = capsys.readouterr().out
    assert all(name in said for name in ("python", "torch", "diffusers", "device", "threads"))
    assert all(name in said for name in ("GFLOP/s", "bf16", "channels-last", "matrix product"))
    assert said.rstrip().splitlines()[-1].count("the defaults, ") == 1


def test_doctor_ends_with_a_status_where_a_kernel_is_wrong(monkeypatch):
    monkeypatch.setattr(kernels, "TOLERANCES", {"float32": 0.0, "bf16": 0.0})
    status, said = run_app("doctor", "--seconds", "0.1")
    assert status == 1
    assert "WRONG" in said
    status, said = run_app("doctor", "--device", "nowhere")
    assert status == 2
    assert "nowhere" in said


def test_flags_are_read_in_sentences_too(capsys):
    def main(number: int, where: Path = Path()) -> None:
        """Nothing."""
        typer.echo(number)

    for arguments in (["x"], [], ["1", "--nowhere"]):
        with pytest.raises(SystemExit) as stopped:
            run_cli(main, arguments)
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
    with pytest.raises(SystemExit) as stopped:
        run_cli(main, ["3"])
    assert not stopped.value.code
    assert capsys.readouterr().out == "3\n"


class Options(Config):
    """A field of every type that a flag can have."""

    steps: int = Field(20, ge=1, description="sampling steps")
    scale: float = Field(3.0, ge=0, description="classifier-free; 1 is none")
    share: float = Field(0.0, ge=0, le=1)
    over: float | None = Field(None, gt=0, description="a size")
    interval: tuple[float, float] = (0.0, 1.0)
    names: tuple[str, ...] = Field((), json_schema_extra={"positional": True})
    images: tuple[Path, ...] = Field((), description="pictures")
    kind: Literal["one", "two"] = "one"
    number: Literal[1, 2] | None = None
    save_all: bool = True
    morph: Path | None = None
    guide_model: Path | None = Field(None, validation_alias=AliasChoices("guide_model", "worse"), description="a guide")
    loud: bool = Field(False, validation_alias=AliasChoices("loud", "noisy"))
    prompt: str | None = Field(None, json_schema_extra={"flags": ["--class"]})

    @field_validator("interval")
    @classmethod
    def _rising(cls, interval: tuple[float, float]) -> tuple[float, float]:
        if interval[0] >= interval[1]:
            raise ValueError("expected LOW < HIGH")
        return interval

    @model_validator(mode="after")
    def _agree(self) -> "Options":
        if self.kind == "two" and self.steps == 1:
            raise ValueError("--kind two needs more --steps")
        return self


class Needed(Config):
    """Fields without a default."""

    folder: Path = Field(description="a model")
    new: int = Field(validation_alias=AliasChoices("new", "old"), description="a number")


def options_of(*arguments: object) -> Options:
    """What a command gets that takes `Options`, on this command line."""
    got: list[Options] = []

    def main(options: Options, other: int = 7) -> None:
        got.append(options)
        assert other == 7

    with pytest.raises(SystemExit) as stopped:
        run_cli(main, [str(argument) for argument in arguments])
    assert not stopped.value.code
    return got[0]


def test_fields_are_flags_of_their_types_and_defaults():
    assert options_of() == Options()
    assert options_of().model_fields_set == set()
    assert options_of("--scale", 3).model_fields_set == {"scale"}
    several = (
        "a",
        "b",
        "--steps",
        3,
        "--scale",
        2,
        "--over",
        0.5,
        "--interval",
        0.25,
        1,
        "--images",
        "x",
        "--images",
        "y",
    )
    more = ("--kind", "two", "--number", 2, "--no_save_all", "--morph", "m.gif", "--guide_model", "g", "--class", "red")
    assert options_of(*several, *more) == Options(
        names=("a", "b"),
        steps=3,
        scale=2.0,
        over=0.5,
        interval=(0.25, 1.0),
        images=(Path("x"), Path("y")),
        kind="two",
        number=2,
        save_all=False,
        morph=Path("m.gif"),
        guide_model=Path("g"),
        prompt="red",
    )
    assert options_of("--save_all", "--loud") == Options(loud=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "--steps is 0; expected 1 or more (sampling steps)"),
        (["--scale", "-1"], "--scale is -1.0; expected 0 or more (classifier-free; 1 is none)"),
        (["--scale", "nan"], "--scale is nan; expected 0 or more (classifier-free; 1 is none)"),
        (["--share", "1.5"], "--share is 1.5; expected 0 to 1"),
        (["--over", "0"], "--over is 0.0; expected over 0 (a size)"),
        (["--kind", "three"], "--kind is 'three'; expected one or two"),
        (["--number", "3"], "--number is 3; expected 1 or 2"),
        (["--interval", "0.5", "0.25"], "--interval is 0.5 0.25; expected LOW < HIGH"),
        (["--interval", "nan", "1"], "--interval is nan 1; expected a finite number"),
        (["--kind", "two", "--steps", "1"], "--kind two needs more --steps"),
        (
            ["--steps", "0", "--share", "2"],
            "--steps is 0; expected 1 or more (sampling steps); --share is 2.0; expected 0 to 1",
        ),
        (
            ["--steps", "few"],
            "invalid value for '--steps': Input should be a valid integer, unable to parse string as an integer; "
            "see --help",
        ),
        (["--zzz", "1"], "no such option: --zzz; see --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_refused_value_is_one_sentence_that_names_the_flag(capsys, arguments, sentence):
    def main(options: Options) -> None:
        pytest.fail("the command ran")

    with pytest.raises(SystemExit) as stopped:
        run_cli(main, arguments)
    assert (stopped.value.code, capsys.readouterr().err) == (2, f"error: {sentence}\n")


def test_an_old_flag_is_read_with_a_warning(capsys):
    warning = "warning: --worse is now called --guide_model; the old name is read for one more release\n"
    assert options_of("--worse", "old") == Options(guide_model=Path("old"))
    assert capsys.readouterr().err == warning
    assert options_of("--noisy") == Options(loud=True)
    assert "--noisy is now called --loud" in capsys.readouterr().err
    assert options_of("--worse", "old", "--guide_model", "new").guide_model == Path("new")
    assert capsys.readouterr().err == warning


def test_fields_without_a_default_must_be_given(capsys):
    def main(needed: Needed) -> None:
        typer.echo(f"{needed.folder} {needed.new}")

    for arguments, status, sentence in (
        (["--new", "1"], 2, "error: missing option '--folder'; see --help\n"),
        (["--folder", "x"], 2, "error: missing option --new; a number\n"),
        (["--folder", "x", "--old", "3"], 0, "warning: --old is now called --new; the old name is read for one more"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run_cli(main, arguments)
        assert (stopped.value.code or 0) == status
        assert capsys.readouterr().err.startswith(sentence)


def test_help_tells_flags_ranges_and_defaults_but_no_old_names(capsys, monkeypatch):
    def main(model: Annotated[Path, typer.Argument(help="a folder")], options: Options) -> None:
        """Try everything."""

    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        run_cli(main, ["--help"])
    assert not stopped.value.code
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "Try everything.",
        "--steps",
        "sampling steps (1 or more)",
        "[default: 20]",
        "--no_save_all",
        "one|two",
    ):
        assert words in text
    assert "--guide_model" in text
    assert "worse" not in text


def test_flags_belong_to_their_subcommand():
    got: list[object] = []

    def first(options: Options) -> None:
        got.append(options.steps)

    def second(needed: Needed, times: int = 2) -> None:
        got.append((needed.new, times))

    for arguments in (["--steps", "4"], ["second", "--folder", "x", "--new", "5", "--times", "3"]):
        with pytest.raises(SystemExit):
            run_cli([first, second], arguments)
    assert got == [4, (5, 3)]


def test_options_that_a_command_builds_are_refused_in_a_sentence(capsys):
    def main() -> None:
        with cli_errors():
            Options(steps=-1, kind="three")  # pyright: ignore[reportArgumentType]

    with pytest.raises(SystemExit) as stopped:
        run_cli(main, [])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: --steps is -1; expected greater than or equal to 1; --kind is three; expected 'one' or 'two'\n"
    )


def test_an_old_config_key_is_one_warning_line(capsys):
    def main() -> None:
        with cli_errors():
            check(Options, {"worse": "x"}, "x.yaml")

    with pytest.raises(SystemExit) as stopped:
        run_cli(main, [])
    sentence = "warning: x.yaml: rename worse to guide_model; old names are read for one more release\n"
    assert (stopped.value.code or 0, capsys.readouterr().err) == (0, sentence)


def test_other_warnings_stay_as_they_are():
    with pytest.warns(FutureWarning, match="something else"), cli_errors():
        warnings.warn("something else", FutureWarning, 2)


def test_a_wrong_config_is_refused_before_torch_is_imported(tmp_path):
    """Which takes from three seconds to a minute: no such file, broken YAML, no mapping, a malformed override."""
    (tmp_path / "broken.yaml").write_text("a: [1")
    (tmp_path / "list.yaml").write_text("[1]")
    (tmp_path / "good.yaml").write_text("run: x")
    words = (["nosuch.yaml"], ["broken.yaml"], ["list.yaml"], ["good.yaml", "optim.lr"], ["good.yaml", "run.x=1"])
    code = f"""
import runpy, sys
for script in ("train_ldm.py", "train_ae.py"):
    for words in {words}:
        sys.argv = [script, {str(tmp_path)!r} + "/" + words[0], *words[1:]]
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stopped:
            assert stopped.code == 2
print(*{{"torch", "numpy", "diffusers"}} & sys.modules.keys())
"""
    root = Path(__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
    sentences = (
        "cannot read the config",
        "not valid YAML",
        "holds a list",
        "the override 'optim.lr'",
        "'run' is a value",
    )
    for line, sentence in zip(found.stderr.splitlines(), sentences * 2, strict=True):
        assert line.startswith("error: ")
        assert sentence in line


def test_the_command_line_itself_loads_no_library():
    code = "import sys, ldm_kit.cli; print(*{'torch', 'numpy', 'diffusers'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def run_app(*arguments: str) -> tuple[int, str]:
    """Exit status and output of `ldm-kit`."""
    done = CliRunner().invoke(app, [*arguments])
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sample"], "error: missing argument 'model'; see --help\n"),
        (["nosuch"], "error: no such command 'nosuch'; see --help\n"),
        (["train-ldm", "--nope"], "error: no such option: --nope; see --help\n"),
        (["edit", "inpaint", "--mask"], "error: option '--mask' requires an argument; see --help\n"),
        (["convert", "nosuch"], "error: no such command 'nosuch'; see --help\n"),
    ],
)
def test_a_mistake_on_the_command_line_of_ldm_kit_is_one_sentence(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ldm-kit", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert (stopped.value.code, capsys.readouterr().err) == (2, sentence)


def test_ldm_kit_has_the_programs_of_the_scripts():
    """Which are the same functions, so that both take the same flags."""
    for script in ("train_ae", "train_ldm", "sample"):
        assert getattr(programs, script) is __import__(script).main
    assert programs.EDIT is __import__("edit").main
    status, said = run_app("edit", "inpaint", "--help")
    assert status == 0
    assert "--mask" in said


def test_configs_are_read_by_name_unless_a_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pixels/tiny", "configs/pixels/tiny.yaml"):
        assert built_in.locate(Path(name)) == built_in.folder() / "pixels/tiny.yaml"
    assert built_in.locate(Path("pixels/other")) == Path("pixels/other")
    (tmp_path / "pixels").mkdir()
    (tmp_path / "pixels/tiny").write_text("run: mine")
    assert built_in.locate(Path("pixels/tiny")) == Path("pixels/tiny")


def test_a_config_is_copied_to_a_new_file_alone(tmp_path):
    file = tmp_path / "mine.yaml"
    assert run_app("configs", "pixels/tiny", "--out", str(file))[0] == 0
    assert run_app("configs", "pixels/tiny")[1] == file.read_text()
    file.write_text("mine")
    status, said = run_app("configs", "pixels/tiny", "--out", str(file))
    assert (status, file.read_text()) == (2, "mine")
    assert "exists already" in said
    for arguments, expected in (
        (["../pyproject.toml"], "expected one that `ldm-kit configs` lists"),
        (["pixels/tin"], "expected pixels/tiny"),
        (["--out", str(tmp_path / "new.yaml")], "needs the name of the config"),
    ):
        status, said = run_app("configs", *arguments)
        assert status == 2
        assert expected in " ".join(said.split())
    assert not (tmp_path / "new.yaml").exists()
