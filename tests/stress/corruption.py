"""Damage to a checkpoint: the file is named, `latest` falls back to the one before, its own path is refused."""

import random
import shutil
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ldm_kit.config import UserError
from ldm_kit.training import checkpoint, run_folder
from tests.stress import victims
from tests.stress.harness import Harness, Trial, check_equal
from tests.training.helpers import tensors_of

KINDS = ("vq", "text")
BITS, CUTS = 12, 6  # of every file
SAVING = ("train.checkpoint_every=4",)
OLDER, NEWER = "checkpoint-00000004", "checkpoint-00000008"


def trials(harness: Harness) -> Iterator[Trial]:
    """Yield flipped bits, cuts and absence of every file of a newest checkpoint, and resumes without each file."""
    draw = random.Random(3)
    for kind in KINDS:
        run = harness.once(f"corruption {kind}", partial(_trained, harness, kind))
        for path in sorted(p for p in (run / NEWER).rglob("*") if p.is_file()):
            name, size = path.relative_to(run / NEWER).as_posix(), path.stat().st_size
            for bit in sorted(draw.sample(range(size * 8), min(BITS, size * 8))):
                yield f"{kind}, {name}, bit {bit}", partial(check_damage, run, name, flipped=bit)
            for left in sorted(draw.sample(range(size), min(CUTS, size))):
                yield f"{kind}, {name}, cut to {left} bytes", partial(check_damage, run, name, length=left)
            yield f"{kind}, {name} missing", partial(check_damage, run, name)
            yield f"{kind}, {name} missing, resumed", partial(check_resume, harness, kind, run, name)


def _trained(harness: Harness, kind: str) -> Path:
    run = harness.root / f"whole-{kind}"
    victims.train(harness.pictures, kind, run, *SAVING)
    return run


def damage(path: Path, flipped: int | None = None, length: int | None = None) -> None:
    """Flip a bit of a file, or cut it to a length in bytes, or (without either) remove it."""
    contents = bytearray(path.read_bytes())
    if flipped is not None:
        contents[flipped // 8] ^= 1 << flipped % 8
        path.write_bytes(contents)
    elif length is not None:
        path.write_bytes(contents[:length])
    else:
        path.unlink()


def check_damage(run: Path, name: str, flipped: int | None = None, length: int | None = None) -> None:
    """Check that the damaged file is named, and that `latest` takes the checkpoint before with a warning."""
    newer = run / NEWER
    before = (newer / name).read_bytes()
    damage(newer / name, flipped, length)
    try:
        message = _refusal(newer)
        # a manifest may still be readable, with a wrong name, size or digest of one of its files, which it then accuses
        named = name in message or (name == checkpoint.MANIFEST and str(newer) in message and "damaged" in message)
        assert named, f"the sentence does not name the file: {message}"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert run_folder.resume_checkpoint(run, "latest") == run / OLDER, "latest is not the checkpoint before"
        assert [str(warning.message) for warning in caught] == [f"{message}; trying the one before"]
    finally:
        (newer / name).write_bytes(before)
    checkpoint.verify(newer)


def _refusal(path: Path) -> str:
    """Return the sentence with which a checkpoint is refused that was asked for by its path."""
    try:
        run_folder.resume_checkpoint(path.parent, str(path))
    except UserError as error:
        return str(error)
    raise AssertionError("the damage was not found")


def check_resume(harness: Harness, kind: str, run: Path, name: str) -> None:
    """Check that a run whose newest checkpoint lacks a file resumes from the one before, to the same bits."""
    with harness.folder() as folder:
        shutil.copytree(run, folder / "run")
        (folder / "run" / NEWER / name).unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lines = victims.train_lines(harness.pictures, kind, folder / "run", "latest", *SAVING)
        assert len(lines) == 4, "it did not resume from the checkpoint before"
        check_equal(tensors_of(folder / "run" / NEWER), tensors_of(run / NEWER))
