"""Start of a run on a folder of 1.28 million pictures: time to the first step and memory, first and second time.

`python -m benchmarks.million` makes hard links to a few small pictures in class folders, starts two processes on them
twice, and once on a hundredth of them for comparison, and writes docs/results/million.md.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image

from benchmarks.tables import format_rows, page_of, write_section
from ldm_kit.data import folder
from ldm_kit.data.folder import FolderConfig, _sha256
from ldm_kit.data.folder_check import Contents
from ldm_kit.data.peers import shared_by
from ldm_kit.methods import check_run
from ldm_kit.methods.train import open_method
from ldm_kit.training.distributed import work_groups
from ldm_kit.training.session import session

SIDE = 64  # pixels, so that more than 175,000 pictures are decoded on demand
FILES, CLASSES = 64, 1000  # files that are linked to, each fewer than 65,000 times; class folders
COLUMNS = {
    "name": ("start", ""),
    "load": ("pictures loaded after", ".0f"),
    "step": ("first step after, seconds", ".0f"),
    "cpu": ("processor time of each process, seconds", ""),
    "anonymous": ("own memory of each process, MiB", ""),
    "peak": ("its peak, mapped files included, MiB", ""),
}


def make_folder(folder: Path, count: int) -> None:
    """Write FILES small pictures into a new folder, and `count` hard links to them into its class folders."""
    sources = [folder / f".source-{i}.png" for i in range(FILES)]
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for path in sources:
        Image.fromarray(torch.randint(0, 256, (8, 8, 3), generator=generator).to(torch.uint8).numpy()).save(path)
    for label in range(min(CLASSES, count)):
        (folder / f"class_{label:04d}").mkdir()
    for i in range(count):
        os.link(sources[i % FILES], folder / f"class_{i % CLASSES:04d}" / f"{i:07d}.png")


def worker(pictures: Path, began: float) -> None:
    """Load the folder `pictures`, take one training step, and print this process's times and memory as a line of JSON.

    `began` is the time (seconds since 1970) at which the processes were started.
    """
    unet = {"widths": [8, 8], "layers_per_block": 1, "attention_levels": [False, False], "norm_num_groups": 4}
    tree = {
        "run": str(pictures.with_name(f"run-{began:.0f}")),
        "data": {"source": "folder", "path": str(pictures), "resolution": SIDE},
        "condition": {"kind": "class", "width": 8},
        "unet": {**unet, "head_size": 4, "attention_levels": [False, True]},
        "train": {"steps": 2, "batch_size": 8},
        "log": {"tensorboard": False},
    }
    config: Any = check_run(tree, "the benchmark")
    with session(config, None) as run:
        with shared_by(*work_groups()):
            method = open_method(config, None, run.device)
        loaded = time.time()
        next(iter(run.trainer(method, method.batches).train(method.batches)))
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        usage = resource.getrusage(resource.RUSAGE_SELF)
        measured = {name: int(status[key].split()[0]) / 1024 for name, key in (("own", "RssAnon"), ("peak", "VmHWM"))}
        times = {"load": loaded - began, "step": time.time() - began, "cpu": usage.ru_utime + usage.ru_stime}
        print(json.dumps({"rank": run.accelerator.process_index, **times, **measured}), flush=True)


def index_by_links(pictures: Path, config: FolderConfig) -> None:
    """Make the cached list of a folder's pictures quickly, from hashes of the few files that they are links to.

    So later starts can be measured without the first. `config` is the data config of the folder `pictures`.
    """
    hashes = {path.stat().st_ino: _sha256(path) for path in pictures.glob(".source-*")}

    def check(config: FolderConfig, decode: bool, name: str) -> Contents:
        stat = (pictures / name).stat()
        return Contents(stat.st_size, stat.st_mtime_ns, hashes[stat.st_ino], None)

    with patch.object(folder, "_contents", check):
        folder.load(config)


def start(name: str, pictures: Path, processes: int) -> dict[str, Any]:
    """Start a run of `processes` processes on the folder `pictures`; return what it took as a row called `name`."""
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "-m", "benchmarks.million"]
    environment = {**os.environ, "LDM_KIT_CACHE": str(pictures.with_name("cache")), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *launch, "--worker", str(pictures), "--began", str(time.time())]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    rows = sorted(_json_lines(output), key=lambda row: row["rank"])
    lists = {title: ", ".join(f"{row[key]:.0f}" for row in rows) for title, key in _LISTED.items()}
    return {"name": name, **{key: max(row[key] for row in rows) for key in ("load", "step")}, **lists}


_LISTED = {"cpu": "cpu", "anonymous": "own", "peak": "peak"}


def _json_lines(output: str) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in output.splitlines() if line.startswith("{"))


def main() -> None:
    """Measure starts of runs on large folders, and write the page million.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_280_000, help="pictures")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where to make the folder")
    parser.add_argument("--no_page", action="store_true", help="print only")
    parser.add_argument("--later", action="store_true", help="measure later starts alone; the index knows the links")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options.worker, options.began)
    root = Path(tempfile.mkdtemp(prefix="million-", dir=options.folder))
    try:
        rows = []
        for count in (max(1, options.count // 100), options.count):
            make_folder(root / f"{count}", count)
            if options.later:
                os.environ["LDM_KIT_CACHE"] = str(root / "cache")
                index_by_links(root / f"{count}", FolderConfig(path=root / f"{count}", resolution=SIDE))
            for name in ("second",) if options.later else ("first", "second"):
                rows.append(start(f"{name} on {count:,} pictures", root / f"{count}", options.processes))
                print(rows[-1], flush=True)
    finally:
        shutil.rmtree(root)
    table = format_rows(COLUMNS, rows)
    print(table)
    if not options.no_page:
        write_section(page_of("million.md"), "starts", table)


if __name__ == "__main__":
    main()
