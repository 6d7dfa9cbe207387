"""Sections of docs/performance.md, each between its own markers: a measurement replaces its section alone."""

import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path("docs/performance.md")
FIRST = """# Speed

What a step costs here, beside the peers' recipes, and where its time goes. `python -m benchmarks.speed` and
`python -m benchmarks.profile_step` measure and write the sections below; what is between two markers is theirs.
All variants of a table run in one process tree and take turns, each in a process that idles in between; "within a
turn" is the range of the ratios of single turns. Where other programs share the machine's cores, processor time is the
fairer judge, and speeds compare within a table alone. The peers' recipes are told in benchmarks/speed/peers.py.
"""


def put(name: str, text: str, page: Path = PAGE) -> None:
    """Write a section, in the place of the one of the same name or at the end."""
    whole = page.read_text(encoding="utf-8") if page.exists() else FIRST
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    there = pattern.search(whole) is not None
    new = pattern.sub(lambda _: section, whole) if there else f"{whole.rstrip()}\n\n{section}\n"
    page.write_text(new, encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
