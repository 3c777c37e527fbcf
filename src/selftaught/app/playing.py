"""`selftaught play`: the playground in the browser."""

import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from tyro.conf import Positional

from selftaught.app.choices import Head
from selftaught.core.errors import ConfigError

if TYPE_CHECKING:
    import uvicorn

    from selftaught.app.play.guard import App

_out = Console(soft_wrap=True, highlight=False, markup=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def play(
    run: Positional[Path],
    out: Path = Path("clf"),
    head: Head | None = None,
    port: int = 0,
    host: Literal["127.0.0.1", "0.0.0.0"] = "127.0.0.1",
) -> None:
    """Try a model in the browser: drop 1-5 pictures a class, see what others are taken for, save the classifier.

    Args:
        run: A run, model or classifier folder.
        out: The classifier folder that the button "Save" writes; nothing else is written.
        head: What is fitted on the embeddings; by default that of the classifier, or prototype.
        port: Where to listen; 0 is any free port.
        host: 127.0.0.1 is this machine only; 0.0.0.0 is everyone in the network who knows the address.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"the playground needs {error.name}: pip install 'selftaught[play]'") from error
    from selftaught.app.loading import load
    from selftaught.app.play.server import application
    from selftaught.app.play.session import PlaySession

    session = PlaySession(load(run), out, head)
    token = secrets.token_urlsafe(24)
    if everyone := host == "0.0.0.0":
        _err.print(
            "WARNING: open to the network without encryption: whoever has the address can see and change it all, "
            "and the address can be read on the way.",
            style="yellow",
        )
    with listening(host, port) as sock:
        shown = socket.gethostname() if everyone else host
        _out.print(f"playground: http://{shown}:{sock.getsockname()[1]}/{token}/ (Ctrl+C ends it)")
        try:
            server(application(session, token, everyone)).run([sock])
        finally:  # an interrupt is how it ends
            if session.unsaved:
                _err.print("ended with changes that were not saved")


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens, so that the printed address works at once.

    Raises ConfigError where the port is taken or out of range.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen()
    except (OSError, OverflowError) as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error}); give another --port, or 0 for any"
        ) from error
    return sock


def server(app: "App") -> "uvicorn.Server":
    """A server that keeps no log: addresses hold the token."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=64,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)
