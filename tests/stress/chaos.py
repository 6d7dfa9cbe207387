"""An independent crash test: ckpt-chaos from PyPI (MIT) kills `train_ldm.py` at file operations of its own choice.

It starts the command in fresh interpreters, kills it before, in the middle of, or (by SIGTERM) at an operation, starts
it again, and compares what is left with an uninterrupted run.
"""

import importlib.util
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ldm_kit import config as configs
from tests.stress.harness import LOG_OFTEN, Harness, Trial
from tests.training.helpers import ROOT

POINTS = 48  # in all modes together; each takes two starts of the script, about 15 s
RUN = ("train.steps=4", "train.checkpoint_every=2", "train.keep_last=9", "log.evaluate_every=100")


def trials(harness: Harness) -> Iterator[Trial]:
    """Yield one for each of its verdicts; it runs once, over the harness's share of its points."""
    if importlib.util.find_spec("ckpt_chaos") is None:
        yield "ckpt-chaos", partial(pytest.skip, "ckpt-chaos is not installed; pip install ckpt-chaos==0.1.8")
        return
    verdicts = harness.once("chaos", lambda: run_ckpt_chaos(harness, max(3, round(POINTS * harness.share))))
    for label, verdict, detail in verdicts:
        yield label, partial(check_verdict, verdict, detail)


def check_verdict(verdict: str, detail: str) -> None:
    """Check one verdict of ckpt-chaos."""
    assert verdict == "PASS", f"{verdict}: {detail}"


def run_ckpt_chaos(harness: Harness, points: int) -> list[tuple[str, str, str]]:
    """Return for each point where it killed, its verdict, and the end of the resumed run's output."""
    from ckpt_chaos.runner import rejudge  # pyright: ignore[reportMissingImports]

    work, config = harness.root / "chaos", harness.root / "chaos.yaml"
    configs.write(harness.config("text", Path("."), *LOG_OFTEN, *RUN), config)
    # the run's folder is `.`, so that its name is as long in every trial and sizes of files can be compared
    train = f"exec {_line(sys.executable, ROOT / 'train_ldm.py', config)} --resume latest"
    options = ["--modes", "before,torn,term", "--max-points", str(points), "--grace", "60"]
    options += ["--checkpoint-glob", "{out}/checkpoint-*", "--step-regex", r"going on from step (\d+)"]
    options += ["--result-cmd", _line(sys.executable, ROOT / "tests/stress/fingerprint.py", "{out}")]
    options += ["--fail-on", "HARD_FAIL,SILENT_DIVERGENCE,LOST_WORK,CONTROL_FAIL", "--work", str(work)]
    command = [sys.executable, "-m", "ckpt_chaos", "run", *options]
    command += ["--", "bash", "-c", f"mkdir -p {{out}} && cd {{out}} && {train}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    rows = rejudge(work)
    assert rows, f"ckpt-chaos found nothing to judge: {done.stdout[-600:]}{done.stderr[-600:]}"
    return [(row.label, row.verdict, done.stdout[-300:]) for row in rows]


def _line(*words: object) -> str:
    return " ".join(word if "{" in word else shlex.quote(word) for word in map(str, words))
