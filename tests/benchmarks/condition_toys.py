"""Few faces and toy runs, for tests of the benchmark of conditions."""

from dataclasses import replace

import pytest

from benchmarks.claims import condition_data, condition_judge, condition_masks
from benchmarks.claims.condition_data import faces, small_faces
from benchmarks.claims.condition_judge import face_judge
from benchmarks.claims.condition_masks import factor_extents
from benchmarks.claims.condition_runs import CONFIGS, VARIANTS
from benchmarks.claims.condition_variations import probed
from benchmarks.claims.paper_runs import Runs, Variant
from benchmarks.claims.paper_ways import Bench
from ldm_kit.data.faces.dataset import FacesConfig
from ldm_kit.metrics.factor_reader import ReaderConfig
from tests.conditioning.image_toys import timm_weights

TINY = (
    "train.steps=1",
    "train.batch_size=4",
    "log.max_heldout=4",
    "log.pictures=2",
)


@pytest.fixture(scope="module")
def few_faces():
    """Few faces and a reader that has hardly been trained, in place of the benchmark's."""
    config = FacesConfig(source="faces", resolution=32, count=60, heldout=0.4)
    caches = [faces, small_faces, face_judge, factor_extents, condition_judge._features, probed]
    with pytest.MonkeyPatch.context() as patch:
        for module in (condition_data, condition_judge, condition_masks):
            patch.setattr(module, "FACES", config)
        patch.setattr(condition_judge, "READER", ReaderConfig(width=2, epochs=1, count=64))
        for each in caches:
            each.cache_clear()
        yield config
    for each in caches:
        each.cache_clear()


@pytest.fixture(scope="module")
def bench(few_faces, tmp_path_factory):
    """A bench of toy runs of the benchmark's variants."""
    small = (
        "autoencoder.widths=[8,8,8]",
        "perceptual={spec: none}",
        "loss.perceptual_weight=0",
        "loss.perceptual_every=1",
    )
    data = f"data.count={few_faces.count}", f"data.heldout={few_faces.heldout}"
    encoder = timm_weights(tmp_path_factory.mktemp("encoder"))[1]
    image = replace(VARIANTS["image"], overrides=(*VARIANTS["image"].overrides, f"condition.model={encoder}"))
    variants = {**VARIANTS, "first-stage": Variant("faces_kl", (*small, *data), shared=True), "image": image}
    return Bench(Runs(tmp_path_factory.mktemp("conditions"), range(1), TINY, variants, CONFIGS), 6)
