"""The checked download, against a server on this machine and file addresses."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from selftaught.core.errors import ConfigError, DataError
from selftaught.data.download import data_folder, fetch


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class _BreaksOff(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 400)

    def log_message(self, format: str, *args: object) -> None:
        pass


def serving(handler: object) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "set.bin").write_bytes(bytes(range(256)) * 20)
    yield from serving(partial(_Quiet, directory=str(tmp_path / "www")))


@pytest.fixture
def breaking() -> Iterator[str]:
    yield from serving(_BreaksOff)


SET = bytes(range(256)) * 20


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_fetch_over_http_reports_and_verifies(served: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    target = tmp_path / "deep" / "er" / "set.bin"
    got = fetch(f"{served}/set.bin", target, md5=md5(SET), progress=lambda n, total: seen.append((n, total)))
    assert got == target and target.read_bytes() == SET
    assert seen[-1] == (len(SET), len(SET)) and left(target.parent) == ["set.bin"]


def test_fetch_does_not_download_twice(tmp_path: Path) -> None:
    source = tmp_path / "a.bin"
    source.write_bytes(SET)
    digest = hashlib.sha256(SET).hexdigest()
    fetch(source.as_uri(), tmp_path / "b.bin", sha256=digest.upper())
    source.unlink()
    assert fetch(source.as_uri(), tmp_path / "b.bin", sha256=digest).read_bytes() == SET


def test_wrong_checksum_leaves_what_was_there(served: str, tmp_path: Path) -> None:
    target = tmp_path / "to" / "set.bin"
    with pytest.raises(DataError, match=rf"set\.bin has md5 {md5(SET)} instead of 0000.*local path"):
        fetch(f"{served}/set.bin", target, md5="0" * 32)
    assert left(target.parent) == []
    target.write_bytes(b"older")
    with pytest.raises(DataError):
        fetch(f"{served}/set.bin", target, md5="0" * 32)
    assert target.read_bytes() == b"older" and left(target.parent) == ["set.bin"]
    assert fetch(f"{served}/set.bin", target, md5=md5(SET)).read_bytes() == SET


def test_broken_transfer(breaking: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"400 of 1000 bytes|cannot download"):
        fetch(f"{breaking}/set.bin", tmp_path / "to" / "set.bin", md5="0" * 32)
    assert left(tmp_path / "to") == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/set.bin", "file:///nowhere/set.bin", "nonsense"])
def test_without_a_network_the_message_names_the_way_out(url: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot download .*pass its path instead"):
        fetch(url, tmp_path / "to" / "set.bin", md5="0" * 32)
    assert left(tmp_path / "to") == []


def test_missing_page(served: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"404|Not Found|not found"):
        fetch(f"{served}/other.bin", tmp_path / "set.bin", md5="0" * 32)


def test_exactly_one_checksum(tmp_path: Path) -> None:
    for kwargs in ({}, {"md5": "0", "sha256": "0"}):
        with pytest.raises(ConfigError, match="exactly one"):
            fetch("file:///x", tmp_path / "x", **kwargs)  # type: ignore[arg-type]


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="SELFTAUGHT_DATA"):
        fetch("file:///x", tmp_path / "file" / "x", md5="0" * 32)


def test_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SELFTAUGHT_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    monkeypatch.delenv("SELFTAUGHT_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_folder() == tmp_path / "selftaught"
