import json

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
