"""The layout: imports go down, commands start fast, modules say what they are for, functions and files stay short."""

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("ldm_kit", "autoencoder", "conditioning")
SCRIPTS = ("train_ae.py", "train_ldm.py", "sample.py", "edit.py")
SOURCES = sorted(
    [*(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")), *map(ROOT.joinpath, SCRIPTS)]
)
MODULES = [path for path in SOURCES if path.name not in SCRIPTS and (path.name != "__init__.py" or path.stat().st_size)]
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "numpy")

LONGEST_FILE = 260
LONGEST_FUNCTION = 60
MEDIAN_FUNCTION = 6
MOST_POSITIONAL = 5
LAYERS = (
    {"cli", "demo"},
    {"app"},
    {"inference", "convert", "planning"},
    {"editing"},
    {"methods"},
    {"models"},
    {"nets", "solvers", "data", "training", "metrics", "viz"},
    {"diffusion"},
    {"config", "locks", "memory", "packages", "paths", "progress"},
)
"""The rooms of ldm_kit, from the top; `_api` (functions of the public API alone) stands above them."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def lines_of(function: Function) -> int:
    """The lines of a function from `def` on, without its docstring; decorators do not count."""
    first = function.body[0]
    docstring = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    length = function.end_lineno - function.lineno + 1
    return length - (first.end_lineno - first.lineno + 1 if docstring else 0)


def loaded_by(code: str, *arguments: str) -> set[str]:
    """Return the heavy packages that a fresh interpreter has loaded after `code`."""
    report = f"print('LOADED', *(name for name in {HEAVY!r} if name in sys.modules))"
    probe = f"import sys\ntry:\n    {code}\nfinally:\n    {report}"
    done = subprocess.run(
        [sys.executable, "-c", probe, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("LOADED")), None)
    assert line is not None, done.stderr
    return set(line.split()[1:])


def test_imports_go_down():
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contract_has_every_room_in_its_layer():
    """A room that import-linter does not know could import anything."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    named = [set(re.findall(r"ldm_kit\.(\w+)", layer)) for layer in layers]
    assert tuple(named) == LAYERS
    rooms = {
        path.stem for path in (ROOT / "ldm_kit").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__", "__main__", "_api"} == set().union(*LAYERS)


def test_nothing_imports_the_public_api_from_below():
    """`ldm_kit` itself reaches every room, so that an import of it from a room would be a cycle."""
    guilty = [
        name_of(path)
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and node.module == "ldm_kit" and path.name not in SCRIPTS
        for alias in node.names
        if not (ROOT / "ldm_kit" / alias.name).exists() and not (ROOT / "ldm_kit" / f"{alias.name}.py").exists()
    ]
    assert not guilty


def test_importing_the_package_is_light():
    assert loaded_by("import ldm_kit, ldm_kit.cli, ldm_kit.config; dir(ldm_kit)") == set()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_loads_no_heavy_library(script):
    assert loaded_by(f"import runpy; runpy.run_path({script!r}, run_name='__main__')", "--help") == set()


def test_every_public_name_can_be_imported():
    """The lazy table, `__all__` and the imports for type checkers name the same things from the same modules."""
    import ldm_kit

    checked = next(node for node in parsed(ROOT / "ldm_kit" / "__init__.py").body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert typed == ldm_kit._HOMES
    assert sorted(ldm_kit.__all__) == sorted(typed)
    assert all(getattr(ldm_kit, name) is not None for name in ldm_kit.__all__)
    assert set(ldm_kit.__all__) <= set(dir(ldm_kit))


def test_an_unknown_public_name_is_an_attribute_error():
    import ldm_kit

    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        _ = ldm_kit.Pipelin


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_say_what_they_are_for(path):
    docstring = ast.get_docstring(parsed(path))
    assert docstring, f"{path} has no docstring"
    assert docstring.splitlines()[0].endswith((".", "?", "!", ":")), f"{path}: the first line is no sentence"


def test_no_file_is_long():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert not {name: length for name, length in lengths.items() if length > LONGEST_FILE}


def test_no_function_is_long():
    lengths = {f"{name_of(path)}:{f.lineno} {f.name}": lines_of(f) for path in SOURCES for f in functions(parsed(path))}
    assert not {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION}
    assert statistics.median(lengths.values()) <= MEDIAN_FUNCTION


def test_few_parameters_are_positional():
    """`self` and `cls` do not count."""
    many = {
        f"{name_of(path)}:{f.lineno} {f.name}"
        for path in SOURCES
        for f in functions(parsed(path))
        if len([a for a in (*f.args.posonlyargs, *f.args.args) if a.arg not in ("self", "cls")]) > MOST_POSITIONAL
    }
    assert not many


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_runs_code_that_it_reads(path):
    tree = parsed(path)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    keywords = [k for call in calls for k in call.keywords if isinstance(k.value, ast.Constant)]
    assert not names & {"eval", "exec", "compile", "__import__"}
    assert not imported & {"pickle", "dill", "joblib"}
    assert not [k for k in keywords if (k.arg, k.value.value) in (("weights_only", False), ("trust_remote_code", True))]
