"""The one table."""

import os
import platform
from collections.abc import Sequence

import torch

from benchmarks.torture.chaos import PUBLISHED
from benchmarks.torture.promises import PROMISES
from benchmarks.torture.trial import Result

SENTENCES = {promise.name: promise.sentence for promise in PROMISES}


def table(results: Sequence[Result]) -> str:
    """promise | trials | failures | seconds, in Markdown; below it what failed, and what was not tried."""
    rows = [f"| {SENTENCES[r.promise]} | {r.trials} | {len(r.failures)} | {r.seconds:.0f} |" for r in results]
    trials, failures = sum(r.trials for r in results), sum(len(r.failures) for r in results)
    total = f"| **all** | {trials} | {failures} | {sum(r.seconds for r in results):.0f} |"
    lines = ["| promise | trials | failures | seconds |", "|---|---:|---:|---:|", *rows, total]
    notes = [f"- {r.promise}: {failure}" for r in results for failure in r.failures]
    for r in results:
        notes += [f"- {r.promise}: not tried: {missing}" for missing in r.missing]
        if (tried := r.trials + len(r.missing)) < r.planned:
            notes.append(f"- {r.promise}: {r.planned - tried} of {r.planned} trials were not begun: time was up")
    return "\n".join([*lines, *([""] if notes else []), *notes])


def page(results: Sequence[Result], share: float) -> str:
    """The page of docs/torture.md."""
    part = "all trials" if share >= 1 else f"{share:.0%} of the trials"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    where = f"{part}; {platform.system()}, {os.cpu_count()} CPU cores, {versions}"
    return PAGE.format(where=where, table=table(results), published=PUBLISHED)


PAGE = """# Training under fire

`make torture` prints this table ({where}); `python -m benchmarks.torture --share 0.1 --only kills` tries a part, and
with `--results FILE` promises are tried anew one by one, while the rows of the others stay.
What is promised, and how far it goes, says [training.md](training.md).

{table}

- **resumed**: autoencoders (KL and VQ with discriminator), text- and class-conditional denoisers and the noisy
  classifier, each with 0 and 2 loader workers, on 1 and 2 processes, with 1 and 2 micro-batches, saved in the middle of
  an epoch, on its last batch and on its first; flips, dropout, condition drop and averages on, the global random state
  disturbed between steps. All later losses and gradient norms are equal as hex, all tensors by their sha256. A finished
  door is also compared by its `model/` and every line of `metrics.jsonl`.
- **kill -9** meets real doors in processes of their own: at random moments, one of two processes, the launcher alone.
  What bears a checkpoint's name afterwards must verify, one must be left if there was one, and the run must go on to
  the same bits.
- **every file operation**: opening for writing, safetensors' writer, fsync, renaming, removing, making of directories,
  modes, in a run of two saves of which one is pruned. Torn: half of what was being written is there. Stopped: SIGTERM
  at that point.
- **damage**: flipped bits, cuts and absence of every file. A damaged manifest that still reads may accuse the file
  whose entry it has wrong.
- **1, 2, 4 processes**: pictures with their flips, times, noises and drops equal as sets for each batch; losses within
  1e-6 relatively over 100 steps, and after the number changed twice in the middle. Without dropout and revived codes,
  which are not promised. Autoencoders against their discriminator are compared over 30 steps (KL) and 10 (VQ, in
  channels-last layout): the game is chaotic, and within 100 steps a learning rate that differs by 1e-7 moves a loss as
  far as another number of processes does; and where rounding changes which code is nearest, a VQ autoencoder's loss
  leaps, in contiguous layout at the seventh step.
- **ckpt-chaos** is a crash tester from PyPI that knows nothing of this project. Its published figures for others, on
  its own machine: {published}.
"""
