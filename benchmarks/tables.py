"""Markdown tables, and the function with which benchmarks write measured sections into the pages of docs/."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm_kit.config import UserError

DOCS = Path("docs")
Columns = Mapping[str, tuple[str, str]]  # field of a row -> title and format specification, such as ".2f"
Row = dict[str, Any]
_RULES = {"left": "---", "right": "---:"}


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """Return a Markdown table of cells.

    Args:
        head: the columns' titles.
        rows: rows of cells; a cell is shown by `str`.
        align: "left" or "right" for each column, separated by spaces; "": no alignment is said.
    """
    rules = [_RULES[word] for word in align.split()] or ["---"] * len(head)
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (head, rules, *rows))


def format_rows(columns: Columns, rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a Markdown table of `rows`, which are mappings from field to value.

    `columns` maps each field to show to its column's title and format specification, such as ".2f".
    """
    head = [title for title, _ in columns.values()]
    return markdown(head, [[format(row[name], form) for name, (_, form) in columns.items()] for row in rows])


def page_of(name: str) -> Path:
    """Return the path of the page `name` (such as editing.md) in docs/results, or else in docs.

    Raises:
        UserError: there is no such page, because a benchmark is run outside of the repository.
    """
    pages = [DOCS / "results" / name, DOCS / name]
    for page in pages:
        if page.is_file():
            return page
    raise UserError(f"no page {' or '.join(map(str, pages))} to write to; run from the repository, or with --no_page")


def write_section(page: Path, name: str, text: str) -> None:
    """Write `text` into a page between `<!-- name -->` and `<!-- /name -->`, replacing what was there.

    If the page has no such section, the section is appended.
    """
    whole = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    exists = pattern.search(whole) is not None
    whole = pattern.sub(lambda _: section, whole) if exists else f"{whole.rstrip()}\n\n{section}\n"
    page.write_text(whole, encoding="utf-8")


def chosen(names: Sequence[str] | None, tables: Iterable[str]) -> list[str]:
    """Return the names of the tables to make: `names`, or all of `tables` if `names` is None or empty.

    Raises:
        UserError: one of `names` is not in `tables`.
    """
    tables = list(tables)
    if unknown := [name for name in names or () if name not in tables]:
        raise UserError(f"unknown table {unknown[0]!r}; expected {', '.join(tables)}")
    return list(names or tables)
