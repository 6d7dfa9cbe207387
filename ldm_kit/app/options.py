"""Options of `ldm-kit app`, and the limits of what its page computes; no heavy library is imported."""

from pydantic import Field

from ldm_kit.config import Config, Precision, UserError
from ldm_kit.inference.requests import DEVICE

LOCAL = ("127.0.0.1", "localhost", "::1")  # hosts that other machines cannot reach
MAX_PICTURES = 64  # of one request
MAX_STEPS = 1000  # of each process of a request: sampling, inversion, decoding
MAX_PROMPT = 4000  # characters of the prompts of a request
MAX_PIXELS = 16_000_000  # of an uploaded picture
MAX_BYTES = 20_000_000  # of an uploaded file
MAX_WAITING = 16  # requests in the queue
MAX_RESULTS = 60  # results that the page of one browser keeps; older ones are removed


class AppOptions(Config):
    """Where the page listens, and how its models are computed."""

    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0: other machines can use the page")
    port: int = Field(default=7860, ge=0, le=65535, description="port to listen on; 0: any free one")
    device: str | None = Field(default=None, description=DEVICE)
    precision: Precision = Field(default="no", description="autocast while sampling: no, bf16, fp16 or auto")


def check_limit(name: str, value: int, most: int, least: int = 1) -> int:
    """Return a number of a request, if the page computes so many.

    Raises:
        UserError: it is under `least` or over `most`.
    """
    if not least <= value <= most:
        raise UserError(f"{name} is {value}; expected {least} to {most}")
    return value


def whole_number(name: str, text: object) -> int:
    """Return the whole number that a field of the page holds, of which a text keeps all digits.

    Raises:
        UserError: it is none.
    """
    try:
        number = float(text) if isinstance(text, float) else int(str(text).strip())
        if number == int(number):
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise UserError(f"{name} is {str(text)!r:.60}; expected a whole number")


def check_prompts(text: str) -> tuple[str, ...]:
    """Return the prompts in a field of the page, one a line.

    Raises:
        UserError: they are too long together.
    """
    if len(text) > MAX_PROMPT:
        raise UserError(f"the prompts have {len(text)} characters; expected {MAX_PROMPT} or fewer")
    return tuple(line.strip() for line in text.splitlines() if line.strip())
