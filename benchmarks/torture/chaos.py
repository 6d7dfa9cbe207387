"""A stranger's judgement: ckpt-chaos from PyPI (MIT) kills `train_ldm.py` at file operations of its own choice.

It knows nothing of us: it starts the command in fresh interpreters, kills it before, in the middle of, or (by SIGTERM)
at an operation, starts it again, and compares what is left with an undisturbed run.
"""

import importlib.util
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.torture.bench import QUIET, Bench
from benchmarks.torture.trial import Case, Missing
from ldm_kit import config as configs
from tests.training.helpers import ROOT

POINTS = 48  # in all modes together; each takes two starts of the door, about 15 s
RUN = ("train.steps=4", "train.checkpoint_every=2", "train.keep_last=9", "log.evaluate_every=100")
PUBLISHED = "HF Trainer 5.18.0: 17 of 19 HARD_FAIL; Lightning 2.6.6: 2 of 5 LOST_WORK"


def cases(bench: Bench) -> Iterator[Case]:
    """One for each of its verdicts; it runs once, over a share of its points."""
    if importlib.util.find_spec("ckpt_chaos") is None:
        yield Case("ckpt-chaos", _absent)
        return
    judged = bench.once("chaos", lambda: verdicts(bench, max(3, round(POINTS * bench.share))))
    for label, verdict, detail in judged:
        yield Case(label, lambda a=(label, verdict, detail): _passed(*a))


def _absent() -> None:
    raise Missing("ckpt-chaos is not installed; pip install ckpt-chaos==0.1.8")


def _passed(label: str, verdict: str, detail: str) -> None:
    assert verdict == "PASS", f"{verdict}: {detail}"


def verdicts(bench: Bench, points: int) -> list[tuple[str, str, str]]:
    """What it was killed at, its verdict, and the end of what the resumed run said."""
    from ckpt_chaos.runner import rejudge  # pyright: ignore[reportMissingImports]

    work, config = bench.root / "chaos", bench.root / "chaos.yaml"
    configs.write(bench.config("text", Path("."), *QUIET, *RUN), config)
    # the run's folder is `.`, so that its name is as long in every trial and sizes of files can be compared
    inside = (
        f"mkdir -p {{out}} && cd {{out}} && exec {_line(sys.executable, ROOT / 'train_ldm.py', config)} --resume latest"
    )
    options = ["--modes", "before,torn,term", "--max-points", str(points), "--grace", "60"]
    options += ["--checkpoint-glob", "{out}/checkpoint-*", "--step-regex", r"going on from step (\d+)"]
    options += ["--result-cmd", _line(sys.executable, ROOT / "benchmarks/torture/fingerprint.py", "{out}")]
    options += ["--fail-on", "HARD_FAIL,SILENT_DIVERGENCE,LOST_WORK,CONTROL_FAIL", "--work", str(work)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ckpt_chaos", "run", *options, "--", "bash", "-c", inside]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    rows = rejudge(work)
    assert rows, f"ckpt-chaos found nothing to judge: {ran.stdout[-600:]}{ran.stderr[-600:]}"
    return [(row.label, row.verdict, ran.stdout[-300:]) for row in rows]


def _line(*words: object) -> str:
    return " ".join(word if "{" in word else shlex.quote(word) for word in map(str, words))
