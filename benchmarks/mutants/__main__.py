"""Plant known mistakes, one at a time, in a copy of the tree, and print which of them the tests notice.

python -m benchmarks.mutants                    all (half an hour on 2 CPU cores), written to the page mutants.md
python -m benchmarks.mutants editing min-SNR    those whose file or description holds one of these words
python -m benchmarks.mutants --stale            only check that every text is still found: a second, nothing is run

The exit status is 1 if a mistake survives, or if its text is no longer in the tree: then write the mistake anew.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.mutants.planting import Copy, Mutant, Verdict, import_libraries, read_mutants, tests_of
from benchmarks.tables import markdown, page_of, write_section
from ldm_kit.cli import cli_errors, run_cli
from ldm_kit.config import UserError

TABLE = Path(__file__).with_name("mutants.yaml")


def main(
    words: Annotated[list[str] | None, typer.Argument(help="words of files or descriptions; all when left out")] = None,
    stale: Annotated[bool, typer.Option("--stale", help="only look for the texts")] = False,
    page: Annotated[bool, typer.Option("--page/--no_page", help="write the page mutants.md")] = True,
) -> None:
    """Plant mistakes one at a time, and run the tests that should fail then."""
    with cli_errors():
        mutants = _chosen(read_mutants(TABLE), words or [])
        target = page_of("mutants.md") if page and not words and not stale else None
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            copy = Copy.of(Path.cwd(), Path(folder))
            verdicts = [(mutant, copy.find(mutant)) for mutant in mutants] if stale else _run(copy, mutants)
        if target is not None:
            write_section(target, "mutants", f"{_table(verdicts)}\n\nPrinted by `python -m benchmarks.mutants`.")
        missed = [(mutant, verdict) for mutant, verdict in verdicts if not verdict.good]
        typer.echo(
            f"{len(verdicts) - len(missed)} of {len(verdicts)} planted mistakes are {'there' if stale else 'noticed'}"
        )
        for mutant, verdict in missed:
            typer.echo(f"{verdict}: {mutant.mistake} ({mutant.file})")
    raise SystemExit(1 if missed else 0)


def _chosen(mutants: tuple[Mutant, ...], words: list[str]) -> list[Mutant]:
    chosen = [one for one in mutants if not words or any(word in f"{one.file} {one.mistake}" for word in words)]
    if not chosen:
        raise UserError(f"no planted mistake has one of the words {', '.join(words)} in its file or description")
    return chosen


def _run(copy: Copy, mutants: list[Mutant]) -> list[tuple[Mutant, Verdict]]:
    import_libraries()
    if (plain := copy.test(tests_of(mutants))).kind != "survived":
        raise UserError(f"the tests do not pass without any mistake ({plain.detail}); nothing was planted")
    verdicts: list[tuple[Mutant, Verdict]] = []
    for mutant in mutants:
        verdict = copy.plant(mutant)
        typer.echo(f"{verdict.kind:9} {mutant.file}: {mutant.mistake}")
        verdicts.append((mutant, verdict))
    return verdicts


def _table(verdicts: list[tuple[Mutant, Verdict]]) -> str:
    rows = [(mutant.mistake, f"`{mutant.file}`", verdict.cell) for mutant, verdict in verdicts]
    return markdown(["mistake", "file", "noticed by"], rows)


if __name__ == "__main__":
    run_cli(main)
