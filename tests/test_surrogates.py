"""Lone surrogates, as in names of files that are no UTF-8 and in JSON that was cut: hashed, printed, saved, trained."""

import hashlib
import os
import subprocess
import sys

import torch

from conditioning.text import TextConditioner, TextConfig
from ldm_kit import config as configs
from ldm_kit.data.folder import FolderConfig, load
from ldm_kit.data.images import digest, unit_hash
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.editing.code_files import CodeFile
from ldm_kit.editing.fit_directions import learn_few
from ldm_kit.methods.train import open_method
from ldm_kit.models.directions import Directions
from tests.data.test_folder import draw, table
from tests.training.helpers import CLASSES, TEXT, settings

CUT = "\ud83d"  # half an emoji
BYTES = os.fsdecode(b"\xff\xfe")


def test_hashes_keep_the_bytes_of_names_and_take_any_string():
    raw = b"x\xff\xfe"
    assert digest([f"x{BYTES}"]) == hashlib.sha256(len(raw).to_bytes(8) + raw).hexdigest(), "as before"
    assert digest([CUT]) != digest([f"{CUT}x"])
    assert 0 <= unit_hash("heldout", CUT) < 1
    assert derive_seed(0, CUT) != derive_seed(0, "x")


def test_a_tokenizer_sees_the_replacement_character():
    texts = TextConditioner.build(TextConfig(width=16, layers=1, heads=2, vocabulary=520, length=8), captions=["a cat"])
    ids = [
        texts.prepare([caption])["ids"].tolist()
        for caption in (f"cat {CUT}", "cat \ufffd", "cat \ud83d\ude00", "cat 😀")
    ]
    assert ids[0] == ids[1] != ids[2] == ids[3]


def test_a_folder_of_such_names_and_captions_trains(tmp_path):
    """Up to a batch: data, split, latents, conditions, fingerprints."""
    for i in range(12):
        draw(tmp_path / "classes" / (BYTES if i % 2 else "cat") / f"{BYTES}{i}.png", i)
        draw(tmp_path / "texts" / f"{i}.png", i)
    rows = [{"file_name": f"{i}.png", "text": f"{CUT} {i}", "label": CUT, "more": CUT} for i in range(12)]
    table(tmp_path / "texts", *rows)
    for tree, name in ((CLASSES, "classes"), (TEXT, "texts")):
        config = settings(tree, tmp_path / name, tmp_path / "run", "data.heldout=0.2")
        method = open_method(config)
        assert len(method.batches.fingerprint) == 64
        assert method.batches.__getitems__([(0, 0)])["mean"].shape[0] == 1
        configs.write(config, tmp_path / "config.yaml")
        assert configs.read(type(config), tmp_path / "config.yaml") == config
    assert load(FolderConfig(path=tmp_path / "classes")).train.classes == ["cat", BYTES]


def test_codes_and_directions_keep_such_names(tmp_path):
    CodeFile((f"{BYTES}.png", "é.png"), torch.zeros(2, 3), None, "key").save(tmp_path / "codes")
    assert CodeFile.load(tmp_path / "codes", "key").names == (f"{BYTES}.png", "é.png")
    learn_few(torch.eye(4) + 1, None, BYTES, "key").save(tmp_path)
    assert Directions.load(tmp_path, "key").names == ["\ufffd\ufffd"]


def test_a_command_prints_such_names():
    code = "from ldm_kit.cli.flags import run_cli\ndef main():\n    print('\\udcff é')\nrun_cli(main, [])"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "\\udcff é".encode()), done.stderr.decode()
