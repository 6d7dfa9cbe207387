"""Scripts as processes, from a server that has imported torch and diffusers once: that import costs 8 s of CPU."""

import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tests.training.helpers import ROOT, context

OURS = ("ldm_kit", "autoencoder", "conditioning", "train_ae", "train_ldm", "sample", "edit")


def script(path: Path, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python file in a process of its own, which imports our packages anew; others' modules are there already.

    Its environment is this process's with `environment`, whose PYTHONPATH goes before our packages. What only a fresh
    interpreter shows, such as warnings of others' imports, test_signals.py sees, which starts train_ldm.py with one.
    """
    words = [str(path), *map(str, arguments)]
    said = [cwd / name for name in (".stdout", ".stderr")]
    process = context().Process(target=_run, args=(words, cwd, {**os.environ, **environment}, said))
    process.start()
    process.join(900)
    assert process.exitcode is not None, "it does not end"
    out, err = (file.read_text() for file in said)
    for file in said:
        file.unlink()
    return subprocess.CompletedProcess(words, process.exitcode, out, err)


def _run(words: Sequence[str], cwd: Path, environment: Mapping[str, str], said: Sequence[Path]) -> None:
    for number, file in enumerate(said, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))
    os.chdir(cwd)
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    site = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [str(Path(words[0]).parent), *site, str(ROOT)]
    sys.argv = list(words)
    runpy.run_path(words[0], run_name="__main__")
