"""The README and docs/: snippets run, links and files exist, commands and flags are those of the scripts."""

import inspect
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import NamedTuple

import pytest
from pydantic import BaseModel

import ldm_kit
from tests.processes import script

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
GUIDES = [page for page in PAGES if "results" not in page.parts]
SCRIPTS = ("train_ae.py", "train_ldm.py", "sample.py", "edit.py")
NOT_RUN = re.compile(r"<!-- not run: \S.*-->")
"""The line above a Python fence that a test cannot run; it gives the reason."""


class Fence(NamedTuple):
    """A fenced block of a page: what is written behind the backticks, its code, its line, the line above it."""

    info: str
    code: str
    line: int
    above: str

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]

    @property
    def file(self) -> str | None:
        """The file that the block shows, `title="my_kit/methods.py"`."""
        title = re.search(r'title="([^"]+)"', self.info)
        return None if title is None else title.group(1)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def fences(page: Path) -> Iterator[Fence]:
    """The fenced blocks of a page; an unclosed one fails."""
    lines = page.read_text(encoding="utf-8").splitlines()
    opened: tuple[str, int] | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = (line.removeprefix("```").strip(), number)
        else:
            info, start = opened
            above = next((text for text in reversed(lines[:start]) if text.strip()), "")
            yield Fence(info, "\n".join(lines[start + 1 : number]), start + 1, above)
            opened = None
    assert opened is None, f"{page}:{opened and opened[1] + 1}: the fence is never closed"


def runnable(page: Path) -> list[Fence]:
    """The Python fences of a page that run, in order; files that it shows are not among them."""
    python = [fence for fence in fences(page) if fence.language == "python" and fence.file is None]
    return [fence for fence in python if not NOT_RUN.fullmatch(fence.above)]


def program(page: Path) -> str:
    """The runnable fences of a page as one program whose line numbers are the page's."""
    lines: list[str] = []
    for fence in runnable(page):
        lines += [""] * (fence.line - len(lines)) + fence.code.splitlines()
    return "\n".join(lines) + "\n"


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


IN_PROCESS = [page for page in GUIDES if runnable(page) and not any(fence.file for fence in fences(page))]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
@pytest.mark.parametrize("page", IN_PROCESS, ids=name_of)
def test_snippets_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ldm_kit, "train", partial(ldm_kit.train, overrides=["train.steps=4"]))  # how well is not asked
    exec(compile(program(page), str(page), "exec"), {"__name__": "snippet"})


def test_a_package_written_as_extending_md_shows_trains_and_samples(tmp_path):
    """Its files and entry points are laid out as pip would; then the page's own program runs beside them."""
    page = ROOT / "docs" / "extending.md"
    shown = [fence for fence in fences(page) if fence.file is not None]
    for fence in shown:
        target = tmp_path / "site" / str(fence.file)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(fence.code + "\n", encoding="utf-8")
    points = tomllib.loads(next(f.code for f in shown if f.file == "pyproject.toml"))["project"]["entry-points"]
    info = tmp_path / "site" / "my_kit-0.1.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: my_kit\nVersion: 0.1\n")
    lines = [
        line for group, rows in points.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in rows.items()))
    ]
    info.joinpath("entry_points.txt").write_text("\n".join(lines) + "\n")
    program_file = tmp_path / "program.py"
    program_file.write_text(program(page), encoding="utf-8")
    environment = {"PYTHONPATH": str(tmp_path / "site"), "LDM_KIT_CACHE": str(tmp_path / "cache")}
    result = script(program_file, cwd=tmp_path, **environment)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_guides_have_snippets_that_run():
    shown = {page.name for page in GUIDES if runnable(page)}
    assert shown >= {
        "README.md", "quickstart.md", "extending.md", "schedule.md", "prediction.md", "guidance.md", "sampling.md"
    }  # fmt: skip


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        linked = page if not path else (page.parent / path)
        if not linked.exists():
            broken.append(target)
        elif anchor and anchor not in {
            slug(heading) for heading in re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
        }:
            broken.append(f"{target} (no such heading)")
    assert not broken


FILE = re.compile(
    r"(?<![\w/.])(?:ldm_kit|autoencoder|conditioning|configs|docs|tests|benchmarks)/[\w./-]*\.(?:py|yaml|md|png)\b"
)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "migration.md"], ids=name_of)
def test_files_that_a_page_names_exist(page):
    named = set(FILE.findall(page.read_text(encoding="utf-8")))
    shown = {fence.file for fence in fences(page)}
    assert not {name for name in named if not (ROOT / name).is_file() and name not in shown}


def test_every_page_can_be_reached_from_the_readme():
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        reached.add(page)
        links = [page.parent / t.partition("#")[0] for t in re.findall(r"\]\(([^)\s:]+)\)", prose(page))]
        todo += [link.resolve() for link in links if link.suffix == ".md" and link.resolve() not in reached]
    assert not {name_of(page) for page in PAGES} - {name_of(page) for page in reached}


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command in a page's shell blocks; a line that ends in a backslash goes on."""
    for fence in fences(page):
        if fence.language not in ("sh", "bash"):
            continue
        for line in fence.code.replace("\\\n", " ").splitlines():
            try:
                yield shlex.split(line, comments=True)
            except ValueError:
                yield []  # half of a quoted text, in a script of several lines


