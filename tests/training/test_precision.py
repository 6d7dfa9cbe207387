"""Which precision `auto` stands for, on processors with and without native bfloat16."""

import pytest
import torch

from ldm_kit.training import precision
from ldm_kit.training.config import TrainConfig
from ldm_kit.training.muon import orthogonal
from ldm_kit.training.precision import resolve_precision


@pytest.fixture(params=[False, True], ids=["without", "with"])
def native(request, monkeypatch):
    monkeypatch.setattr(precision, "is_bf16_fast", lambda device: request.param)
    return request.param


def test_auto_is_bf16_where_it_is_native(native):
    config = TrainConfig(steps=1, batch_size=1, precision="auto")
    assert resolve_precision(config.precision, "cpu") == ("bf16" if native else "no")


@pytest.mark.parametrize("given", ["no", "bf16", "fp16"])
def test_a_given_precision_stays(native, given):
    assert resolve_precision(given, "cpu") == given


def test_muon_moves_singular_values_alike_in_both(native):
    x = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    out = orthogonal(x)
    assert out.dtype is (torch.bfloat16 if native else torch.float32)
    values = torch.linalg.svdvals(out.float())
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_the_processor_itself_is_asked():
    assert precision.is_bf16_fast("cpu") == torch.ops.mkldnn._is_mkldnn_bf16_supported()
