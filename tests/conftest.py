"""The repository's root is importable: tests share helpers, and call the doors as functions."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.world import world as world  # (a session's fixture: made-up pictures and tiny trained models)
