"""`ldm-kit app`: its errors are sentences, and it needs the extra."""

import sys

import pytest
from typer.testing import CliRunner

from ldm_kit.cli import app


def outcome(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["app", *map(str, arguments)])
    return done.exit_code, done.stderr


def test_a_missing_extra_is_named(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    expected = "error: the page of ldm-kit app needs the package gradio; pip install 'ldm_kit[app]'\n"
    assert outcome(models["text"]) == (2, expected)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere",), "nowhere is no saved model"),
        (("nowhere", "--port", "70000"), "--port is 70000; expected 0 to 65535"),
        (("nowhere", "--precision", "fp8"), "--precision is 'fp8'; expected no, bf16, fp16 or auto"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence):
    status, err = outcome(*arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert sentence in err
    assert err.count("\n") == 1
