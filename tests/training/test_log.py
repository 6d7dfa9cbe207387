import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ldm_kit.training.log import Log, LogConfig, last_evaluation
from tests.training.helpers import CLASSIFIER, picture_folder, play, settings
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


def test_a_line_is_json_whatever_its_numbers_are(tmp_path):
    toy = trainer(Toy(), steps=3)
    log = Log(toy.accelerator, tmp_path, LogConfig(tensorboard=False), first=0, total=3)
    log.write(1, {"net_grad_norm": float("inf"), "low": -float("inf"), "none": float("nan"), "loss": 1.25})
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line == {"step": 1, "net_grad_norm": None, "low": None, "none": None, "loss": 1.25}


def test_tensorboard_drops_the_steps_that_are_made_again(tmp_path):
    pictures = picture_folder(tmp_path / "pictures", count=8)
    config = settings(CLASSIFIER, pictures, tmp_path / "run", "log.tensorboard=true", "train.checkpoint_every=1")

    def logged(resume, until, *values):
        runs = []
        play(config, resume, until, opened=runs.append)
        for step, value in values:
            runs[0].accelerator.log({"loss": value}, step=step)
        runs[0].accelerator.end_training()

    logged(None, 1, (1, 1.0), (2, 2.0), (3, 3.0))
    logged("latest", 2, (2, 2.5))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 2.5)]


def test_the_last_evaluation_is_read_whatever_follows_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_evaluation(path) == {}
    lines = ['{"step": 1, "heldout_loss": 0.5, "heldout_psnr": 20.0}', '{"step": 2, "heldout_loss": 0.25, "lr": 0.1}']
    path.write_text(
        "\n".join([*lines, '{"step": 3, "heldout_loss": null}', '{"step": 3, "lr": 0.1}', '{"step": 4, "he'])
    )
    assert last_evaluation(path) == {"heldout_loss": 0.25}
