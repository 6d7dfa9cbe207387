"""Every config in configs/ is read, its networks are built, and its header says how to run it and what to expect."""

import re
from pathlib import Path

import pytest
import torch

from autoencoder.config import build as build_autoencoder
from autoencoder.discriminator import Discriminator
from conditioning.combined_config import CombinedConfig
from conditioning.labels import ClassConfig
from conditioning.none import NoConfig
from conditioning.pretrained import PretrainedTextConfig
from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.openmoji.dataset import OpenMojiConfig
from ldm_kit.demo import __main__ as demo
from ldm_kit.methods import read_run
from ldm_kit.methods.autoencoder import AutoencoderRun
from ldm_kit.methods.classifier import ClassifierRun
from ldm_kit.methods.consistency_config import ConsistencyRun
from ldm_kit.methods.diffae import DiffAERun
from ldm_kit.methods.latent import LatentRun
from ldm_kit.methods.latent_build import build_network
from ldm_kit.methods.pdae import PDAERun
from ldm_kit.methods.prior import PriorRun
from ldm_kit.methods.run_config import NoisedRun, RunConfig
from ldm_kit.nets.half_unet import build_half_unet
from ldm_kit.nets.unet import build_unet, takes_level

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
RUNS: dict[Path, RunConfig] = {path: read_run(path) for path in FILES}
STAGE_1 = {path: config for path, config in RUNS.items() if isinstance(config, AutoencoderRun)}
DEMO_STAGE_1 = read_run(demo.STAGE_1[1], demo.STAGE_1[2:])  # two of the configs, in the demo's own run folders
DEMO_STAGE_2 = read_run(demo.STAGE_2[1], demo.STAGE_2[2:])
STAGE_2 = {path: config for path, config in RUNS.items() if path not in STAGE_1}
DENOISERS = {path: config for path, config in STAGE_2.items() if isinstance(config, LatentRun)}
CLASSIFIERS = {path: config for path, config in STAGE_2.items() if isinstance(config, ClassifierRun)}
SEMANTIC = {path: run for path, run in STAGE_2.items() if isinstance(run, DiffAERun | PDAERun | PriorRun)}
CONSISTENCY = {path: config for path, config in STAGE_2.items() if isinstance(config, ConsistencyRun)}
MINILM_WIDTH = 384


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_file_is_of_a_known_stage():
    assert FILES
    assert set(FILES) == {*STAGE_1, *DENOISERS, *CLASSIFIERS, *SEMANTIC, *CONSISTENCY}
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
        assert judge(x).shape[:2] == (2, 1) if config.loss.adversarial else True
    assert shape == (2, config.autoencoder.latent_channels, config.autoencoder.side, config.autoencoder.side)


def latents_of(config: NoisedRun) -> tuple[int, int]:
    """Channels and side of what a run noises: its autoencoder's latents, or the pictures."""
    if config.autoencoder is None:
        return 3 if isinstance(config.data, OpenMojiConfig) else config.data.channels, config.data.resolution
    first = [stage for stage in (*STAGE_1.values(), DEMO_STAGE_1) if stage.run == config.autoencoder]
    assert len(first) == 1, f"{config.autoencoder} is the run of no config here"
    data = config.data
    if isinstance(data, FolderConfig) and data.buckets is not None:  # the autoencoder trains on squares
        step = first[0].autoencoder.resolution // first[0].autoencoder.side * config.unet.factor
        assert data.buckets.step % step == 0
        data = data.model_copy(update={"buckets": None})
    assert first[0].data == data
    return first[0].autoencoder.latent_channels, first[0].autoencoder.side


@pytest.mark.parametrize("path", DENOISERS, ids=named)
def test_denoisers_build_on_their_autoencoders_latents(path):
    config = DENOISERS[path]
    channels, side = latents_of(config)
    prompts = config.condition.prompts
    vector = config.unet.time_width if isinstance(prompts, ClassConfig) and not width(config) else None
    out = 2 * channels if config.variance == "learned_range" else channels
    with torch.device("meta"):
        unet = build_network(config, (channels, side, side), width(config), vector, pixels=3)
        x = torch.zeros(2, unet.config["in_channels"], side, side)
        more = {} if width(config) is None else {"encoder_hidden_states": torch.zeros(2, 5, width(config) or 0)}
        more |= {} if vector is None else {"class_labels": torch.zeros(2, vector)}
        more |= {"class_labels": torch.zeros(2)} if takes_level(unet) else {}
        assert unet(x, torch.zeros(2), **more).sample.shape == (2, out, side, side)
    if (picture := config.condition.picture) is not None:
        assert unet.config["in_channels"] > channels
        picture.check_size(config.data.resolution, side)


