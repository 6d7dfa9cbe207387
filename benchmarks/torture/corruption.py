"""Damage to a checkpoint is found, whatever it is: the file is named, `latest` falls back, a path does not."""

import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

from benchmarks.torture.bench import Bench, same
from benchmarks.torture.trial import Case
from ldm_kit.config import UserError
from ldm_kit.training import checkpoint, run_folder
from tests.training.helpers import play, tensors_of

KINDS = ("vq", "text")
BITS, CUTS = 12, 6  # of every file
SAVING = ("train.checkpoint_every=4",)
OLDER, NEWER = "checkpoint-00000004", "checkpoint-00000008"


def cases(bench: Bench) -> Iterator[Case]:
    """Flipped bits, cuts and absence of every file of two checkpoints, and resumes from what is left."""
    draw = random.Random(3)
    for kind in KINDS:
        whole = bench.once(f"corruption {kind}", lambda k=kind: trained(bench, k))
        for path in sorted(p for p in (whole / NEWER).rglob("*") if p.is_file()):
            name, size = path.relative_to(whole / NEWER).as_posix(), path.stat().st_size
            for bit in sorted(draw.sample(range(size * 8), min(BITS, size * 8))):
                yield Case(f"{kind}, {name}, bit {bit}", lambda a=(whole, name, bit): found(*a, flipped=True))
            for left in sorted(draw.sample(range(size), min(CUTS, size))):
                yield Case(f"{kind}, {name}, cut to {left} bytes", lambda a=(whole, name, left): found(*a))
            yield Case(f"{kind}, {name} missing", lambda a=(whole, name, -1): found(*a))
            yield Case(f"{kind}, {name} missing, resumed", lambda a=(bench, kind, whole, name): gone_on(*a))


def trained(bench: Bench, kind: str) -> Path:
    """A run with two checkpoints."""
    folder = bench.root / f"whole-{kind}"
    play(bench.config(kind, folder, *SAVING))
    return folder


def damage(path: Path, place: int, flipped: bool) -> None:
    """Flip a bit, or cut to so many bytes, or remove (less than none)."""
    contents = bytearray(path.read_bytes())
    if place < 0:
        path.unlink()
        return
    if flipped:
        contents[place // 8] ^= 1 << place % 8
    path.write_bytes(contents if flipped else contents[:place])


def found(whole: Path, name: str, place: int, flipped: bool = False) -> None:
    """The damaged file is named; `latest` takes the one before, with a warning; the path itself is refused."""
    newer = whole / NEWER
    before = (newer / name).read_bytes()
    damage(newer / name, place, flipped)
    try:
        said = refusal(newer)
        # a manifest may still be readable, with a wrong name, size or digest of one of its files, which it then accuses
        named = name in said or (name == checkpoint.MANIFEST and str(newer) in said and "damaged" in said)
        assert named, f"the sentence does not name the file: {said}"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert run_folder.resume_checkpoint(whole, "latest") == whole / OLDER, "latest is not the checkpoint before"
        assert [str(warning.message) for warning in caught] == [f"{said}; trying the one before"]
    finally:
        (newer / name).write_bytes(before)
    checkpoint.verify(newer)


def refusal(path: Path) -> str:
    """The sentence with which a checkpoint is refused that was asked for by its path."""
    try:
        run_folder.resume_checkpoint(path.parent, str(path))
    except UserError as error:
        return str(error)
    raise AssertionError("the damage was not found")


def gone_on(bench: Bench, kind: str, whole: Path, name: str) -> None:
    """A run whose newest checkpoint lacks a file goes on from the one before, to the same bits."""
    with bench.folder() as folder:
        shutil.copytree(whole, folder / "run")
        (folder / "run" / NEWER / name).unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            played = play(bench.config(kind, folder / "run", *SAVING), resume="latest")
        assert len(played.lines) == 4, "it did not go on from the checkpoint before"
        same(tensors_of(folder / "run" / NEWER), tensors_of(whole / NEWER))
