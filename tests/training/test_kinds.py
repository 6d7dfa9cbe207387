"""Launches that are not supported: refused before anything is built, with advice."""

import pytest
from accelerate.utils import DistributedType

from ldm_kit.config import UserError
from ldm_kit.training.launch import KNOWN, check_known, check_supported
from ldm_kit.training.session import session
from tests.training.helpers import TEXT, reset, settings

ASKED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed is not supported",
    "ACCELERATE_USE_FSDP": "FSDP is not supported",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is not supported",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config .* is not supported",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's own data parallelism is not supported",
    "ACCELERATE_IN_TPU_POD": "a TPU is not supported",
}


@pytest.mark.parametrize(("variable", "said"), ASKED.items())
def test_a_launch_that_is_not_supported_is_refused_at_the_door(tmp_path, monkeypatch, variable, said):
    reset()
    config = settings(TEXT, tmp_path, tmp_path / "run")
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match=rf"{said} \({variable} is set.*(--multi_gpu|use GPUs)"), session(config, None):
        pass
    assert not (tmp_path / "run").exists()


def test_a_tpu_is_refused_by_its_device(tmp_path, monkeypatch):
    monkeypatch.setenv("PJRT_DEVICE", "TPU")
    config = settings(TEXT, tmp_path, tmp_path / "run")
    with pytest.raises(UserError, match="a TPU is not supported"), session(config, None):
        pass


def test_plain_launches_pass():
    check_supported({})
    check_supported({"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "false", "PJRT_DEVICE": "CUDA"})
    check_supported(dict.fromkeys(ASKED, "false"))


@pytest.mark.parametrize("kind", [kind for kind in DistributedType if kind not in KNOWN])
def test_every_other_kind_is_refused_by_name(kind):
    with pytest.raises(UserError, match=rf"{kind.value} is not supported: .*--multi_gpu"):
        check_known(kind)


@pytest.mark.parametrize("kind", KNOWN)
def test_data_parallelism_is_known(kind):
    check_known(kind)
