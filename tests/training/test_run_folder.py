import contextlib
import errno
import json
import os
import signal
import time

import pytest

from ldm_kit.config import UserError
from ldm_kit.training import checkpoint, run_folder
from ldm_kit.training.log import cut_metrics
from ldm_kit.training.session import session
from tests.training.helpers import CLASSES, KL, TEXT, context, reset, settings


def hold(folder, ready):
    run_folder.Lock(folder)
    ready.set()
    time.sleep(60)


def checkpointed(folder, config, step=3):
    def fill(draft):
        (draft / "trainer_state.json").write_text(json.dumps({"config": config.model_dump(mode="json"), "step": step}))

    return checkpoint.write(folder / f"checkpoint-{step:08d}", fill)


def test_a_folder_has_one_owner_and_a_killed_one_lets_go(tmp_path):
    ready = context().Event()
    holder = context().Process(target=hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(UserError, match=rf"{tmp_path} is in use by process {holder.pid} on .*, since 20.*; expected a"):
        run_folder.Lock(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with run_folder.Lock(tmp_path):
        pass


def test_children_do_not_inherit_the_lock(tmp_path):
    lock = run_folder.Lock(tmp_path)
    heard, said = os.pipe()
    child = os.fork()  # as a data loader does
    if child == 0:
        os.write(said, b"alive")
        time.sleep(30)
        os._exit(0)
    assert os.read(heard, 5) == b"alive"
    lock.file.close()
    try:
        run_folder.Lock(tmp_path).file.close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_folder_that_cannot_be_is_told_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write to .*: Not a directory; name another run=FOLDER"):
        run_folder.Lock(tmp_path / "file" / "run")


def test_choosing_where_to_go_on(tmp_path):
    assert run_folder.resume_checkpoint(tmp_path, None) is None
    with pytest.warns(UserWarning, match="no checkpoint in .*; starting a new training run"):
        assert run_folder.resume_checkpoint(tmp_path, "latest") is None
    good = checkpointed(tmp_path, settings(KL, tmp_path, tmp_path))
    with pytest.raises(
        UserError, match=r"already holds checkpoints; add --resume latest to go on, or name another run="
    ):
        run_folder.resume_checkpoint(tmp_path, None)
    assert run_folder.resume_checkpoint(tmp_path, "latest") == run_folder.resume_checkpoint(tmp_path, str(good)) == good


def test_a_named_checkpoint_never_falls_back(tmp_path):
    config = settings(KL, tmp_path, tmp_path)
    good, bad = checkpointed(tmp_path, config, 3), checkpointed(tmp_path, config, 4)
    (bad / "trainer_state.json").unlink()
    with pytest.raises(UserError, match=r"checkpoint-00000004 is damaged: trainer_state\.json is missing"):
        run_folder.resume_checkpoint(tmp_path, str(bad))
    with pytest.raises(UserError, match="nowhere is no complete checkpoint"):
        run_folder.resume_checkpoint(tmp_path, str(tmp_path / "nowhere"))
    with pytest.warns(UserWarning, match="trying the one before"):
        assert run_folder.resume_checkpoint(tmp_path, "latest") == good


def refused(tree, tmp_path, old, new):
    folder = checkpointed(tmp_path / "old", settings(tree, tmp_path, tmp_path / "run", *old))
    run_folder.check_same_config(folder, settings(tree, tmp_path / "moved", tmp_path / "other", *new))


@pytest.mark.parametrize(
    "change",
    [
        "log.every=7",
        "train.workers=2",
        "train.keep_last=5",
        "train.checkpoint_every=3",
        "train.steps=80",
        "train.checkpointing=true",
        "train.micro_batch=4",
        "train.eval_batch=4",
        "train.compile=true",
        "train.attention=math",
        "train.channels_last=true",
        "data.max_bad_share=0.5",
        "data.memory_limit=0",
    ],
)
def test_what_changes_no_result_is_free(tmp_path, change):
    refused(KL, tmp_path, [], [change])


@pytest.mark.parametrize(
    "key",
    ["optim.lr=0.5", "train.batch_size=4", "train.precision=bf16", "seed=3", "flip=false", "loss.kl_weight=0.5"],
)
def test_what_changes_results_is_refused_by_name(tmp_path, key):
    name = key.split("=")[0]
    with pytest.raises(UserError, match=rf"cannot resume .*: {name} differs from the config it was trained with"):
        refused(KL, tmp_path, [], [key])


@pytest.mark.parametrize("change", ["sample.guidance_scale=1.5", "sample.steps=3", "sample.prompts=[a thing]"])
def test_how_grids_are_sampled_is_free(tmp_path, change):
    refused(TEXT, tmp_path, [], [change])


def test_a_path_is_free_where_the_checkpoint_knows_its_contents(tmp_path):
    old, new = (settings(CLASSES, tmp_path, tmp_path / "run", f"autoencoder={name}") for name in ("here", "there"))
    folder = checkpointed(tmp_path, old)
    with pytest.raises(UserError, match=r": autoencoder differs from"):
        run_folder.check_same_config(folder, new)
    state = folder / "trainer_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "dependencies": {"autoencoder": "0123"}}))
    run_folder.check_same_config(folder, new)


def test_every_differing_key_is_named(tmp_path):
    with pytest.raises(UserError, match=r": condition\.length, seed, unet\.widths differ from"):
        refused(TEXT, tmp_path, [], ["seed=3", "condition.length=9", "unet.widths=[8,8]"])


def older(tmp_path, change):
    """A checkpoint whose config was changed as plain text, as if by another version of the kit."""
    folder = checkpointed(tmp_path, settings(KL, tmp_path, tmp_path / "run"))
    state = folder / "trainer_state.json"
    known = json.loads(state.read_text())
    change(known["config"])
    state.write_text(json.dumps(known))
    return folder


def test_a_checkpoint_may_be_older_than_a_field_that_is_left_out(tmp_path):
    folder = older(tmp_path, lambda config: config.pop("flip"))
    run_folder.check_same_config(folder, settings(KL, tmp_path, tmp_path / "run", "flip=false"))
    with pytest.raises(UserError, match=r": flip differs from"):
        run_folder.check_same_config(folder, settings(KL, tmp_path, tmp_path / "run", "flip=true"))


def test_a_checkpoint_with_a_field_that_is_no_more_is_refused_by_its_name(tmp_path):
    folder = older(tmp_path, lambda config: config["train"].update(magic=3))
    with pytest.raises(UserError, match=r": train\.magic differs from"):
        run_folder.check_same_config(folder, settings(KL, tmp_path, tmp_path / "run"))


@pytest.mark.parametrize("optimiser", ["optim", "discriminator_optim"])
def test_a_falling_rate_pins_the_last_step(tmp_path, optimiser):
    old = [f"{optimiser}.lr_schedule=cosine"]
    with pytest.raises(UserError, match=r"train\.steps differs"):
        refused(KL, tmp_path, old, [*old, "train.steps=80"])


def test_metrics_after_the_checkpoint_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    cut_metrics(path, 3)
    assert not path.exists()
    path.write_text('{"step": 1, "a": 2}\n{"step": 3}\n{"step": 4}\n7\n{"half": \n{"ste')
    cut_metrics(path, 3)
    assert path.read_text() == '{"step": 1, "a": 2}\n{"step": 3}\n'
    assert [found.name for found in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("number", ["ENOSYS", "EOPNOTSUPP", "ENOLCK", "EINVAL"])
def test_a_file_system_without_locks_is_not_called_in_use(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr("fcntl.flock", refusing(number))
    with run_folder.Lock(tmp_path / "run"):
        assert capsys.readouterr().err.count("has no file locks") == 1
    assert (tmp_path / "run" / ".lock").read_text().startswith("process ")


@pytest.mark.parametrize(
    ("number", "words"), [("EAGAIN", "is in use by"), ("EACCES", "is in use by"), ("EIO", "cannot lock")]
)
def test_a_lock_that_is_held_or_fails_is_refused(tmp_path, monkeypatch, number, words):
    monkeypatch.setattr("fcntl.flock", refusing(number))
    with pytest.raises(UserError, match=words):
        run_folder.Lock(tmp_path / "run")


def refusing(number):
    def flock(*arguments):
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

    return flock


def test_a_run_that_is_refused_leaves_only_what_was_there(tmp_path):
    """Its folder and the parents that were made for it go; files, and folders that were there, stay."""

    def refuse(folder, file=None):
        reset()
        with contextlib.suppress(ZeroDivisionError), session(settings(KL, tmp_path, folder), None):
            assert (folder / ".lock").is_file()
            if file is not None:
                (folder / file).write_text("kept")
            raise ZeroDivisionError

    refuse(tmp_path / "a" / "b" / "run")
    assert not (tmp_path / "a").exists()
    (tmp_path / "there").mkdir()
    refuse(tmp_path / "there")
    refuse(tmp_path / "there" / "run")
    assert [path.name for path in (tmp_path / "there").iterdir()] == [".lock"]
    refuse(tmp_path / "c" / "run", "notes.txt")
    assert (tmp_path / "c" / "run" / "notes.txt").read_text() == "kept"
    reset()
    with session(settings(KL, tmp_path, tmp_path / "good"), None):
        pass
    assert (tmp_path / "good" / ".lock").exists(), "without an error nothing is removed"


def test_a_refused_second_run_leaves_the_first_ones_folder(tmp_path):
    with run_folder.Lock(tmp_path / "run"):
        reset()
        with pytest.raises(UserError, match="is in use by"), session(settings(KL, tmp_path, tmp_path / "run"), None):
            pass
        assert (tmp_path / "run" / ".lock").exists()
