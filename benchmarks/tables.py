"""Tables in Markdown, and the one writer of measured sections into the pages of docs/."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm_kit.config import UserError

DOCS = Path("docs")
Columns = Mapping[str, tuple[str, str]]  # field of a row -> title, format
Row = dict[str, Any]
_RULES = {"left": "---", "right": "---:"}


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """Return a Markdown table; `align` holds "left" or "right" for each column."""
    rules = [_RULES[word] for word in align.split()] or ["---"] * len(head)
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (head, rules, *rows))


def format_rows(columns: Columns, rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a Markdown table of rows whose fields are shown by their formats."""
    head = [title for title, _ in columns.values()]
    return markdown(head, [[format(row[name], form) for name, (_, form) in columns.items()] for row in rows])


def page_of(name: str) -> Path:
    """Return the page of a name, among docs/results or else in docs.

    Raises:
        UserError: there is none, as where a benchmark is run outside of the repository.
    """
    pages = [DOCS / "results" / name, DOCS / name]
    for page in pages:
        if page.is_file():
            return page
    raise UserError(f"no page {' or '.join(map(str, pages))} to write to; run from the repository, or with --no_page")


def write_section(page: Path, name: str, text: str) -> None:
    """Replace a section of a page between `<!-- name -->` and `<!-- /name -->`; append it where there is none."""
    whole = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    exists = pattern.search(whole) is not None
    whole = pattern.sub(lambda _: section, whole) if exists else f"{whole.rstrip()}\n\n{section}\n"
    page.write_text(whole, encoding="utf-8")


def chosen(names: Sequence[str] | None, tables: Iterable[str]) -> list[str]:
    """Return the names that were asked for, all if none were.

    Raises:
        UserError: a name that is not known.
    """
    tables = list(tables)
    if unknown := [name for name in names or () if name not in tables]:
        raise UserError(f"unknown table {unknown[0]!r}; expected {', '.join(tables)}")
    return list(names or tables)