def called(words: list[str]) -> tuple[str, ...] | None:
    """What a command calls of ours: (script,), ("edit.py", command) or ("ldm-kit", command); None: nothing."""
    if "ldm-kit" in words[:1]:
        return tuple(words[: 3 if words[1:2] == ["convert"] else 2])
    script = next((word for word in words if word in SCRIPTS), None)
    if script is None:
        return None
    if script != "edit.py":
        return (script,)
    after = words[words.index(script) + 1 :][:1]
    return (script, *after) if after and not after[0].startswith("-") else (script, "change")


CALLS = sorted({(call, name_of(page)) for page in PAGES for words in commands(page) if (call := called(words))})


def help_of(call: tuple[str, ...]) -> str:
    command = ["-c", "from ldm_kit.cli import app; app()"] if call[0] == "ldm-kit" else [call[0]]
    start = [sys.executable, *command]
    environment = {**os.environ, "COLUMNS": "400", "TERMINAL_WIDTH": "400"}
    done = subprocess.run(
        [*start, *call[1:], "--help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("call", sorted({call for call, _ in CALLS}), ids=" ".join)
def test_flags_in_shell_blocks_are_those_of_the_script(call):
    known = set(re.findall(r"--\w[\w-]*", help_of(call)))
    unknown = {
        (name_of(page), word)
        for page in PAGES
        for words in commands(page)
        if called(words) == call
        for word in words[words.index(call[0]) :]
        if re.match(r"--\w", word) and word.partition("=")[0] not in known
    }
    assert not unknown


TRAINING = sorted(
    {
        tuple(words[index:])
        for page in PAGES
        for words in commands(page)
        for index, word in enumerate(words)
        if word in SCRIPTS[:2] and words[index + 1 : index + 2] and words[index + 1].startswith("configs/")
    }
)


@pytest.mark.parametrize("words", TRAINING, ids=lambda words: words[1])
def test_training_commands_name_configs_and_keys_that_exist(words):
    from ldm_kit.methods import read_run

    overrides = [word for word in words[2:] if re.match(r"[\w.]+=", word)]
    read_run(ROOT / words[1], overrides)


def test_api_md_is_what_its_generator_writes():
    path = ROOT / "docs" / "generate_api.py"
    spec = spec_from_file_location("generate_api", path)
    generator = module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.PAGE.read_text(encoding="utf-8") == generator.page(), f"run python {name_of(path)}"


def public() -> list[tuple[str, str]]:
    packages = ("ldm_kit", "autoencoder", "conditioning")
    return [(package, name) for package in packages for name in getattr(import_module(package), "__all__", [])]


@pytest.mark.parametrize(("package", "name"), public(), ids=[".".join(names) for names in public()])
def test_public_names_have_docstrings_that_name_their_arguments(package, name):
    """A class or function says what it is in a sentence, and its docstring (or its fields') names every argument."""
    value = getattr(import_module(package), name)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return
    text = inspect.cleandoc(value.__doc__ or "")
    assert text, f"{name} has no docstring"
    assert text.splitlines()[0].rstrip().endswith((".", ":", "?")), f"{name}: the first line is no sentence"
    if inspect.isclass(value) and issubclass(value, BaseModel):
        fields = value.model_fields.items()  # a section is described by its own class
        bare = [key for key, field in fields if not field.description and not isinstance(field.default, BaseModel)]
        assert not [key for key in bare if key not in text], f"{name}: fields without a description: {bare}"
        return
    if inspect.isclass(value) and getattr(value, "_is_protocol", False):
        return
    documented = text + described_beside(value)
    unnamed = [key for key in arguments(value) if not re.search(rf"\b{re.escape(key)}\b", documented)]
    assert not unnamed, f"{name}: the docstring says nothing about {', '.join(unnamed)}"


def described_beside(value: type | object) -> str:
    """What stands in the docstring of a class's constructor, and in comments beside its own and inherited fields."""
    if not inspect.isclass(value):
        return ""
    ours = [
        kind for kind in value.__mro__ if kind.__module__.split(".")[0] in ("ldm_kit", "autoencoder", "conditioning")
    ]
    fields = [name for kind in ours for name in re.findall(r"^    (\w+): .*#", inspect.getsource(kind), re.MULTILINE)]
    return "\n".join(["", inspect.getdoc(value.__init__) or "", *fields])


def arguments(value: type | object) -> list[str]:
    """The parameters that a docstring must name: where there are two or fewer, a sentence may describe them."""
    if inspect.isclass(value) and (issubclass(value, BaseException) or inspect.isabstract(value)):
        return []
    parameters = inspect.signature(value).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return names if len(names) > 2 else []