@pytest.mark.parametrize("path", CLASSIFIERS, ids=named)
def test_classifiers_build_on_their_generators_latents(path):
    config = CLASSIFIERS[path]
    channels, side = latents_of(config)
    with torch.device("meta"):
        net = build_half_unet(config.net, sample_size=side, channels=channels, classes=("a", "b", "c"))
        assert net(torch.zeros(2, channels, side, side), torch.zeros(2)).shape == (2, 3)


@pytest.mark.parametrize("path", CLASSIFIERS, ids=named)
def test_classifiers_know_the_noise_of_a_generator(path):
    config = CLASSIFIERS[path]
    generators = [other for other in DENOISERS.values() if other.autoencoder == config.autoencoder]
    assert config.schedule in [other.schedule for other in generators], "there is nothing here that it can guide"


@pytest.mark.parametrize("path", CONSISTENCY, ids=named)
def test_consistency_models_start_from_a_run_of_the_same_pictures(path):
    config = CONSISTENCY[path]
    if config.mode == "train":
        channels, side = latents_of(config)
        with torch.device("meta"):
            unet = build_unet(config.unet, sample_size=side, channels=channels, cross_width=width(config))
        assert unet.config["out_channels"] == channels
        assert config.latent_run().unet == config.unet
        return
    (start,) = [other for other in (*DENOISERS.values(), DEMO_STAGE_2) if other.run == config.base]
    assert start.data == config.data
    assert width(start) is not None or not isinstance(config.guidance, tuple)


def test_there_is_a_consistency_config_of_every_mode_and_a_tiny_one():
    assert {path.stem for path in CONSISTENCY} == {"tune", "distill", "train", "tiny"}
    assert {config.mode for config in CONSISTENCY.values()} == {"tune", "distill", "train"}


def width(config: LatentRun | ConsistencyRun) -> int | None:
    match config.condition.prompts:
        case NoConfig():
            return None
        case PretrainedTextConfig():
            return MINILM_WIDTH
        case ClassConfig(form="vector"):
            return None
        case CombinedConfig() as combined:
            return max(member.width for member in combined.members)
        case ClassConfig() | _:
            return config.condition.prompts.width


@pytest.mark.parametrize("path", FILES, ids=named)
def test_headers(path):
    text = path.read_text(encoding="utf-8")
    script = "train_ae.py" if path in STAGE_1 else "train_ldm.py"
    assert text.startswith(f"# Command:   accelerate launch {script} {named(path)}")
    assert re.search(r"^# Hardware:  \S.* Time: \S.*\.$", text, re.M)
    assert re.search(r"^# Expected:  \S.*\.$", text, re.M)
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("folder", ["openmoji"])
def test_a_tiny_config_of_every_kind(folder):
    tiny = {path.stem for path in FILES if path.parent.name == folder and "tiny" in path.stem}
    assert tiny == {
        *("ae_tiny", "ae_tiny_vq", "classifier_tiny"),
        *("ldm_tiny", "ldm_tiny_class", "ldm_tiny_uncond", "ldm_tiny_flow"),
        *("ldm_tiny_inpaint", "ldm_tiny_text_class", "ldm_tiny_image", "prior_tiny_image"),
    }


def test_runs_do_not_share_a_folder():
    runs = [config.run for config in (*STAGE_1.values(), *STAGE_2.values())]
    assert len(set(runs)) == len(runs)


def test_pixels_have_no_first_stage_and_a_tiny_config():
    pixels = {path.stem: config for path, config in DENOISERS.items() if path.parent.name == "pixels"}
    assert {"tiny", "digits8", "digits28_class"} <= set(pixels)
    assert all(config.autoencoder is None and not config.flip for config in pixels.values())
    assert pixels["tiny"].train.steps < 10
    assert RUNS[ROOT / "configs/gpu/openmoji32_adm.yaml"].variance == pixels["tiny"].variance == "learned_range"


UNMEASURED = {
    "folder/ldm_text",
    *("pixels/digits28_class", "shapes/ae_kl", "shapes/ldm_minilm", "shapes/ldm_text"),
}
"""Configs for a processor that have not been trained to the end; to be emptied, and not to be added to."""


def test_configs_that_have_not_been_trained_are_for_gpus_or_known():
    stated = {path for path in FILES if "not yet" in path.read_text(encoding="utf-8")}
    known = {ROOT / "configs" / f"{name}.yaml" for name in UNMEASURED}
    assert {path for path in stated if path.parent.name != "gpu"} == known
