"""The page's server, jobs, library and results: what it serves, what it refuses, and what is left of it."""

import contextlib
import gc
import json
import logging
import os
import urllib.error
import urllib.request
import weakref
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from ldm_kit.app.errors import PageError, Stopped, page_errors, sentence
from ldm_kit.app.jobs import Jobs
from ldm_kit.app.models import LoadedContext, ModelLibrary
from ldm_kit.app.options import MAX_RESULTS, AppOptions, check_limit, whole_number
from ldm_kit.app.results import Result, Workspace
from ldm_kit.app.server import running_page, warning_of
from ldm_kit.config import UserError
from ldm_kit.models.options import SamplingOptions
from ldm_kit.progress import report_step
from ldm_kit.viz.png import save_png
from tests.app.conftest import OPTIONS

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers on numpy 2
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:starlette"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:websockets"),
]


def status(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with contextlib.closing(error):
            return error.code


def test_nothing_but_the_page_is_served(models, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    before = dict(os.environ)
    with running_page([models["text"]], OPTIONS) as address:
        root = address.rstrip("/")
        assert root.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(root, timeout=30) as answer:
            assert "default-src 'self'" in answer.headers["content-security-policy"]
            assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
        private = Path(os.environ["GRADIO_TEMP_DIR"]).parent
        assert private.stat().st_mode & 0o077 == 0
        files = [
            "/etc/passwd",
            tmp_path / "secret.txt",
            Path("pyproject.toml").resolve(),
            models["text"] / "config.yaml",
        ]
        files += [models["text"] / "model_index.json", private / "results" / ".." / ".." / tmp_path.name / "secret.txt"]
        for path in files:
            assert status(f"{root}/gradio_api/file={path}") in (403, 404), path
            assert status(f"{root}/file={path}") in (403, 404), path
        assert status(f"{root}/gradio_api/file=http://127.0.0.1/") == 404
        assert status(f"{root}/monitoring") == 404
        assert status(f"{root}/docs") == status(f"{root}/openapi.json") == 404
        (private / "results" / "made.txt").write_text("made")
        assert status(f"{root}/gradio_api/file={private / 'results' / 'made.txt'}") == 200, "the test can see files"
    assert not private.exists()
    assert dict(os.environ) == before
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(root, timeout=5)


def test_a_path_in_place_of_an_upload_is_refused(models):
    """A request that names a file of the server as the picture to vary must not have it read."""
    with running_page([models["text"]], OPTIONS) as address:
        root = address.rstrip("/")
        with urllib.request.urlopen(f"{root}/config", timeout=30) as answer:
            config = json.load(answer)
        named = {each["id"]: each["props"].get("elem_id") for each in config["components"]}
        image = next(key for key, name in named.items() if name == "img2img-image")
        event = next(each for each in config["dependencies"] if image in each["inputs"])
        file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
        values = [file if key == image else None for key in event["inputs"]]
        body = {"data": values, "fn_index": event["id"], "session_hash": "abc", "trigger_id": None}
        request = urllib.request.Request(
            f"{root}/gradio_api/queue/join", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30):
            pass
        messages = []
        with urllib.request.urlopen(f"{root}/gradio_api/queue/data?session_hash=abc", timeout=60) as stream:
            for line in stream:
                if line.startswith(b"data:"):
                    messages.append(json.loads(line[5:]))
                    if messages[-1]["msg"] in ("process_completed", "close_stream"):
                        break
        assert messages[-1]["msg"] == "process_completed"
        assert not messages[-1]["success"]
        assert "root:" not in json.dumps(messages)


def test_a_taken_port_is_named(models):
    with running_page([models["text"]], OPTIONS) as address:
        port = int(address.rstrip("/").rpartition(":")[2])
        again = running_page([models["text"]], AppOptions(port=port, device="cpu"))
        with pytest.raises(UserError, match=rf"cannot listen on 127\.0\.0\.1:{port}.*and a free --port"), again:
            pass
    with (
        pytest.raises(UserError, match=r"cannot listen on no\.such\.host:0"),
        running_page([], AppOptions(host="no.such.host", port=0)),
    ):
        pass


def test_a_host_that_others_reach_is_warned_of():
    assert warning_of(AppOptions()) == warning_of(AppOptions(host="localhost")) == ""
    assert "0.0.0.0" in warning_of(AppOptions(host="0.0.0.0"))
    assert "without a password" in warning_of(AppOptions(host="192.168.0.4"))


def test_one_model_is_in_memory(models):
    library = ModelLibrary([models["text"], models["diffae"]], OPTIONS)
    assert library.names == ["text", "diffae"]
    first = library.open("text")
    assert library.open("text") is first
    gone = weakref.ref(first.pipeline.unet)
    del first
    assert library.open("diffae").semantic is not None
    gc.collect()
    assert gone() is None
    with pytest.raises(UserError, match="there is no model 'other'; expected one of text, diffae"):
        library.open("other")


def test_names_of_models_differ(models, tmp_path):
    (tmp_path / "text").symlink_to(models["text"])
    library = ModelLibrary([models["text"], tmp_path / "text", models["text"]], OPTIONS)
    assert len({*library.names}) == 3
    assert library.names[1] == f"{tmp_path.name}/text"


def test_what_is_no_model_is_refused_at_the_start(tmp_path, models):
    with pytest.raises(UserError, match="is no saved model"):
        ModelLibrary([tmp_path], OPTIONS)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "ldm_kit.NoisyClassifier"}))
    with pytest.raises(UserError, match="is a noisy classifier"):
        ModelLibrary([tmp_path], OPTIONS)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "ldm_kit.Cascade"}))
    with pytest.raises(UserError, match="is a cascade, and the page takes single models"):
        ModelLibrary([tmp_path], OPTIONS)
    with pytest.raises(UserError, match="cannot use the device"):
        ModelLibrary([models["text"]], AppOptions(device="nowhere"))


