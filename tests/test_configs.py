"""Every config in configs/ is read, its networks are built, and its header says how to run it and what to expect."""

import re
from pathlib import Path

import pytest
import torch

from autoencoder.config import build as build_autoencoder
from autoencoder.discriminator import Discriminator
from conditioning.labels import ClassConfig
from conditioning.none import NoConfig
from conditioning.pretrained import PretrainedTextConfig
from ldm_kit.config import read
from ldm_kit.methods.autoencoding import AutoencoderRun
from ldm_kit.methods.latent import LatentRun
from ldm_kit.nets.build import build_unet

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
STAGE_1 = {path: read(AutoencoderRun, path) for path in FILES if path.name.startswith("ae")}
STAGE_2 = {path: read(LatentRun, path) for path in FILES if path.name.startswith("ldm")}
MINILM_WIDTH = 384


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_file_is_of_a_known_stage():
    assert FILES
    assert set(FILES) == {*STAGE_1, *STAGE_2}
    assert not list((ROOT / "configs").rglob("*.yml"))


@pytest.mark.parametrize("path", STAGE_1, ids=named)
def test_autoencoders_build(path):
    config = STAGE_1[path]
    with torch.device("meta"):
        vae = build_autoencoder(config.autoencoder)
        judge = Discriminator(config.discriminator)
        x = torch.zeros(2, config.autoencoder.channels, config.data.resolution, config.data.resolution)
        z = vae.encode(x)
        shape = getattr(z, "latents", None)
        shape = z.latent_dist.mean.shape if shape is None else shape.shape
        assert judge(x).shape[:2] == (2, 1) if config.criterion.adversarial else True
    assert shape == (2, config.autoencoder.latent_channels, config.autoencoder.side, config.autoencoder.side)


@pytest.mark.parametrize("path", STAGE_2, ids=named)
def test_denoisers_build_on_their_autoencoders_latents(path):
    config = STAGE_2[path]
    first = [stage for stage in STAGE_1.values() if stage.run == config.autoencoder]
    assert len(first) == 1, f"{config.autoencoder} is the run of no config here"
    assert first[0].data == config.data
    net = first[0].autoencoder
    with torch.device("meta"):
        unet = build_unet(config.unet, sample_size=net.side, channels=net.latent_channels, cross_width=width(config))
        x = torch.zeros(2, net.latent_channels, net.side, net.side)
        tokens = {} if width(config) is None else {"encoder_hidden_states": torch.zeros(2, 5, width(config) or 0)}
        assert unet(x, torch.zeros(2), **tokens).sample.shape == x.shape


def width(config: LatentRun) -> int | None:
    match config.condition:
        case NoConfig():
            return None
        case PretrainedTextConfig():
            return MINILM_WIDTH
        case ClassConfig() | _:
            return config.condition.width


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name != "demo"], ids=named)
def test_headers(path):
    text = path.read_text(encoding="utf-8")
    door = "train_ae.py" if path in STAGE_1 else "train_ldm.py"
    assert text.startswith(f"# Command:   accelerate launch {door} {named(path)}")
    assert re.search(r"^# Hardware:  \S.* Time: \S.*\.$", text, re.M)
    assert re.search(r"^# Expected:  \S.*\.$", text, re.M)
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("folder", ["openmoji"])
def test_a_tiny_config_of_every_kind(folder):
    tiny = {path.stem for path in FILES if path.parent.name == folder and "tiny" in path.stem}
    assert tiny == {"ae_tiny", "ae_tiny_vq", "ldm_tiny", "ldm_tiny_class", "ldm_tiny_uncond", "ldm_tiny_flow"}


def test_runs_do_not_share_a_folder():
    runs = [config.run for config in (*STAGE_1.values(), *STAGE_2.values())]
    assert len(set(runs)) == len(runs)
