"""The server of the page: local unless asked otherwise, with a private folder for uploads that ends with it."""

import asyncio
import os
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from ldm_kit.app.options import LOCAL, MAX_BYTES, MAX_PIXELS, MAX_WAITING, AppOptions
from ldm_kit.config import UserError

T = TypeVar("T")
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' blob: data:; connect-src 'self' blob: data: ws: wss:; "
    "frame-ancestors 'self'; object-src 'none'; base-uri 'self'"
)
"""What the browser may load: nothing of another host."""


_CLOSED: dict[str, Any] = {
    "share": False,
    "prevent_thread_lock": True,
    "quiet": True,
    "show_error": False,
    "footer_links": [],
    "run_history": False,
    "max_file_size": MAX_BYTES,
    "enable_monitoring": False,
    "ssr_mode": False,
    "pwa": False,
    "mcp_server": False,
}
"""Options of Gradio's server that open nothing beside the page."""


class LocalOnly:
    """ASGI middleware: the browser may load nothing of another host, and the server fetches nothing for it."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 404 where a file's name is an address, or pass the request on and add the policy to the answer."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"]
        if "file=http" in path or "/proxy=" in path or "/monitoring" in path or path.endswith("/proxy"):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            return await send({"type": "http.response.body", "body": b"not found"})

        async def add(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"content-security-policy", _POLICY.encode())]
                message = {**message, "headers": [*headers, (b"referrer-policy", b"no-referrer")]}
            await send(message)

        return await self.app(scope, receive, add)


@contextmanager
def running_page(paths: Sequence[Path | str], options: AppOptions) -> Iterator[str]:
    """Serve the page within the context, and yield its address; its folder is removed at the end.

    Args:
        paths: folders of saved models, runs or checkpoints, or names on the Hub.
        options: host, port, device and precision.

    Raises:
        UserError: a path is no model that samples or edits, or the port is taken.
    """
    port = free_port(options)
    with tempfile.TemporaryDirectory(prefix="ldm_kit-app-") as folder, _environment(Path(folder)):
        from ldm_kit.app.models import ModelLibrary
        from ldm_kit.app.page import Page
        from ldm_kit.app.results import Workspace
        from ldm_kit.app.style import CSS, theme

        page = Page(ModelLibrary(paths, options), Workspace(Path(folder)))
        blocks = in_event_loop(lambda: page.build().queue(max_size=MAX_WAITING, api_open=False))
        blocked = [*map(str, page.library.folders.values()), str(Path.cwd()), str(Path.home())]
        settings: dict[str, Any] = {
            "server_name": options.host,
            "server_port": port,
            "allowed_paths": [str(page.workspace.results)],
            "blocked_paths": [path for path in blocked if not folder.startswith(f"{path.rstrip('/')}/")],
            "theme": theme(),
            "css": CSS,
            "app_kwargs": {"middleware": [_middleware()], "docs_url": None, "redoc_url": None, "openapi_url": None},
        }
        address = in_event_loop(lambda: blocks.launch(**settings, **_CLOSED)[1])
        try:
            yield address
        finally:
            blocks.close(verbose=False)


def in_event_loop(work: Callable[[], T]) -> T:
    """Return the result of a function that runs in a thread with an event loop, without which Gradio leaks one."""

    async def call() -> T:
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(call())).result()


def warning_of(options: AppOptions) -> str:
    """Return a warning for a host that other machines can reach; "" for a local one."""
    if options.host in LOCAL:
        return ""
    return (
        f"the page listens on {options.host}: whoever can reach this machine can use the models and its processor, "
        "without a password"
    )


def free_port(options: AppOptions) -> int:
    """Return the port of `options`, or a free one for 0, after listening on it for a moment.

    Raises:
        UserError: the port is taken, or the host is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]
    except OSError as error:
        raise UserError(
            f"cannot listen on {options.host}:{options.port}: {(error.strerror or str(error)).lower()}; "
            "expected an address of this machine and a free --port"
        ) from None


def _middleware() -> Any:
    from starlette.middleware import Middleware

    return Middleware(LocalOnly)


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Let Gradio keep uploads in `folder` and call no other host, and let Pillow refuse large pictures; then restore.

    Gradio reads its settings from environment variables; those of the user that would open the page are left out.
    """
    before, limit = dict(os.environ), Image.MAX_IMAGE_PIXELS
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_ALLOWED_PATHS": "",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses twice as many, and warns before
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
        os.environ.clear()
        os.environ |= before
