"""Upload a finished run's model, with its card, to the Hugging Face Hub."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm_kit.config import UserError
from ldm_kit.inference.card import CARD, PICTURES, write_card
from ldm_kit.inference.card_facts import Facts
from ldm_kit.models.hub import HUB_NAME
from ldm_kit.training.checkpoint import MANIFEST

OWN = {".gitattributes"}  # files that the Hub itself puts into a new repository


def push(
    facts: Facts,
    name: str,
    *,
    licence: str | None,
    private: bool,
    confirm: Callable[[str], bool],
    api: Any = None,
) -> str:
    """Write the model's card and upload the model's files; return the address.

    Args:
        facts: the run.
        name: owner/name on the Hub.
        licence: the Hub's name of a licence; None: that of the built-in data set.
        private: whether a new repository is private.
        confirm: asked with a question before files of an existing repository are replaced.
        api: the Hub's client; None: `huggingface_hub.HfApi()`, with the token of `hf auth login` or HF_TOKEN.

    Raises:
        UserError: the name is none of the Hub's, the licence of the pictures is not known, nobody is logged in, the Hub
            cannot be reached or refuses, or the question was answered with no.
    """
    check_name(name)
    if licence is None and facts.source.licence is None:
        raise UserError(
            f"the licence of the pictures that {facts.run} was trained on is not known; say it by --licence, such as "
            "cc-by-4.0, or other"
        )
    client: Any = _client() if api is None else api
    _call(f"log in to the Hub to upload {name}", client.whoami)
    exists = _call(f"look for {name} on the Hub", lambda: client.repo_exists(name))
    present = set(_call(f"list the files of {name}", lambda: client.list_repo_files(name))) - OWN if exists else set()
    replaced = present & {*_saved(facts.model), CARD, PICTURES}
    question = f"{name} on the Hub has {len(present)} files, of which {len(replaced)} are replaced. Go on?"
    if present and not confirm(question):
        raise UserError(f"nothing was uploaded: {name} exists on the Hub, and the question was answered with no")
    write_card(facts, name, licence)
    files = [*_saved(facts.model), CARD, *([PICTURES] if (facts.model / PICTURES).is_file() else [])]
    if not exists:
        _call(f"make the repository {name}", lambda: client.create_repo(name, private=private, exist_ok=True))
    message = f"Upload a model trained with ldm_kit: {facts.method}, {facts.config.train.steps} steps"
    _call(
        f"upload to {name}",
        lambda: client.upload_folder(
            repo_id=name, folder_path=facts.model, allow_patterns=files, commit_message=message
        ),
    )
    return f"https://huggingface.co/{name}"


def check_name(name: str) -> None:
    """Check that a name has the form owner/name; raise UserError if not."""
    if not HUB_NAME.fullmatch(name):
        raise UserError(f"{name!r:.80} is no name on the Hub; expected owner/name")


def _saved(model: Path) -> list[str]:
    """Return the files of a saved model: the manifest, and those that it lists."""
    try:
        listed = json.loads((model / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{model} has no readable {MANIFEST}; expected a model that ldm_kit saved") from None
    return [*listed, MANIFEST]


def _client() -> Any:
    from huggingface_hub import HfApi

    return HfApi()


def _call(what: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:  # of many unrelated classes: no token, no network, no right to write
        first = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot {what}: {first:.200}; `hf auth login` stores a token, as does HF_TOKEN") from None
