"""The structure of a trained text encoder and its tokenizer, without weights, as JSON values."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from conditioning.bpe import load_tokenizer, save_tokenizer
from conditioning.condition import ConditioningError

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


def check_shape(config: Any, encoder: Any, length: int) -> None:
    """Check that the config of a new text encoder describes one of the shape of a trained one.

    Args:
        config: the `TextConfig` of a run.
        encoder: transformers' config of the trained text encoder.
        length: tokens of a caption that the trained one takes.

    Raises:
        ConditioningError: the number of layers or heads, the expansion or the length is another one.
    """
    expansion = encoder.intermediate_size / encoder.hidden_size
    shape = {"layers": encoder.num_hidden_layers, "heads": encoder.num_attention_heads, "expansion": expansion}
    for key, value in {**shape, "length": length}.items():
        if getattr(config, key) != value:
            raise ConditioningError(
                f"its text encoder has {key} {value:g}, but condition.{key} is {getattr(config, key)}; expected the "
                "same, or another condition.width for a new text encoder"
            )


def structure_of(encoder: "CLIPTextModel", tokenizer: "CLIPTokenizer") -> dict[str, Any]:
    """Return a text encoder's config without its dtype, and its tokenizer's files as text by file name."""
    with TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder))
        files = {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}
    config = {key: value for key, value in encoder.config.to_dict().items() if _shapes(key)}
    return {"text_encoder": config, "tokenizer": files}


def _shapes(key: str) -> bool:
    """Return whether a key of transformers' config is of the network: not its dtype (by both names) nor its origin."""
    return key not in ("dtype", "torch_dtype") and not key.startswith("_")


def from_structure(structure: Mapping[str, Any]) -> "tuple[CLIPTextModel, CLIPTokenizer]":
    """Build the text encoder, in float32 with random weights, and the tokenizer of a structure.

    Args:
        structure: what `structure_of` returned; a dtype in it is not used.

    Raises:
        ConditioningError: the structure is invalid.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    match structure:
        case {"text_encoder": dict(config), "tokenizer": dict(files)}:
            shape = CLIPTextConfig(**{key: value for key, value in config.items() if _shapes(key)})
        case _:
            raise ConditioningError("the structure of a text encoder lacks its config or its tokenizer's files")
    with TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / Path(name).name).write_text(text, encoding="utf-8")
        tokenizer = load_tokenizer(Path(folder))
    return CLIPTextModel._from_config(shape, attn_implementation="sdpa"), tokenizer
