"""A pickled command in every place from which weights, states or caches are read: it never runs."""

import contextlib
import json
import pickle

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from autoencoder import backbones, saved
from autoencoder.base import AutoencoderError
from conditioning import ConditioningError, PretrainedTextConfig, build
from conditioning.bpe import save_tokenizer, train_tokenizer
from ldm_kit.config import UserError
from ldm_kit.data import archive_rows, latents, tensor_cache
from ldm_kit.data.images import InMemory, Record
from ldm_kit.data.openmoji import dataset
from ldm_kit.data.shapes.dataset import ShapesConfig
from ldm_kit.data.shapes.dataset import load_all as load_shapes
from ldm_kit.training import checkpoint
from tests.security.payload import KINDS, plant

PICTURES = InMemory([Record("a", "", None)], [], torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "print")
CLIP = {"model_type": "clip_text_model", "architectures": ["CLIPTextModel"], "hidden_size": 16}
REFUSALS = (UserError, AutoencoderError, ConditioningError)


def of_checkpoint(folder, evil):
    path = checkpoint.write(
        folder / "checkpoint-00000001", lambda draft: evil(draft / "model" / "denoiser.safetensors")
    )
    checkpoint.verify(path)  # whoever plants it can write a manifest too
    try:
        checkpoint.load_tensors(path / "model" / "denoiser.safetensors")
    except SafetensorError as error:  # behind a manifest that verifies, nobody else comes here
        raise UserError("refused") from error


def of_latents(folder, evil):
    evil(folder / "latents-00000.safetensors")
    latents.cached(folder, PICTURES, lambda x: (x, x), "key", flip=False)


def of_states(folder, evil):
    evil(folder / f"{'k' * 32}.safetensors")
    made = tensor_cache.cached(folder, "k" * 64, lambda: {"states": torch.ones(1)})
    assert made["states"] == 1, "damaged states are made anew"


def of_openmoji(folder, evil):
    evil(dataset._pixels_file(folder / "set"))
    (folder / "set.json").write_text(json.dumps({"records": [], "pixels_sha256": "0"}))
    assert dataset._read_cache(folder / "set", "key") is None


def of_rendered_pictures(folder, evil):
    shapes = ShapesConfig(resolution=8, count=2, cache=folder)
    load_shapes(shapes)
    (file,) = (folder / "rendered").iterdir()
    evil(file)
    assert len(load_shapes(shapes).pictures([0, 1])) == 2, "damaged pictures are rendered again"


def of_an_index(folder, evil):
    assert archive_rows.read_index(evil(folder / "index.json")) is None


def of_an_autoencoder(folder, evil):
    (folder / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"):
        evil(folder / name)
    saved.load(folder)


def of_an_autoencoder_without_safetensors(folder, evil):
    (folder / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    evil(folder / "diffusion_pytorch_model.bin")
    saved.load(folder)


def of_perceptual_weights(folder, evil):
    backbones.read_weights(str(evil(folder / "trunk.pth")))


def of_perceptual_safetensors(folder, evil):
    backbones.read_weights(str(evil(folder / "trunk.safetensors")))


def of_a_text_encoder(folder, evil):
    save_tokenizer(train_tokenizer(["a red cat", "a dog"], 520, 8), folder)
    (folder / "config.json").write_text(json.dumps(CLIP))
    for name in ("model.safetensors", "pytorch_model.bin"):
        evil(folder / name)
    build(PretrainedTextConfig(model=str(folder), length=8)).prepare(["a red cat"])


def of_a_text_encoder_without_safetensors(folder, evil):
    (folder / "config.json").write_text(json.dumps(CLIP))
    evil(folder / "pytorch_model.bin")
    build(PretrainedTextConfig(model=str(folder), length=8))


def of_open_clip(folder, evil):
    build(PretrainedTextConfig(model=f"open_clip:RN50/{evil(folder / 'open_clip_model.bin')}", length=8))


SLOTS = {name: reader for name, reader in list(globals().items()) if name.startswith("of_")}
QUIET = {"of_states", "of_openmoji", "of_rendered_pictures", "of_an_index"}  # caches that are simply made again


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slot", SLOTS)
def test_a_pickled_command_never_runs(tmp_path, slot, kind):
    marker, folder = tmp_path / "marker", tmp_path / "slot"
    folder.mkdir()
    refused = contextlib.nullcontext() if slot in QUIET else pytest.raises(REFUSALS)
    with refused as told:
        SLOTS[slot](folder, lambda path: plant(path, marker, kind))
    assert not marker.exists()
    assert told is None or len(str(told.value)) < 900


@pytest.mark.parametrize("kind", KINDS)
def test_the_payloads_are_real_ones(tmp_path, kind):
    path = plant(tmp_path / "evil", tmp_path / "marker", kind)
    if kind == "plain":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert (tmp_path / "marker").exists()


def test_a_state_of_a_module_is_tensors_alone(tmp_path):
    """What we write cannot hold code: a module's extra state would be pickled by torch.save, here it is refused."""

    class Odd(nn.Module):
        def get_extra_state(self):
            return {"code": print}

    with pytest.raises((UserError, AttributeError, TypeError, ValueError)):
        checkpoint.save_tensors(Odd().state_dict(), tmp_path / "odd.safetensors")
    assert not (tmp_path / "odd.safetensors").exists()
