"""The playground as a web application: each route calls one method of the session and answers JSON.

starlette is an extra (`pip install "selftaught[play]"`), imported only when something here is called.
"""

import json
import threading
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from selftaught.app.play import view
from selftaught.app.play.guard import App, Guard
from selftaught.app.play.pictures import shown_name
from selftaught.app.play.session import PlaySession
from selftaught.core.errors import DataError, SelftaughtError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

PAGE = {"": "play.html", "play.css": "play.css", "play.js": "play.js"}
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
MESSAGE_BYTES = 1 << 16
"""The most of a request that is no picture."""

Values = Mapping[str, Any]


def application(session: PlaySession, token: str, open_to_network: bool = False) -> App:
    """All of it below /TOKEN/, behind the guard; one request at a time reaches the session."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    lock = threading.Lock()

    async def answer(work: Callable[[], Any]) -> Response:
        def alone() -> Any:
            with lock:
                return work()

        try:
            found = await run_in_threadpool(alone)
        except SelftaughtError as error:
            return _error(str(error))
        return Response(found, media_type="image/png") if isinstance(found, bytes) else JSONResponse(found)

    async def page(request: "Request") -> Response:
        name = PAGE[request.scope["path"].removeprefix("/")]
        content = files("selftaught.app.play").joinpath(name).read_bytes()
        return Response(content, media_type=_KINDS[name.rpartition(".")[2]])

    async def state(request: "Request") -> Response:
        return await answer(lambda: view.state(session))

    async def places(request: "Request") -> Response:
        return await answer(lambda: view.places(session))

    async def picture(request: "Request") -> Response:
        return await answer(lambda: session.picture(request.path_params["id"]).thumbnail)

    async def upload(request: "Request") -> Response:
        name, to = request.query_params.get("name", ""), request.query_params.get("to")
        content = await _body(request, session.limits.file_bytes)
        if content is None:
            most = session.limits.file_bytes >> 20
            return _error(f"{shown_name(name)}: larger than {most} MiB; scale it down first", 413)
        return await answer(lambda: {"id": session.add(content, name, to).id})

    async def act(request: "Request") -> Response:
        action = ACTIONS.get(request.path_params["action"])
        if action is None:
            return _error("there is no such action", 404)
        content = await _body(request, MESSAGE_BYTES)
        return (
            _error("the message is too long", 413)
            if content is None
            else await answer(lambda: action(session, _values(content)))
        )

    routes = [Route(f"/{path}", page) for path in PAGE] + [
        Route("/state", state),
        Route("/map", places),
        Route("/picture/{id:int}", picture),
        Route("/pictures", upload, methods=["POST"]),
        Route("/do/{action}", act, methods=["POST"]),
    ]
    return Guard(Starlette(routes=routes), token, open_to_network)


def _name_of(values: Values, key: str = "name") -> str:
    if not isinstance(values.get(key), str):
        raise DataError(f"the message lacks the text {key!r}")
    return str(values[key])


def _id_of(values: Values) -> int:
    found = values.get("id")
    if not isinstance(found, int) or isinstance(found, bool):
        raise DataError("the message lacks the number 'id'")
    return found


ACTIONS: dict[str, Callable[[PlaySession, Values], Any]] = {
    "add-class": lambda session, v: {"name": session.add_class(_name_of(v))},
    "rename-class": lambda session, v: {"name": session.rename_class(_name_of(v), _name_of(v, "to"))},
    "remove-class": lambda session, v: session.remove_class(_name_of(v)),
    "label": lambda session, v: view.changed(session.label(_id_of(v), _name_of(v, "to"))),
    "what-changes": lambda session, v: view.changed(session.what_changes(_id_of(v), _name_of(v, "to"))),
    "unlabel": lambda session, v: session.unlabel(_id_of(v)),
    "remove": lambda session, v: session.remove(_id_of(v)),
    "save": lambda session, v: {"out": session.save().name},
    "load": lambda session, v: session.load(),
}
"""By the last part of the address; each answers JSON values."""


def _values(content: bytes) -> Values:
    try:
        found = json.loads(content or b"{}")
    except (ValueError, RecursionError) as error:
        raise DataError("the message is no JSON") from error
    if not isinstance(found, dict):
        raise DataError("the message is no JSON object")
    return found


def _error(message: str, status: int = 400) -> "Response":
    from starlette.responses import JSONResponse

    return JSONResponse({"error": message}, status_code=status)


async def _body(request: "Request", most: int) -> bytes | None:
    """The body, or None where it is longer than `most` bytes; never more than these are held.

    Of a page that was closed meanwhile it is empty, which no action takes for something.
    """
    from starlette.requests import ClientDisconnect

    parts, length = [], 0
    try:
        async for part in request.stream():
            length += len(part)
            if length > most:
                return None
            parts.append(part)
    except ClientDisconnect:
        return b""
    return b"".join(parts)
