"""Who may talk to the playground: this machine's browser, on a page that this program gave it, and nobody else."""

import ipaddress
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, final

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""With every answer: the page loads nothing from elsewhere, is in nobody's frame, and is kept on no disk."""


@final
class Guard:
    """Passes on to `app` what asks for /TOKEN/... by a name of this machine, and not from a page of elsewhere.

    The token keeps other users of the machine and other pages out; the Host header is compared because a
    stranger's name can be made to point to 127.0.0.1 (DNS rebinding); Origin and Sec-Fetch-Site are compared so
    that not even a page that knew the token could post. With `open_to_network` any address and this machine's
    name are right hosts; names that strangers can register never are.
    """

    def __init__(self, app: App, token: str, open_to_network: bool = False) -> None:
        self.app = app
        self.token = token
        self.open_to_network = open_to_network

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        why = self._refusal(scope)

        async def dressed(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        if why is None:
            below = scope["path"][len(self.token) + 1 :]
            await self.app({**scope, "path": below, "raw_path": below.encode()}, receive, dressed)
            return
        plain = [(b"content-type", b"text/plain; charset=utf-8")]
        await dressed({"type": "http.response.start", "status": why[0], "headers": plain})
        await dressed({"type": "http.response.body", "body": why[1].encode()})

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason, or None."""
        hosts = _headers(scope, b"host")
        if len(hosts) != 1 or not self._is_here(_name(hosts[0])):
            return 421, "Not a name of this program. Open the address that selftaught play printed.\n"
        first = scope["path"].split("/")[1]
        if not secrets.compare_digest(first.encode(), self.token.encode()) or scope["path"].count("/") < 2:
            return 404, "Nothing here. Open the whole address that selftaught play printed.\n"
        origins, sites = _headers(scope, b"origin"), _headers(scope, b"sec-fetch-site")
        elsewhere = set(origins) - {f"http://{hosts[0]}"} or set(sites) - {"none", "same-origin"}
        if scope["method"] not in ("GET", "HEAD") and elsewhere:
            return 403, "A page from elsewhere may not do that.\n"
        return None

    def _is_here(self, name: str) -> bool:
        if name in ("127.0.0.1", "localhost"):
            return True
        return self.open_to_network and (_is_address(name) or name == socket.gethostname().lower())


def _headers(scope: Scope, name: bytes) -> list[str]:
    """All values of a header; ASGI servers hand names over in lower case."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
