"""Passes without gradients: memory that runs out halves their batches, and what they compute stays the same."""

from functools import partial

import pytest
import torch

from autoencoder.base import encode
from conditioning.none import NoCondition
from ldm_kit.data import latents
from ldm_kit.data.images import InMemory, Record
from ldm_kit.data.tensors import from_tensor
from ldm_kit.demo.show import reconstruct_all
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.editing import code_files
from ldm_kit.memory import BatchSize, is_out_of_memory
from ldm_kit.methods import check_run
from ldm_kit.methods.train import open_method
from ldm_kit.metrics.fidelity import embed
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.prior import CodePrior
from ldm_kit.models.protocol import encode_pictures
from ldm_kit.nets.mlp_skip import SkipMLP
from ldm_kit.training.config import TrainConfig
from tests.methods.semantic_toys import DIFFAE, base, checked, opened, two_factors
from tests.models.test_semantic_model import model_of
from tests.scarce import room_for

STAGE_1 = {
    "run": "runs/none",
    "autoencoder": {
        "kind": "vq",
        "resolution": 16,
        "widths": [8, 16],
        "latent_channels": 2,
        "codes": 8,
        "norm_num_groups": 4,
        "middle_attention": False,
    },
    "perceptual": {"spec": "none"},
    "train": {"steps": 1, "batch_size": 4},
    "log": {"pictures": 7},
}


def pixels(count=11, side=16):
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0)).byte()


def pictures(side=8):
    return InMemory([Record(f"{i}", "", 0) for i in range(11)], ["all"], pixels(side=side), "made up")


def test_a_batch_that_does_not_fit_is_done_in_halves_and_the_size_is_remembered(capsys):
    asked, size = [], BatchSize(8)

    def compute(indices):
        asked.append((indices.start, indices.stop))
        if len(indices) > 3:
            raise torch.OutOfMemoryError("as if")
        return list(indices)

    assert list(size.batches(7, compute)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert asked == [(0, 7), (0, 3), (3, 6), (6, 7)]
    assert list(size.batches(4, compute)) == [[0, 1, 2], [3]]
    assert capsys.readouterr().err == "out of memory with 7 samples at once: it goes on with 3\n"


def test_one_sample_that_does_not_fit_and_other_errors_end_the_pass():
    def fail(error, indices):
        raise error

    with pytest.raises(torch.OutOfMemoryError, match="one sample at a time: no room"):
        list(BatchSize(4).batches(9, partial(fail, MemoryError("no room"))))
    with pytest.raises(RuntimeError, match="shapes"):
        list(BatchSize(4).batches(9, partial(fail, RuntimeError("shapes"))))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator: can't allocate memory"))


def test_larger_pictures_are_fewer_at_once_unless_a_number_is_given():
    assert [BatchSize.for_pictures(None, side).size for side in (8, 128, 256, 512, 4096)] == [64, 64, 32, 8, 1]
    assert BatchSize.for_pictures(100, 512).size == 100
    assert BatchSize.of(size := BatchSize(5)) is size
    assert TrainConfig(steps=1, batch_size=1).eval_batch is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("memory")


@pytest.fixture(scope="module")
def models(folder):
    """What the passes below use, each made once."""
    base(folder / "classes", "classes")
    vae = Pipeline.load(base(folder / "latents", "latents")).vae
    torch.manual_seed(0)
    config = check_run(
        {**STAGE_1, "method": "autoencoder", "data": {"source": "given", "resolution": 16, "channels": 3}}, "test"
    )
    stage1 = open_method(config, from_tensor(pixels(40), heldout=0.3))
    prior = CodePrior(SkipMLP(z_width=4, condition_width=None, hidden=8, layers=2), NoCondition(), ScheduleConfig())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDM_KIT_CACHE", str(folder / "cache"))
        diffae = opened(checked(DIFFAE, two_factors(folder / "set", 30), folder / "run"))
    return {
        "vae": vae,
        "classes": Pipeline.load(folder / "classes"),
        "stage 1": stage1,
        "diffae": diffae,
        "semantic": model_of("pixels", folder),
        "latent codes": model_of("latents", folder / "coded"),
        "prior": prior,
    }


def moments(models, folder):
    name = folder / f"cache-{len(list(folder.iterdir()))}"
    cached = latents.cached(name, pictures(), partial(encode, models["vae"]), "key", flip=True)
    return [cached.mean, cached.logvar]


def stage_1(models, folder):
    stage1 = models["stage 1"]
    stage1.__dict__.pop("eval_batch", None)
    statistics = stage1._statistics()
    return [torch.tensor([*stage1.heldout_metrics().values()]), statistics.mean, statistics.std]


def grid(models, folder):
    models["stage 1"].__dict__.pop("eval_batch", None)
    return [torch.tensor(list(models["stage 1"].samples().image.tobytes())) / 255]


def evaluation(models, folder):
    diffae = models["diffae"]
    diffae.__dict__.pop("eval_batch", None)
    return [torch.tensor([*diffae.evaluate(1, folder).values()])]


def samples(models, folder):
    options = SamplingOptions(steps=3, guidance_scale=2, solver="ddpm")
    return [torch.cat([*models["classes"].generate(["b", "t"] * 3, range(6), options)]) / 255]


def decoded(models, folder):
    model = models["latent codes"]
    z = model.encode(pixels(5, 8))
    return [z, model.decode(z, model.invert(pixels(5, 8), z, 2), 2) / 255]


def learned(models, folder):
    return [encode_pictures(models["semantic"], pictures())]


def coded(models, folder):
    file = code_files.encode(models["semantic"], pictures(), 2)
    assert file.x_T is not None
    return [file.z, file.x_T]


def codes(models, folder):
    return [models["prior"].sample(range(7), 3)]


def features(models, folder):
    return [embed(lambda x: encode(models["vae"], x / 127.5 - 1).mean.flatten(1), pixels(7, 8).float())]


def quality(models, folder):

    _, *measures = reconstruct_all(models["vae"], pictures())
    return measures


PASSES = [moments, stage_1, grid, evaluation, samples, decoded, learned, coded, codes, features, quality]


@torch.no_grad()
@pytest.mark.parametrize("compute", PASSES, ids=lambda compute: compute.__name__)
def test_a_pass_that_runs_out_of_memory_computes_the_same(compute, models, folder):
    expected = compute(models, folder)
    with room_for(2) as refused:
        found = compute(models, folder)
    assert refused, "there was room for all of it"
    assert len(refused) <= 4, "what fits is found anew for every batch"
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1.5 / 255, rtol=1e-4)
