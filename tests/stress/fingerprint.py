"""Print one SHA-256 of all tensors of a finished run's last checkpoint and model; needs no torch."""

import hashlib
import sys
from pathlib import Path


def fingerprint(run: Path) -> str:
    """Return one digest over names and contents."""
    state = hashlib.sha256()
    last = max(run.glob("checkpoint-*"))
    for path in sorted([*last.rglob("*.safetensors"), *(run / "model").rglob("*.safetensors")]):
        state.update(path.relative_to(run).as_posix().encode() + path.read_bytes())
    return state.hexdigest()


if __name__ == "__main__":
    sys.stdout.write(f"{fingerprint(Path(sys.argv[1]))}\n")
