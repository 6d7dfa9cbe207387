"""Command-line tools: `run_cli` and `cli_errors` for scripts, and `main`, the console script `ldm-kit`."""

from ldm_kit.cli.commands import app, main
from ldm_kit.cli.errors import cli_errors
from ldm_kit.cli.flags import run_cli

__all__ = ["app", "cli_errors", "main", "run_cli"]
