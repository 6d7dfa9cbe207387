"""What all doors share: a mistake is one sentence, a real fault keeps its trace."""

from pathlib import Path

import pytest
import torch
import typer

from autoencoder.base import AutoencoderError
from conditioning.base import ConditioningError
from ldm_kit.cli import cli_errors, doctor, run_cli
from ldm_kit.config import UserError


def left_by(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Exit status and stderr of a door within which something is raised."""

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
    doctor()
    said = capsys.readouterr().out
    assert all(name in said for name in ("python", "torch", "diffusers", "device", "threads"))


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
