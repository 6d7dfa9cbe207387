import json

import pytest

from ldm_kit.training.log import Log, LogConfig
from tests.training.toy import Numbers, Toy, trainer


def test_a_line_every_so_often_and_at_the_last_step(tmp_path):
    """A run shorter than `every` has a line too: its curves need one."""
    toy = trainer(Toy(), steps=3)
    log = Log(toy.accelerator, tmp_path, LogConfig(every=2, tensorboard=False), first=0, total=3)
    for step in toy.train(Numbers()):
        log.step(step)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3]
    assert all("steps_per_second" in line and "lr" in line for line in lines)


def test_a_line_holds_the_means_since_the_last_one(tmp_path):
    toy = trainer(Toy(), steps=5)
    log = Log(toy.accelerator, tmp_path, LogConfig(every=2, tensorboard=False), first=0, total=5)
    losses, norms = [], []
    for step in toy.train(Numbers()):
        losses.append(float(step.logs["net_loss"]))
        norms.append(float(step.norms["net"]))
        log.step(step)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name, values in (("net_loss", losses), ("net_grad_norm", norms)):
        expected = [(values[0] + values[1]) / 2, (values[2] + values[3]) / 2, values[4]]
        assert [line[name] for line in lines] == pytest.approx(expected, rel=1e-4)