def test_a_model_of_the_other_kind_is_refused(models, tmp_path):
    library = ModelLibrary([models["text"], models["diffae"]], OPTIONS)
    with pytest.raises(UserError, match="no semantic encoder"):
        LoadedContext.of(library.open("text"), tmp_path, OPTIONS).load_semantic_model()
    with pytest.raises(UserError, match="has a semantic encoder"):
        LoadedContext.of(library.open("diffae"), tmp_path, OPTIONS).load_pipeline()


def test_steps_are_reported_and_stop_ends_between_two(models, tmp_path):
    pipeline = ModelLibrary([models["text"]], OPTIONS).open("text").pipeline
    options, jobs, steps = SamplingOptions(steps=3, guidance_scale=1), Jobs(tmp_path), []

    def sample():
        return list(pipeline.generate(["red"] * 5, range(5), options, 2))

    jobs.run("me", sample, lambda *step: steps.append(step))
    assert steps == [("sampling", k, 9) for k in range(1, 10)], "three batches of three steps"
    steps.clear()

    def stopping(*step):
        steps.append(step)
        if len(steps) == 4:
            jobs.stop("me")

    with pytest.raises(Stopped):
        jobs.run("me", sample, stopping)
    assert len(steps) == 4
    jobs.begin("me")
    jobs.stop("you")
    assert len(jobs.run("me", sample, lambda *step: None)) == 3, "another browser has pressed Stop"
    jobs.begin("me")
    jobs.stop("me")
    with pytest.raises(Stopped):
        jobs.run("me", lambda: pytest.fail("it was stopped in the queue"), lambda *step: None)


def test_a_browser_that_leaves_ends_its_request(tmp_path):
    jobs = Jobs(tmp_path)
    jobs.begin("me")

    def work():
        jobs.forget("me")
        report_step("sampling", 1, 2)

    with pytest.raises(Stopped):
        jobs.run("me", work, lambda *step: None)


def test_errors_are_sentences(tmp_path, caplog):
    with pytest.raises(PageError) as error, page_errors(tmp_path):
        raise UserError(f"{tmp_path}/uploads/ab12/x.png: no picture; --guidance_scale is 3")
    assert str(error.value) == "X.png: no picture; guidance scale is 3."
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(PageError, match="see the terminal") as error,
        page_errors(tmp_path),
    ):
        raise KeyError("/home/me/secret")
    assert "secret" not in str(error.value)
    assert "secret" in caplog.text
    with pytest.raises(PageError, match="out of memory"), page_errors(tmp_path):
        raise MemoryError
    assert sentence("one two.", tmp_path) == "One two."


def test_whole_numbers_keep_every_digit():
    assert whole_number("n", "18446744073709551615") == 2**64 - 1
    assert whole_number("n", 3.0) == whole_number("n", " 3 ") == 3
    for wrong in ("", "1e3", None, float("inf"), "0x1"):
        with pytest.raises(UserError, match="expected a whole number"):
            whole_number("n", wrong)


def test_limits_include_their_ends():
    assert (check_limit("n", 1, 64), check_limit("n", 64, 64), check_limit("n", 0, 4, 0)) == (1, 64, 0)
    for value in (0, 65, -1):
        with pytest.raises(UserError, match=f"n is {value}; expected 1 to 64"):
            check_limit("n", value, 64)


def result(workspace: Workspace, number: int = 2, /, **values: object) -> Result:
    folder = workspace.new_folder()
    for index in range(number):
        text = {"prompt": f"p{index}", "seed": "4"}
        save_png(Image.new("RGB", (4, 4), (index, 0, 0)), folder / f"00000004-{index:05d}-p.png", text)
    save_png(Image.new("RGB", (8, 4)), folder / "grid.png")
    return Result("Sample", "m", folder, values, key="sample", summary=values)


def test_old_results_are_removed(tmp_path):
    workspace, history = Workspace(tmp_path), []
    made = [result(workspace) for _ in range(MAX_RESULTS + 2)]
    for each in made:
        history = workspace.add(history, each)
    assert history == made[:1:-1]
    assert [each.folder.exists() for each in made] == [False] * 2 + [True] * MAX_RESULTS


def test_a_result_knows_its_pictures_and_settings(tmp_path):
    each = result(
        Workspace(tmp_path), 12, prompt="a\nb", count=12, negative_prompt="", image="/tmp/x.png", class_name=None
    )
    assert [caption for _, caption in each.pictures] == [f"seed 4, p{k}" for k in range(12)]
    assert each.settings() == "**Sample** with m · **prompt** a / b · **count** 12"
    with zipfile.ZipFile(each.archive()) as archive:
        assert len(archive.namelist()) == 13
        archive.extractall(tmp_path / "out")
    with Image.open(tmp_path / "out" / "00000004-00003-p.png") as image:
        assert image.info["prompt"] == "p3"
