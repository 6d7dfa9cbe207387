"""Build the site from docs/, README.md and configs/ into build/site/site; a broken link is an error.

python docs/build_site.py              needs `pip install 'ldm_kit[site]'`

The generator is zensical: it is by the authors of mkdocs-material, whose maintenance ended in November 2026, and checks
links and anchors itself. Pages may link to files of the repository outside docs/: configs and sources become pages that
show the file, README.md becomes the first page.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
STAGE = ROOT / "build" / "site"
PAGES = STAGE / "docs"
TEXTS = ("CHANGELOG.md", "CONTRIBUTING.md", "NOTICE")  # files at the top that are pages
LANGUAGES = {".yaml": "yaml", ".py": "python"}
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def page_of(path: Path) -> Path:
    """Return the path below `PAGES` of the page that shows a file, which is given relative to the repository."""
    if path.parts[0] == "docs":
        return Path(*path.parts[1:])
    if path == Path("README.md"):
        return Path("index.md")
    return path if path.suffix == ".md" else path.with_name(f"{path.name}.md")


def linked(text: str, source: Path) -> tuple[str, set[Path]]:
    """Rewrite the links of a page of Markdown, and return the other files of the repository that it links to.

    Args:
        text: the page.
        source: path of its file relative to the repository.

    Returns:
        The page, whose links lead from its place on the site, and the files outside docs/ that need pages.
    """
    others: set[Path] = set()

    def rewrite(match: re.Match[str]) -> str:
        target = match[2]
        if re.match(r"\w+:", target):
            return match[0]
        path = Path(os.path.normpath(source.parent / target))
        if not (ROOT / path).exists():
            return match[0]  # which the generator reports
        page = page_of(path) if path.suffix != ".png" else Path(*path.parts[1:])
        if path.parts[0] != "docs" and str(path) not in ("README.md", *TEXTS):
            others.add(path)
        return match[1] + os.path.relpath(page, page_of(source).parent) + match[3]

    return _LINK.sub(rewrite, text), others


def stage() -> None:
    """Write all pages to `PAGES`, and the generator's settings beside."""
    shutil.rmtree(STAGE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES, ignore=shutil.ignore_patterns("*.py", "*.toml", "__pycache__"))
    shutil.copy(ROOT / "docs" / "zensical.toml", STAGE)
    shown = {path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")}
    for source in [Path("README.md"), *map(Path, TEXTS), *(p.relative_to(ROOT) for p in (ROOT / "docs").rglob("*.md"))]:
        text, others = linked((ROOT / source).read_text(encoding="utf-8"), source)
        shown |= others
        (PAGES / page_of(source)).write_text(text, encoding="utf-8")
    for path in shown:
        page = PAGES / page_of(path)
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(_file_page(path), encoding="utf-8")
    (PAGES / "configs" / "index.md").write_text(_config_list(), encoding="utf-8")


def _file_page(path: Path) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    return f"# {path.as_posix()}\n\n```{LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n```\n"


def _config_list() -> str:
    """Return the page that lists all configs with the machine and time that their headers state."""
    rows = ["# Configs", "", "| config | machine and time |", "| --- | --- |"]
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        name = path.relative_to(ROOT / "configs").as_posix()
        lines = path.read_text(encoding="utf-8").splitlines()
        stated = next((line[len("# Hardware:") :].strip() for line in lines if line.startswith("# Hardware:")), "")
        rows.append(f"| [{name}]({name}.md) | {stated} |")
    return "\n".join([*rows, ""])


def build() -> int:
    """Build the site strictly, and return the generator's exit status."""
    stage()
    command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", str(STAGE / "zensical.toml")]
    return subprocess.run(command, cwd=STAGE, check=False).returncode


if __name__ == "__main__":
    sys.exit(build())
