"""Risk by risk, where it is tested. A test that is renamed or lost is missed here."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TABLE = {
    "pickled code": (
        "security/test_pickles.py::test_a_pickled_command_never_runs",
        "formats/test_saved_folders.py::test_pickled_code_never_runs",
        "test_architecture.py::test_no_module_runs_code_that_it_reads",
    ),
    "code that comes with a model": (
        "security/test_remote_code.py::test_a_model_that_brings_code_never_runs_it",
        "security/test_remote_code.py::test_a_text_encoder_that_brings_code_never_runs_it",
        "formats/test_saved_folders.py::test_no_code_beside_the_weights_is_run",
    ),
    "YAML tags": ("test_config.py::test_other_files_are_refused",),
    "links and names that leave a folder": (
        "data/test_folder.py::test_bad_pictures_are_named_counted_and_skipped",
        "data/test_webdataset.py::test_links_out_of_the_folder_are_refused",
        "data/test_parquet.py::test_only_the_bytes_are_read",
        "training/test_checkpoint.py::test_a_manifest_cannot_point_outside",
    ),
    "archives": (
        "data/test_webdataset.py::test_hostile_members_are_named_counted_and_skipped",
        "data/test_webdataset.py::test_a_member_that_only_claims_to_be_large_is_never_read",
        "data/test_webdataset.py::test_a_header_that_is_too_long_is_not_read",
        "data/test_webdataset.py::test_too_many_members_stop",
    ),
    "decompression bombs": (
        "data/test_image_files.py::test_bombs_are_refused_by_their_header",
        "data/test_image_files.py::test_the_limit_is_the_callers",
        "security/test_bombs.py::test_a_bomb_is_never_decoded",
    ),
    "prompts as file names": ("viz/test_png.py::test_no_prompt_leaves_the_folder",),
    "paths and names in what we write": (
        "security/test_traces.py::test_models_and_checkpoints_and_logs_and_pictures",
        "security/test_traces.py::test_pictures_say_how_they_were_drawn_and_no_more",
        "security/test_traces.py::test_caches_are_named_by_hashes_and_hold_no_paths",
        "formats/test_saved_folders.py::test_every_file_is_free_of_traces_and_has_the_umasks_mode",
    ),
    "permissions": (
        "security/test_traces.py::test_every_file_may_be_read_by_whom_the_umask_allows",
        "formats/test_saved_folders.py::test_a_strict_umask_is_respected_and_a_loose_one_too",
        "training/test_checkpoint.py::test_the_manifest_lists_every_file_with_the_modes_that_the_umask_asks_for",
    ),
}


@pytest.mark.parametrize("risk", TABLE)
def test_every_risk_has_its_tests(risk):
    for place in TABLE[risk]:
        file, name = place.split("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
        assert found, place
        skipped = [ast.unparse(mark) for mark in found[0].decorator_list if "skip" in ast.unparse(mark)]
        assert not skipped, place
