"""A text encoder of one's own, and that plain transformers and diffusers see the same states."""

import json
import logging
import random

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from pydantic import ValidationError
from transformers import CLIPTextModel, CLIPTokenizer

from conditioning import ConditioningError, TextConditioner, TextConfig, build, drop, load, save
from conditioning.bpe import train_tokenizer

WORDS = [
    "red",
    "green",
    "smiling",
    "crying",
    "face",
    "cat",
    "dog",
    "with",
    "and",
    "a",
    "the",
    "of",
    "hearts",
    "it's",
    "café",
    "3d",
]
CAPTIONS = [" ".join(random.Random(i).choices(WORDS, k=1 + i % 7)) for i in range(200)]
AWKWARD = [
    "",
    "A Red CAT",
    "a   cat\n\tsits",
    "it's 3 o'clock!!",
    "naïve ÉCOLE 猫 🐈‍⬛",
    "don't",
    "q",
    "<|endoftext|>",
    "\x00",
]
CONFIG = TextConfig(width=16, layers=2, heads=2, vocabulary=600, length=12)


@pytest.fixture(scope="module")
def conditioner() -> TextConditioner:
    torch.manual_seed(0)
    return build(CONFIG, captions=CAPTIONS)


@pytest.fixture(scope="module")
def folder(conditioner, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    assert save(conditioner, path) == {
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
    }
    return path


def states(conditioner, captions) -> torch.Tensor:
    with torch.no_grad():
        return conditioner(**conditioner.prepare(captions)).tokens


def test_every_token_is_known_and_every_caption_survives(conditioner):
    tokenizer = conditioner.tokenizer
    assert len(tokenizer) <= CONFIG.vocabulary
    for caption in AWKWARD[:-2]:
        ids = tokenizer(caption).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in ids[1:-1]
    assert tokenizer.decode(tokenizer("A Red  CAT").input_ids, skip_special_tokens=True) == "a red cat"


def test_words_of_the_captions_are_single_tokens(conditioner):
    assert len(conditioner.tokenizer("smiling").input_ids) == 3
    assert len(conditioner.tokenizer("zyzzyva").input_ids) > 5


def test_the_tokenizer_depends_on_the_captions_not_on_their_order(conditioner):
    def content(tokenizer):
        return json.loads(tokenizer.backend_tokenizer.to_str())["model"]

    for seed in range(3):
        shuffled = random.Random(seed).sample(CAPTIONS, len(CAPTIONS))
        assert content(train_tokenizer(shuffled, 600, 12)) == content(conditioner.tokenizer)


def test_ties_between_merges_do_not_break_by_chance():
    """Of thirty words that occur equally often nearly all pairs of letters tie."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=4)) for _ in range(30)]
    models = set()
    for _ in range(3):
        captions = [" ".join(draw.sample(words, len(words)))] * 2
        models.add(train_tokenizer(captions, 574, 12).backend_tokenizer.to_str())
    assert len(models) == 1


def test_special_ids_are_in_the_config(conditioner):
    config, tokenizer = conditioner.text_encoder.config, conditioner.tokenizer
    assert (config.bos_token_id, config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert config.pad_token_id == tokenizer.pad_token_id
    assert config.vocab_size == len(tokenizer)
    assert config.eos_token_id != 2  # which transformers takes for a broken config
    assert config._attn_implementation == "sdpa"


def test_plain_transformers_opens_the_folder_exactly(conditioner, folder):
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    assert tokenizer.model_max_length == CONFIG.length
    ids = tokenizer(AWKWARD, padding="max_length", max_length=12, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(ids, conditioner.prepare(AWKWARD)["ids"])
    with torch.no_grad():
        assert torch.equal(encoder(ids)[0], states(conditioner, AWKWARD))


def test_saving_again_writes_the_same_files(conditioner, folder, tmp_path):
    again = load(folder)
    for part in (conditioner, again):
        part.prepare(AWKWARD)  # which leaves padding and truncation in the tokenizers
        save(part, tmp_path)
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
            assert (tmp_path / "tokenizer" / name).read_bytes() == (folder / "tokenizer" / name).read_bytes()
        for name in ("config.json", "model.safetensors"):
            assert (tmp_path / "text_encoder" / name).read_bytes() == (folder / "text_encoder" / name).read_bytes()
    assert str(folder) not in (folder / "text_encoder/config.json").read_text()


def test_older_readers_find_vocab_and_merges(conditioner, folder):
    vocab = json.loads((folder / "tokenizer/vocab.json").read_text())
    merges = (folder / "tokenizer/merges.txt").read_text().splitlines()[1:]
    again = CLIPTokenizer(vocab=vocab, merges=[tuple(merge.split(" ")) for merge in merges])
    assert again(AWKWARD).input_ids == conditioner.tokenizer(AWKWARD).input_ids


def test_our_loader_is_exact(conditioner, folder):
    again = load(folder)
    assert isinstance(again, TextConditioner)
    assert torch.equal(states(again, AWKWARD), states(conditioner, AWKWARD))
    assert list(again.trainable) == ["text_encoder"]
    assert again.width == 16


def pipeline(text_encoder, tokenizer) -> StableDiffusionPipeline:
    block = {"block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1}
    vae = AutoencoderKL(down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), **block)
    unet = UNet2DConditionModel(
        sample_size=4,
        cross_attention_dim=16,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        **block,
    )
    parts = {"vae": vae, "unet": unet, "text_encoder": text_encoder, "tokenizer": tokenizer}
    return StableDiffusionPipeline(
        **parts,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def test_plain_stable_diffusion_computes_our_states_bit_for_bit(conditioner, tmp_path):
    save(conditioner, tmp_path)
    pipeline(conditioner.text_encoder, conditioner.tokenizer).save_pretrained(tmp_path / "whole")
    for part in ("text_encoder", "tokenizer"):
        (tmp_path / part).replace(tmp_path / f"whole/{part}-ours")
        for file in (tmp_path / f"whole/{part}").iterdir():
            file.unlink()
        (tmp_path / f"whole/{part}").rmdir()
        (tmp_path / f"whole/{part}-ours").rename(tmp_path / f"whole/{part}")
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "whole", safety_checker=None)
    prompts = ["a red cat", "it's a smiling FACE of hearts"]
    with torch.no_grad():
        yes, no = plain.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=True)
    assert torch.equal(yes, states(conditioner, prompts))
    with torch.no_grad():
        assert torch.equal(no, conditioner(**conditioner.null_inputs(2)).tokens)
    image = plain("a red cat", num_inference_steps=1, height=8, width=8, output_type="np").images
    assert image.shape == (1, 8, 8, 3)


def test_a_vocabulary_too_small_for_every_caption_is_refused_with_the_reason():
    with pytest.raises(ValidationError, match="513 tokens cannot write every caption; expected 514 or more"):
        TextConfig(vocabulary=513)
    assert TextConfig(vocabulary=514).vocabulary == 514


def test_long_captions_are_cut_counted_and_end_with_the_end(conditioner, caplog):
    with caplog.at_level(logging.WARNING, logger="conditioning"):
        ids = conditioner.prepare(["cat " * 50, "cat", "dog " * 11])["ids"]
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 3 captions are longer than 12 tokens; their ends are cut"
    ]
    assert ids.shape == (3, 12)
    assert ids[0, -1] == conditioner.tokenizer.eos_token_id


def test_dropping_gives_the_null_of_sampling_bit_for_bit(conditioner):
    inputs = drop(conditioner.prepare(CAPTIONS[:3]), conditioner.null_inputs(), torch.tensor([False, True, False]))
    assert torch.equal(inputs["ids"][1:2], conditioner.prepare([conditioner.null])["ids"])
    assert torch.equal(inputs["ids"][[0, 2]], conditioner.prepare([CAPTIONS[0], CAPTIONS[2]])["ids"])


def test_every_parameter_learns(conditioner):
    inputs = conditioner.prepare(CAPTIONS)
    conditioner(**inputs).tokens.square().mul(torch.randn(16)).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in conditioner.parameters())
    conditioner.zero_grad()


def test_mistakes_are_told():
    with pytest.raises(ConditioningError, match="needs captions"):
        build(CONFIG)
    with pytest.raises(ConditioningError, match="must be a string, got 3"):
        build(CONFIG, captions=["a", 3])
    with pytest.raises(ValueError, match="heads must divide width"):
        TextConfig(width=10, heads=4)
