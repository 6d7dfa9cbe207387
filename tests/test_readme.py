"""What the README tells a new user to type exists and works; tests/test_docs.py checks every page alike."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def test_the_two_commands_are_targets_of_the_makefile():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    made = [line.split()[1] for line in COMMANDS if line.startswith("make ")]
    assert {"demo", "test"} <= set(made) <= set(targets)


def test_ci_runs_the_test_command():
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_it_opens_with_a_program_of_ten_lines():
    """Blank lines aside; tests/test_docs.py runs it."""
    language, code = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)[0]
    lines = [line for line in code.splitlines() if line.strip()]
    assert language == "python"
    assert len(lines) <= 10
    assert {"train(", "from_tensor(", "generate("} <= set(re.findall(r"\w+\(", code))


def test_there_are_training_commands_for_both_stages():
    scripts = {line.split()[2] for line in COMMANDS if line.startswith("accelerate launch")}
    assert scripts == {"train_ae.py", "train_ldm.py"}


def test_pictures_that_the_readme_shows_are_there():
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert shown
    assert all((ROOT / path).is_file() for path in shown)
