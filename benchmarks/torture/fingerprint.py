"""Print what a finished run has left: sha256 of all tensors of its last checkpoint and of its model. Needs no torch."""

import hashlib
import sys
from pathlib import Path


def fingerprint(run: Path) -> str:
    """One digest over names and contents."""
    state = hashlib.sha256()
    last = max(run.glob("checkpoint-*"))
    for path in sorted([*last.rglob("*.safetensors"), *(run / "model").rglob("*.safetensors")]):
        state.update(path.relative_to(run).as_posix().encode() + path.read_bytes())
    return state.hexdigest()


if __name__ == "__main__":
    print(fingerprint(Path(sys.argv[1])))
