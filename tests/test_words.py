"""The field's words: no private word is left in identifiers, in comments and messages, or in the pages.

A word is private if a search for it together with "diffusion" finds nothing; docs/migration.md has what replaced each.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ("train_ae.py", "train_ldm.py", "sample.py", "edit.py")
SOURCES = sorted(
    [
        *(path for package in ("ldm_kit", "autoencoder", "conditioning") for path in (ROOT / package).rglob("*.py")),
        *(ROOT / script for script in SCRIPTS),
    ]
)
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MODULES = words("""
    agree bound chain choose counterparts criterion drafts drawing frozen judge keeper kinds launcher listing nll
    noising packed parts place randomness reports rows say seam settings states steering studios times toy trunks wish
""")
"""Names of modules; most of them are good names for other things."""

IDENTIFIERS = words("""
    Done Drawn Journey Keeper Lesson Link Manner Order Place Ranks Redrawing Seen Settling Share Space Told Towards
    Turn Wish

    averaged criterion door doors drafts drive drive_foreign gap_coefficient gap_error gap_weight hushed keeper
    manipulated manner open_stage open_studio picture_noise player players restated seam serve settle settled solve
    spaced spared steered stranger strangers studio suit sweep tidy told towards trunk trunks unbroken wish wished worse
""")
"""Names of classes; of functions, methods, parameters and attributes."""

PREFIXES = ("refuse", "_refuse")
"""A function that checks a value is called check_*."""

LOCALS = words("about found how kept known ours part place said theirs told wanted")
"""Names that say nothing about what they hold: state_dict, latents, scores, config, message say it."""

PROSE = (
    r"arrows?",
    r"doors?",
    r"(?:our|this|the) (?:second )?house|house plan",
    r"hush(?:ed|es)?",
    r"journeys?",
    r"likest|liker",
    r"newcomers?",
    r"players?",
    r"redrawings?",
    r"seams?",
    r"strangers?",
    r"studios?",
    r"told",
    r"trunks?",
    r"wish(?:es|ed)?",
    r"workrooms?",
    r"worse models?",
)
PROSE_PATTERN = re.compile(rf"\b(?:{'|'.join(PROSE)})\b", re.IGNORECASE)


class Occurrence(NamedTuple):
    """Where a word stands."""

    path: str
    line: int
    word: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.word}"


def listed(occurrences: list[Occurrence]) -> str:
    return "\n" + "\n".join(sorted(map(str, occurrences)))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[ast.arg]:
    arguments = node.args
    extra = [arg for arg in (arguments.vararg, arguments.kwarg) if arg is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *extra]


def aliases(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Return the names under which a module imports others, where they are not their own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname, node.lineno) for alias in node.names if alias.asname is not None)


def defined(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Return the names that a module defines: classes, functions, parameters, attributes, names of a class's body."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef():
                yield node.name, node.lineno
                for inner in node.body:
                    if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                        yield inner.target.id, inner.lineno
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name, node.lineno
                yield from ((arg.arg, arg.lineno) for arg in parameters(node))
            case ast.Attribute(ctx=ast.Store()):
                yield node.attr, node.lineno


def assigned(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Return the variables and parameters of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from ((arg.arg, arg.lineno) for arg in parameters(node))


def spoken(path: Path) -> Iterator[tuple[str, int]]:
    """Return the comments and texts of a module, line by line: docstrings, messages, descriptions, help."""
    source = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string, token.start[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from ((text, node.lineno + k) for k, text in enumerate(node.value.splitlines()))


def test_modules_have_the_fields_words():
    bad = [Occurrence(name_of(path), 1, path.stem) for path in SOURCES if path.stem in MODULES]
    bad += [
        Occurrence(name_of(path), line, name)
        for path in SOURCES
        for name, line in aliases(ast.parse(path.read_text(encoding="utf-8")))
        if name in MODULES
    ]
    assert not bad, listed(bad)


def test_identifiers_are_the_fields_words():
    bad = [
        Occurrence(name_of(path), line, name)
        for path in SOURCES
        for name, line in defined(ast.parse(path.read_text(encoding="utf-8")))
        if name in IDENTIFIERS or name.startswith(PREFIXES)
    ]
    assert not bad, listed(bad)


def test_variables_say_what_they_hold():
    bad = [
        Occurrence(name_of(path), line, name)
        for path in SOURCES
        for name, line in assigned(ast.parse(path.read_text(encoding="utf-8")))
        if name in LOCALS
    ]
    assert not bad, listed(bad)


def test_comments_and_messages_have_no_private_word():
    bad = [
        Occurrence(name_of(path), line, word)
        for path in SOURCES
        for text, line in spoken(path)
        for word in PROSE_PATTERN.findall(text)
    ]
    assert not bad, listed(bad)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "migration.md"], ids=name_of)
def test_pages_have_no_private_word(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    bad = [
        Occurrence(name_of(page), n, word) for n, text in enumerate(lines, 1) for word in PROSE_PATTERN.findall(text)
    ]
    assert not bad, listed(bad)
