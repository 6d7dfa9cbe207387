"""What the README tells a newcomer to type exists and is understood."""

import re
import shlex
from pathlib import Path

import pytest

from ldm_kit.config import read
from ldm_kit.methods import read_run
from ldm_kit.methods.autoencoder import AutoencoderRun

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
TRAIN = [shlex.split(line) for line in COMMANDS if line.startswith("accelerate launch")]


def test_the_two_commands_are_targets_of_the_makefile():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    made = [line.split()[1] for line in COMMANDS if line.startswith("make ")]
    assert {"demo", "test"} <= set(made) <= set(targets)


def test_ci_runs_the_test_command():
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", TRAIN, ids=lambda words: words[2])
def test_training_commands_name_doors_configs_and_keys_that_exist(words):
    script, config, *overrides = words[2:]
    assert (ROOT / script).is_file()
    if script == "train_ae.py":
        read(AutoencoderRun, ROOT / config, overrides)
    else:
        read_run(ROOT / config, overrides)


def test_there_are_training_commands_for_both_stages():
    assert {words[2] for words in TRAIN} == {"train_ae.py", "train_ldm.py"}


def test_pictures_that_the_readme_shows_are_there():
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert shown
    assert all((ROOT / path).is_file() for path in shown)
