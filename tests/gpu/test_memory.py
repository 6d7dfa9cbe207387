"""Real out-of-memory errors of CUDA: the kit goes on with halves, and the result is that of the whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import pytest
import torch
from torch import Tensor

from ldm_kit.memory import BatchSize, free_memory, is_out_of_memory
from ldm_kit.methods.latent import Latent
from tests.gpu.devices import measured, needs_cuda, rehearsed, trainer_of, training_on, without_dropout
from tests.training.helpers import STAGE_2, picture_folder, settings
from tests.training.test_out_of_memory import with_room_for

MEBIBYTE = 2**20
WIDE = (
    "unet.widths=[64, 64]",
    "unet.attention_levels=[false, false]",
    "unet.norm_num_groups=8",
    "unet.dropout=0",
    "data.resolution=64",
    "train.batch_size=64",
    "train.channels_last=false",
)
TINY = ("unet.dropout=0", "train.batch_size=8")


@contextmanager
def room(size: int) -> Iterator[None]:
    """Leave this many bytes of CUDA memory beyond those that are taken; afterwards all of it is free again."""
    free_memory()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + size) / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        free_memory()


def test_what_cuda_raises_is_known(device):
    needs_cuda(device)
    with room(64 * MEBIBYTE), pytest.raises(torch.OutOfMemoryError) as raised:
        torch.zeros(1024 * MEBIBYTE, dtype=torch.uint8, device=device)
    assert is_out_of_memory(raised.value)
    assert torch.zeros(256 * MEBIBYTE, dtype=torch.uint8, device=device).sum().item() == 0


def test_a_pass_without_gradients_is_halved_until_it_fits(device, capsys):
    """Each of eight samples takes 64 MiB; there is room for less than four."""
    needs_cuda(device)
    samples = torch.arange(8.0)

    def compute(some: Tensor) -> Tensor:
        wide = some.to(device)[:, None].expand(-1, 16 * MEBIBYTE) * 1.0
        return wide.amax(1).cpu()

    size = BatchSize(8)
    with room(230 * MEBIBYTE):
        parts = list(size.map(samples, compute))
    assert [len(part) for part in parts] == [2, 2, 2, 2]
    assert size.size == 2
    assert torch.equal(torch.cat(parts), samples)
    said = capsys.readouterr().err
    assert "out of memory with 8 samples at once: it goes on with 4" in said
    assert "out of memory with 4 samples at once: it goes on with 2" in said


@rehearsed
def test_a_training_step_is_halved_and_stays_the_same(device, tmp_path, monkeypatch, capsys):
    """Room for the half is measured; on the CPU memory is said to be short where there are more than four pictures."""
    wide = device.type == "cuda"
    pictures = picture_folder(tmp_path / "pictures", side=64 if wide else 16)
    given = WIDE if wide else TINY

    def config(*more: str):
        return settings(STAGE_2, pictures, tmp_path / "run", *given, *more)

    batch = config().train.batch_size
    with training_on(device), without_dropout():
        whole, half = (
            measured(trainer_of(config(f"train.micro_batch={size}"), tmp_path), device) for size in (batch, batch // 2)
        )
        running = trainer_of(config(), tmp_path)
        if wide:
            assert half.peak < 0.8 * whole.peak
            taken = torch.cuda.memory_allocated()
            with room((2 * whole.peak + 3 * half.peak) // 5 - taken):
                steps = list(islice(running.train(running.task.batches), 2))
        else:
            monkeypatch.setattr(Latent, "losses", with_room_for(batch // 2, (0, False), Latent.losses))
            steps = list(islice(running.train(running.task.batches), 2))
    assert running.split.size <= batch // 2
    assert "out of memory at step 4: it is made again with" in capsys.readouterr().err
    first = steps[0]
    for name, norm in whole.norms.items():
        assert float(first.norms[name]) == pytest.approx(norm, rel=1e-3)
        assert float(first.logs[f"{name}_loss"]) == pytest.approx(whole.losses[name], rel=1e-4)
        assert half.error(whole, name) < 1e-3
