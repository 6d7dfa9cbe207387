"""The house: arrows only go down, doors open fast, every module says what it is for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    path
    for room in ("ldm_kit", "autoencoder", "conditioning")
    for path in (ROOT / room).rglob("*.py")
    if path.name != "__init__.py" or path.stat().st_size
)
DOORS = ("train_ae.py", "train_ldm.py", "sample.py", "edit.py")
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "numpy")


def loaded_by(code: str, *arguments: str) -> set[str]:
    """Heavy packages that a fresh interpreter has loaded after `code`."""
    probe = f"import sys\ntry:\n    {code}\nfinally:\n    print('LOADED', *({HEAVY!r} & sys.modules.keys()))"
    probe = probe.replace(f"{HEAVY!r} &", f"set({HEAVY!r}) &")
    found = subprocess.run(
        [sys.executable, "-c", probe, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    line = next((line for line in found.stdout.splitlines() if line.startswith("LOADED")), None)
    assert line is not None, found.stderr
    return set(line.split()[1:])


def test_imports_only_go_down():
    lint = Path(sys.executable).parent / "lint-imports"
    found = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_workroom_stands_in_the_layers():
    contracts = (ROOT / "pyproject.toml").read_text()
    rooms = {p.stem for p in (ROOT / "ldm_kit").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    missing = {room for room in rooms - {"__init__"} if f"ldm_kit.{room}" not in contracts}
    assert not missing


def test_importing_the_package_is_light():
    assert loaded_by("import ldm_kit, ldm_kit.cli, ldm_kit.config") == set()


@pytest.mark.parametrize("door", DOORS)
def test_help_waits_for_no_library(door):
    assert loaded_by(f"import runpy; runpy.run_path({door!r}, run_name='__main__')", "--help") == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_say_what_they_are_for(path):
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert said, f"{path} has no docstring"
    assert said.splitlines()[0].endswith((".", "?", "!")), f"{path}: the first line is no sentence"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_runs_code_that_it_reads(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    keywords = [k for call in calls for k in call.keywords if isinstance(k.value, ast.Constant)]
    assert not names & {"eval", "exec", "compile", "__import__"}
    assert not imported & {"pickle", "dill", "joblib"}
    assert not [k for k in keywords if (k.arg, k.value.value) in (("weights_only", False), ("trust_remote_code", True))]
