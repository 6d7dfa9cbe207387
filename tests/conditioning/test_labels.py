"""Class labels as a token, or as a vector."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ModelMixin

from conditioning import ClassConditioner, ClassConfig, ClassEmbedder, ConditioningError, build, drop, load, save

CLASSES = ["cat", "dog", "hot dog"]


@pytest.fixture
def conditioner() -> ClassConditioner:
    return build(ClassConfig(width=8), classes=CLASSES)


def test_names_and_indices_are_the_same_row(conditioner):
    labels = conditioner.prepare(["dog", 1, "", 3, torch.tensor(2)])["labels"]
    assert labels.tolist() == [1, 1, 3, 3, 2]
    assert conditioner(labels).tokens.shape == (5, 1, 8)
    assert conditioner.width == 8


def test_class_names_are_those_of_the_rows(conditioner):
    """Also that of the null class, the row after the last class; no index counts from the end."""
    assert conditioner.class_names(["dog", 0, 2, "", 3]) == ["dog", "cat", "hot dog", "", ""]
    for unknown in (4, -1, "bird"):
        with pytest.raises(ConditioningError):
            conditioner.class_names([unknown])


def test_an_unknown_name_is_told_the_nearest(conditioner):
    with pytest.raises(ConditioningError, match=r"unknown class 'hotdog'.*hot dog"):
        conditioner.prepare(["hotdog"])
    with pytest.raises(ConditioningError, match=r"0\.\.3 .* got 4"):
        conditioner.prepare([4])


@pytest.mark.parametrize("classes", [[], ["a", "a"], ["a", ""]])
def test_bad_class_lists_are_refused(classes):
    with pytest.raises(ConditioningError):
        build(ClassConfig(), classes=classes)


def test_the_null_is_learned_and_dropping_gives_it(conditioner):
    inputs = drop(conditioner.prepare(["cat", "dog"]), conditioner.null_inputs(), torch.tensor([True, False]))
    tokens = conditioner(**inputs).tokens
    assert torch.equal(tokens[:1], conditioner(**conditioner.null_inputs()).tokens)
    tokens.sum().backward()
    touched = conditioner.class_encoder.embedding.weight.grad.abs().sum(dim=1) > 0
    assert touched.tolist() == [False, True, False, True]


def test_the_saved_folder_opens_with_its_names(conditioner, tmp_path):
    assert save(conditioner, tmp_path) == {"class_encoder": ("conditioning.labels", "ClassEmbedder")}
    assert json.loads((tmp_path / "class_encoder/config.json").read_text())["classes"] == CLASSES
    assert (tmp_path / "class_encoder/diffusion_pytorch_model.safetensors").is_file()
    again = load(tmp_path)
    inputs = conditioner.prepare(CLASSES)
    assert torch.equal(again(**again.prepare(CLASSES)).tokens, conditioner(**inputs).tokens)
    assert list(again.trainable) == ["class_encoder"]
    assert isinstance(again.trainable["class_encoder"], ModelMixin)


@pytest.fixture
def vectors() -> ClassConditioner:
    return build(ClassConfig(form="vector"), classes=CLASSES, time_width=12)


def test_a_vector_is_as_wide_as_the_time_embedding_unless_told(vectors):
    assert (vectors.width, vectors.vector_width) == (None, 12)
    condition = vectors(**vectors.prepare(["dog", ""]))
    assert condition.tokens is None
    assert torch.equal(condition.vector, vectors.class_encoder.embedding.weight[[1, 3]])
    assert build(ClassConfig(form="vector", width=5), classes=CLASSES, time_width=12).vector_width == 5
    with pytest.raises(ConditioningError, match="need a width"):
        build(ClassConfig(form="vector"), classes=CLASSES)


def test_a_token_is_512_wide_unless_told():
    conditioner = build(ClassConfig(), classes=CLASSES, time_width=12)
    assert (conditioner.width, conditioner.vector_width) == (512, None)


def test_vectors_are_saved_as_such(vectors, tmp_path):
    save(vectors, tmp_path)
    again = load(tmp_path)
    assert (again.width, again.vector_width) == (None, 12)
    assert torch.equal(again(**again.prepare(CLASSES)).vector, vectors(**vectors.prepare(CLASSES)).vector)


def test_folders_from_before_vectors_are_tokens_with_a_null(conditioner, tmp_path):
    save(conditioner, tmp_path)
    path = tmp_path / "class_encoder/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: config[name] for name in config if name not in ("form", "null")}))
    assert load(tmp_path)(**conditioner.null_inputs()).tokens.shape == (1, 1, 8)


def test_without_a_null_row_nothing_can_be_guided(tmp_path):
    save(ClassConditioner(ClassEmbedder(CLASSES, 4, form="vector", null=False)), tmp_path)
    again = load(tmp_path)
    assert again.class_encoder.embedding.weight.shape == (3, 4)
    assert again.prepare(CLASSES)["labels"].tolist() == [0, 1, 2]
    for ask in (again.null_inputs, lambda: again.prepare(["cat", ""]), lambda: again.prepare([3])):
        with pytest.raises(ConditioningError, match=r"never learned a null class.* guidance scale of 1"):
            ask()


class LabelPipeline(DiffusionPipeline):
    """The least pipeline with a class encoder."""

    def __init__(self, class_encoder, scheduler):
        super().__init__()
        self.register_modules(class_encoder=class_encoder, scheduler=scheduler)


def test_diffusers_loads_it_as_a_component(conditioner, tmp_path):
    LabelPipeline(conditioner.class_encoder, DDIMScheduler()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["class_encoder"]
    entries = save(conditioner, tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text()) | entries
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    pipeline = LabelPipeline.from_pretrained(tmp_path)
    assert isinstance(pipeline.class_encoder, ClassEmbedder)
    assert pipeline.class_encoder.config.classes == CLASSES
