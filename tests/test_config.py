"""Configs are read strictly, and every fault is a sentence that says where it is and what was expected."""

import os
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from ldm_kit.config import Config, UserError, assign, cache_dir, check, parse, read, write
from tests.conftest import pytest_configure
from tests.suite_cache import cache_name

PLAIN = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12)


class Small(Config):
    """A member of a union."""

    kind: Literal["small"] = "small"
    width: int = Field(8, ge=1)


class Large(Config):
    """Another."""

    kind: Literal["large"] = "large"
    depth: int = Field(2, ge=1)
    width: int = 16


class Inner(Config):
    """A section."""

    rate: float = Field(1e-3, gt=0)
    steps: int = 10
    names: tuple[str, ...] = ()
    mode: Literal["no", "bf16"] = "no"


class Tree(Config):
    """A config with everything in it."""

    run: str
    inner: Inner = Inner()
    net: Annotated[Small | Large, Field(discriminator="kind")] = Small()
    maybe: int | None = None
    nested: "Outer | None" = None


class Outer(Config):
    """A section that holds a section with a union."""

    inner: Inner = Inner()
    net: Annotated[Small | Large, Field(discriminator="kind")] = Large()


Tree.model_rebuild()


def tree(path: Path, text: str, *overrides: str) -> Tree:
    file = path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return read(Tree, file, overrides)


def fault(path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as raised:
        tree(path, text, *overrides)
    return str(raised.value)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("rum=x", ("unknown key 'rum'", "run")),
        ("inner.rte=1", ("unknown key 'inner.rte'", "rate")),
        ("inner.qqqqqq=1", ("unknown key 'inner.qqqqqq'", "known: mode, names, rate, steps")),
        ("net={kind: large, widht: 3}", ("unknown key 'net.widht'", "nearest known: width")),
        ("net={kind: small, zzz: 3}", ("unknown key 'net.zzz'", "known: kind, width")),
        ("nested.net={kind: small, widht: 3}", ("unknown key 'nested.net.widht'", "nearest known: width")),
        ("nested.inner.stps=3", ("unknown key 'nested.inner.stps'", "nearest known: steps")),
        ("net={kind: huge}", ("unknown net.kind 'huge'", "expected one of small, large")),
        ("net={width: 3}", ("missing key 'net.kind'", "expected one of small, large")),
        ("nested.net={kind: huge}", ("unknown nested.net.kind 'huge'", "small, large")),
        ("net=3", ("net: expected a section with keys, got 3",)),
        ("net=null", ("net: expected a section with keys, got None",)),
        ("inner=[1]", ("inner: expected a section with keys, got [1]",)),
        ("inner.rate=fast", ("inner.rate: expected a valid number, got 'fast'",)),
        ("inner.rate=-1", ("inner.rate: expected", "greater than 0, got -1")),
        ("inner.rate=.nan", ("inner.rate: expected a finite number",)),
        ("inner.rate=.inf", ("inner.rate: expected a finite number",)),
        ("inner.steps=1.5", ("inner.steps: expected a valid integer, got 1.5",)),
        ("inner.mode=fp8", ("inner.mode: expected 'no' or 'bf16', got 'fp8'",)),
        ("inner.names=cat", ("inner.names: expected a list, got 'cat'",)),
        ("net={kind: large, depth: 0}", ("net.depth: expected", "got 0")),
        ("run=null", ("run: expected a valid string, got None",)),
        ("maybe=x", ("maybe: expected a valid integer, got 'x'",)),
    ],
)
def test_faults_say_where_and_what_was_expected(tmp_path, override, parts):
    said = fault(tmp_path, "run: here", override)
    assert said.startswith(str(tmp_path / "config.yaml"))
    for part in parts:
        assert part in said
    assert "\n" not in said
    assert "pydantic" not in said


