"""First steps of the configs that only a GPU can train: what is trained before each, and with which overrides."""

from pathlib import Path

from benchmarks.gpu import first_steps
from ldm_kit.methods import read_run

GPU = Path("configs/gpu")


def test_a_config_is_trained_on_the_runs_that_it_builds_on(tmp_path):
    assert first_steps.prerequisites(GPU / "openmoji64_text.yaml") == {"autoencoder": GPU / "openmoji64_ae_kl.yaml"}
    assert first_steps.prerequisites(GPU / "openmoji32_prior.yaml") == {"model": GPU / "openmoji32_diffae_latents.yaml"}
    assert first_steps.prerequisites(GPU / "ae_kl_f8.yaml") == {}


def test_overrides_fit_every_config_and_keep_runs_below_the_folder(tmp_path):
    for path in sorted(GPU.glob("*.yaml")):
        run = read_run(path, first_steps.overrides(path, tmp_path, 7))
        assert run.train.steps == 7
        assert tmp_path in Path(run.run).parents
        for key in first_steps.prerequisites(path):
            assert str(getattr(run, key)).startswith(str(tmp_path))
