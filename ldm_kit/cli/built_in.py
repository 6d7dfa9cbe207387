"""The configs that come with the kit: in a wheel in `ldm_kit/configs`, in the repository in `configs`."""

from difflib import get_close_matches
from pathlib import Path

from ldm_kit.config import UserError
from ldm_kit.paths import check_writable_file

_PACKAGE = Path(__file__).parents[1]
_LEFT_OUT = "benchmarks"  # folder of the configs that only the repository's benchmarks use


def folder() -> Path:
    """Return the folder of the configs.

    Raises:
        UserError: there is none, because the package was not installed whole.
    """
    for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if path.is_dir():
            return path
    raise UserError(f"no configs in {_PACKAGE}; expected the folder configs: install ldm_kit again")


def names() -> list[str]:
    """Return the names of the configs, such as faces/ldm_text, in alphabetical order."""
    root = folder()
    every = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in every if name.split("/")[0] != _LEFT_OUT)


def path_of(name: str) -> Path:
    """Return the file of a config.

    Raises:
        UserError: there is no such config.
    """
    plain = name.removeprefix("configs/").removesuffix(".yaml")
    if plain not in names():
        nearest = get_close_matches(plain, names(), 3)
        expected = " or ".join(nearest) if nearest else "one that `ldm-kit configs` lists"
        raise UserError(f"no config {name!r:.80} comes with the kit; expected {expected}")
    return folder() / f"{plain}.yaml"


def locate(config: Path) -> Path:
    """Return a config's file: the path itself or, where there is no such file, the built-in config of that name."""
    name = config.as_posix().removeprefix("configs/").removesuffix(".yaml")
    return config if config.exists() or name not in names() else path_of(name)


def summary(name: str) -> str:
    """Return the machine and time that the header of a config states, or its first line."""
    lines = text(name).splitlines()
    stated = [line.removeprefix("# Hardware:") for line in lines if line.startswith("# Hardware:")]
    return (stated or [lines[0].lstrip("# ")])[0].strip()


def text(name: str) -> str:
    """Return a config as text; UserError: there is no such config."""
    return path_of(name).read_text(encoding="utf-8")


def copy(name: str, out: Path) -> Path:
    """Copy a config into the new file `out` and return its path.

    Raises:
        UserError: there is no such config, or `out` exists or cannot be written.
    """
    content = text(name)
    check_writable_file(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(content, encoding="utf-8")
    return out