def test_missing_keys_and_several_faults_are_all_told(tmp_path):
    assert "missing key 'run'" in fault(tmp_path, "")
    said = fault(tmp_path, "inner: {rte: 1, steps: many}\nrun: 3")
    assert "inner.rte" in said
    assert "inner.steps" in said
    assert "run: expected a valid string" in said


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- a\n- b", "holds a list"),
        ("just words", "holds a str"),
        ("run: [", "not valid YAML"),
        ("run: a\nrun: b", "'run' comes twice"),
        ("inner: {steps: 1, steps: 2}", "'steps' comes twice"),
        ("run: !!python/object/apply:os.system ['touch marker']", "not valid YAML"),
        ("run: !!python/name:os.system", "not valid YAML"),
        ("run: !custom x", "not valid YAML"),
        ("a: " * 3, "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
    ],
)
def test_other_files_are_refused(tmp_path, monkeypatch, text, part):
    monkeypatch.chdir(tmp_path)
    said = fault(tmp_path, text)
    assert part in said
    assert "\n" not in said
    assert not (tmp_path / "marker").exists()


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the config .*absent\.yaml.*expected a YAML file"):
        read(Tree, tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="cannot read the config"):
        read(Tree, tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"run: caf\xe9")
    with pytest.raises(UserError, match="not valid YAML"):
        read(Tree, tmp_path / "latin.yaml")


def test_a_file_of_windows_reads_too(tmp_path):
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfrun: here\r\ninner:\r\n  steps: 3\r\n")
    assert read(Tree, tmp_path / "bom.yaml").inner.steps == 3


def test_overrides_reach_everything(tmp_path):
    got = tree(
        tmp_path,
        "run: here",
        "inner.rate=1e-4",
        "inner.names=[no, yes, a b]",
        "inner.mode=no",
        "net.kind=large",
        "net.depth=5",
        "maybe=7",
        "nested.inner.steps=3",
        "run=a=b",
    )
    assert got.inner == Inner(rate=1e-4, names=("no", "yes", "a b"))
    assert got.net == Large(depth=5)
    assert (got.maybe, got.run) == (7, "a=b")
    assert got.nested is not None
    assert got.nested.inner.steps == 3
    assert tree(tmp_path, "{run: x, maybe: 7}", "maybe=null").maybe is None
    assert tree(tmp_path, "{run: x, maybe: 7}", "maybe=").maybe is None
    assert tree(tmp_path, "{run: x, inner: null}", "inner={steps: 4}").inner.steps == 4


@pytest.mark.parametrize("override", ["run", "=3", "a..b=3", ".a=3", "a.=3", "run.deeper=3", "run=[", "run=!!int x y"])
def test_overrides_that_mean_nothing_are_refused(tmp_path, override):
    said = fault(tmp_path, "run: here", override)
    assert override in said
    assert "\n" not in said


def test_only_true_and_false_are_booleans():
    assert parse("[no, yes, on, off, true, false, No, TRUE]") == ["no", "yes", "on", "off", True, False, "No", True]


def test_configs_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Tree(run="x").run = "y"  # pyright: ignore[reportAttributeAccessIssue]


@given(
    st.builds(
        Tree,
        run=PLAIN,
        inner=st.builds(
            Inner,
            rate=st.floats(min_value=1e-300, allow_infinity=False, allow_nan=False, exclude_min=True),
            steps=st.integers(),
            names=st.lists(PLAIN | st.sampled_from(["no", "1e-4", "null", "", "true", "2020-01-01", "0x1f"])).map(
                tuple
            ),
            mode=st.sampled_from(["no", "bf16"]),
        ),
        net=st.one_of(st.builds(Small, width=st.integers(1)), st.builds(Large, depth=st.integers(1))),
        maybe=st.none() | st.integers(),
    )
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_written_is_read_back(tmp_path, config):
    write(config, tmp_path / "written.yaml")
    assert read(Tree, tmp_path / "written.yaml") == config


@given(st.dictionaries(st.from_regex(r"[a-z]{1,4}", fullmatch=True), st.integers(), max_size=4), st.text(max_size=20))
def test_any_override_either_works_or_is_told(start, text):
    plain, said = dict(start), repr(text)
    try:
        assign(plain, text)
    except UserError as error:
        said = str(error)
    assert repr(text) in said


def test_check_takes_plain_trees_too():
    assert check(Tree, {"run": "x"}, "here").run == "x"
    with pytest.raises(UserError, match=r"^here: missing key 'run'$"):
        check(Tree, {}, "here")


def test_the_suite_has_a_cache_of_its_own_that_forgets(pytestconfig, monkeypatch):
    shared = Path(pytestconfig.cache.mkdir(cache_name(pytestconfig.rootpath)))
    monkeypatch.setenv("LDM_KIT_CACHE", "elsewhere")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    old, new = (shared / "test" / name for name in ("old", "new"))
    for path in (old, new):
        path.mkdir(parents=True, exist_ok=True)
    os.utime(old, (0, 0))
    pytest_configure(pytestconfig)
    assert cache_dir() == shared
    assert [path.exists() for path in (old, new)] == [False, True]
