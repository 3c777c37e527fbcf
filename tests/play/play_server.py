"""A playground for tests: an untrained model, characters as picture files, a real server on the loopback."""

import http.client
import io
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from selftaught.app.config import Config
from selftaught.app.model import Model
from selftaught.app.play.pictures import Limits
from selftaught.app.play.server import application
from selftaught.app.play.session import PlaySession
from selftaught.app.playing import listening, server
from selftaught.data.strokes import draw_strokes

TOKEN = "only-for-tests"


def a_model(size: int = 16, seed: int = 1) -> Model:
    """Untrained; another for every seed."""
    config = Config(
        "simclr", {}, "conv4", {"width": 4}, size, 1, "glyph", {}, steps=0, rate=0.0, warmup=0, weight_decay=0.0,
        seed=seed,
    )  # fmt: skip
    net = config.build_network()
    return Model(net, net.state_dict(), config)


def drawings(classes: int = 2, per_class: int = 3, seed: int = 0) -> list[list[bytes]]:
    """PNG files of generated characters, by class."""
    x = draw_strokes(classes, per_class, size=24, seed=seed).x
    files = [as_file(Image.fromarray(p[0].numpy())) for p in x]
    return [files[i * per_class : (i + 1) * per_class] for i in range(classes)]


def as_file(image: Image.Image, kind: str = "PNG") -> bytes:
    with io.BytesIO() as file:
        image.save(file, kind)
        return file.getvalue()


def a_session(folder: Path, limits: Limits | None = None) -> PlaySession:
    """Without pictures; saves in `folder`/clf."""
    return PlaySession(a_model(), folder / "clf", limits=limits)


def with_classes(session: PlaySession) -> PlaySession:
    """Two characters, one labelled picture each, two pictures of each unlabelled."""
    for name, files in zip(("a", "b"), drawings(), strict=True):
        session.add_class(name)
        session.add(files[0], f"{name}0.png", name)
        for n, file in enumerate(files[1:], 1):
            session.add(file, f"{name}{n}.png")
    return session


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Address:
    """Where a playground listens; `base` is the page."""

    port: int

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}/{TOKEN}/"

    def ask(
        self,
        path: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        raw: bool = False,
    ) -> Answer:
        """One request below the token (with `raw`: any path), headers as given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path if raw else f"/{TOKEN}/{path}", body, dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def do(self, action: str, **values: Any) -> Answer:
        return self.ask(f"do/{action}", "POST", json.dumps(values).encode())


@contextmanager
def served(session: PlaySession, open_to_network: bool = False) -> Iterator[Address]:
    """The session behind a real server, as `selftaught play` starts it, in a thread."""
    with listening("127.0.0.1", 0) as sock:
        running = server(application(session, TOKEN, open_to_network))
        thread = threading.Thread(target=running.run, args=([sock],), daemon=True)
        thread.start()
        while not running.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield Address(sock.getsockname()[1])
        finally:
            running.should_exit = True
            thread.join(30)
    assert not thread.is_alive()
