"""How models without sampling.json are sampled: consistency models are known by their scheduler."""

import json

import pytest

from ldm_kit.models.saved_sampling import SavedSampling


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (["diffusers", "LCMScheduler"], {"solver": "consistency", "steps": 4}),
        (["diffusers", "FlowMatchLCMScheduler"], {"solver": "consistency", "steps": 4}),
        (
            ["diffusers", "CMStochasticIterativeScheduler"],
            {"solver": "consistency", "steps": 2, "guidance_scale": 1.0},
        ),
        (["diffusers", "DDIMScheduler"], {}),
        (["elsewhere", "LCMScheduler"], {}),
        (None, {}),
    ],
)
def test_a_scheduler_tells_the_sampler(tmp_path, scheduler, expected):
    (tmp_path / "model_index.json").write_text(json.dumps({"scheduler": scheduler}))
    assert SavedSampling.read(tmp_path).sampling == expected


def test_what_was_saved_has_the_last_word(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"scheduler": ["diffusers", "LCMScheduler"]}))
    (tmp_path / "sampling.json").write_text(json.dumps({"sampling": {"steps": 7}}))
    assert SavedSampling.read(tmp_path).sampling == {"steps": 7}


def test_a_part_of_a_model_has_no_index(tmp_path):
    assert not SavedSampling.read(tmp_path).sections
