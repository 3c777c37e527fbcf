"""The playground over HTTP on the loopback: what it answers, and whom it refuses."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from play_server import TOKEN, Address, a_model, a_session, drawings, served, with_classes

from selftaught.app.classifier import Classifier
from selftaught.app.cli import main
from selftaught.app.play.pictures import Limits
from selftaught.app.play.session import PlaySession
from selftaught.app.playing import listening

for needed in ("starlette", "uvicorn"):
    pytest.importorskip(needed, reason="extra play")

HOST = {"Host": "127.0.0.1"}


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Address]:
    torch.set_num_threads(1)
    with served(with_classes(a_session(tmp_path, Limits(file_bytes=100_000)))) as address:
        yield address


def test_the_page_and_its_parts(at: Address) -> None:
    for path, kind in (("", "text/html"), ("play.css", "text/css"), ("play.js", "text/javascript")):
        answer = at.ask(path)
        assert answer.status == 200 and answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert (
            answer.headers["cache-control"] == "no-store" and answer.headers["x-content-type-options"] == "nosniff"
        )


def test_the_page_is_all_its_own() -> None:
    """No address of elsewhere, no inline script or style (the policy would stop them), no markup from text."""
    page, script, style = (
        files("selftaught.app.play").joinpath(f"play.{e}").read_text() for e in ("html", "js", "css")
    )
    for text in (page, script, style):
        assert "https:" not in text and "url(" not in text
    assert "innerHTML" not in script and "eval(" not in script and "insertAdjacent" not in script
    assert "style=" not in page and " onclick" not in page and "<script>" not in page


def test_a_session_over_http(at: Address, tmp_path: Path) -> None:
    state = at.ask("state").json
    assert [c["name"] for c in state["classes"]] == ["a", "b"] and len(state["unlabelled"]) == 4
    one = state["unlabelled"][0]
    assert sum(one["guess"]["probabilities"].values()) == pytest.approx(1)
    assert {"id", "label", "similarity"} <= set(one["guess"]["neighbours"][0])
    assert state["suggestions"]["margin"]["id"] in {p["id"] for p in state["unlabelled"]}
    picture = at.ask(f"picture/{one['id']}")
    assert picture.headers["content-type"] == "image/png" and picture.body.startswith(b"\x89PNG")
    assert len(at.ask("map").json["points"]) == 6

    foreseen = at.do("what-changes", id=one["id"], to="b").json
    assert at.do("label", id=one["id"], to="b").json == foreseen and len(foreseen["moves"]) == 3
    assert at.do("rename-class", name="b", to="<b>").json == {"name": "<b>"}
    assert at.do("add-class", name="c").json == {"name": "c"} and at.do("remove-class", name="c").status == 200
    assert at.do("save").json == {"out": "clf"}
    assert Classifier.load(tmp_path / "clf").classes == ("a", "<b>")
    at.do("unlabel", id=one["id"])
    assert at.ask("state").json["unsaved"] and at.do("load").status == 200
    assert len(at.ask("state").json["classes"][1]["pictures"]) == 2
    gone = at.ask("state").json["unlabelled"][0]["id"]
    assert at.do("remove", id=gone).status == 200 and at.ask(f"picture/{gone}").status == 400


def test_uploads(at: Address) -> None:
    good, name = drawings(seed=3)[0][0], quote("../../<img src=x>.png")
    answer = at.ask(f"pictures?name={name}&to=a", "POST", good)
    added = at.ask("state").json["classes"][0]["pictures"][1]
    assert added == {"id": answer.json["id"], "name": "<img src=x>.png"}
    bad = at.ask("pictures?name=notes.txt", "POST", b"hello")
    assert bad.status == 400 and bad.json["error"] == "notes.txt: not in a picture format that Pillow reads"
    large = at.ask("pictures?name=large.png", "POST", b"\0" * 100_001)
    assert large.status == 413 and "large.png: larger than" in large.json["error"]
    assert at.ask("pictures?name=a.png&to=z", "POST", good).status == 400
    assert len(at.ask("state").json["unlabelled"]) == 4


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:80"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "192.168.0.1"}, 421),
        ({"Host": ""}, 421),
        (HOST | {"Origin": "http://127.0.0.1"}, 200),
        (HOST | {"Origin": "http://evil.example"}, 403),
        (HOST | {"Origin": "http://127.0.0.1:1"}, 403),
        (HOST | {"Origin": "null"}, 403),
        (HOST | {"Sec-Fetch-Site": "same-origin"}, 200),
        (HOST | {"Sec-Fetch-Site": "cross-site"}, 403),
        (HOST | {"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_who_may_post(at: Address, headers: dict[str, str], status: int) -> None:
    answer = at.ask("do/add-class", "POST", b'{"name": "new"}', headers)
    assert answer.status == status
    assert len(at.ask("state").json["classes"]) == (3 if status == 200 else 2)
    assert "content-security-policy" in answer.headers


@pytest.mark.parametrize(
    "path", ["/", "/state", f"/{TOKEN}", f"/{TOKEN}x/state", f"//{TOKEN}/state", "/none/state"]
)
def test_nothing_without_the_token(at: Address, path: str) -> None:
    assert at.ask(path, raw=True).status == 404


def test_open_to_the_network_takes_addresses_and_no_strange_names(tmp_path: Path) -> None:
    with served(a_session(tmp_path), open_to_network=True) as at:
        for host in ("192.168.0.7:80", "[fe80::1]:80", "localhost", socket.gethostname()):
            assert at.ask("state", headers={"Host": host}).status == 200, host
        assert at.ask("state", headers={"Host": "evil.example"}).status == 421


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 60_000,
        b'{"id": "1", "to": "a"}',
        b'{"id": true, "to": "a"}',
        b'{"id": 1}',
        b"\xff",
    ],
)
def test_messages_that_make_no_sense(at: Address, body: bytes) -> None:
    answer = at.ask("do/label", "POST", body)
    assert answer.status == 400 and answer.json["error"]


def test_a_page_that_is_closed_while_it_sends(at: Address) -> None:
    with socket.create_connection(("127.0.0.1", at.port)) as connection:
        start = f"POST /{TOKEN}/pictures?name=a.png HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\nabc"
        connection.sendall(start.encode())
    assert len(at.ask("state").json["unlabelled"]) == 4


def test_other_addresses(at: Address) -> None:
    assert at.do("format-disk").status == 404 and at.ask("../../etc/passwd").status == 404
    assert at.ask("state", "POST").status == 405 and at.ask("do/save").status == 405
    assert at.ask("do/label", "POST", b" " * 70_000).status == 413
    assert at.ask("picture/99").status == 400


def test_a_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_model().save(tmp_path / "model")
    with listening("127.0.0.1", 0) as sock:
        port = str(sock.getsockname()[1])
        assert main(["play", str(tmp_path / "model"), "--port", port]) == 5
    assert "give another --port" in capsys.readouterr().err
    assert main(["play", str(tmp_path / "model"), "--port", "70000"]) == 5


def test_other_hosts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["play", "run", "--host", "192.168.0.1"])
    capsys.readouterr()


def test_the_command(tmp_path: Path) -> None:
    """A process of its own: prints an address that works, keeps nothing, ends at an interrupt."""
    with_classes(PlaySession(a_model(), tmp_path / "clf")).save()
    code = "from selftaught.app.cli import main; raise SystemExit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", code, "play", str(tmp_path / "clf"), "--out", str(tmp_path / "other")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        try:
            said = running.stdout.readline()
            assert said.startswith("playground: http://127.0.0.1:")
            port, token = said.split()[1].removeprefix("http://127.0.0.1:").strip("/").split("/")
            state = Address(int(port)).ask(f"/{token}/state", raw=True)
            assert [c["name"] for c in json.loads(state.body)["classes"]] == ["a", "b"]
            made = Address(int(port)).ask(f"/{token}/do/add-class", "POST", b'{"name": "c"}', raw=True)
            assert made.status == 200
        finally:
            running.send_signal(signal.SIGINT)
            _, complained = running.communicate(timeout=60)
        assert running.returncode in (0, 130, -signal.SIGINT)
        assert "not saved" in complained and token not in complained and "Traceback" not in complained
    assert [p.name for p in tmp_path.iterdir()] == ["clf"]


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["play", "run"]) == 5
    assert "pip install 'selftaught[play]'" in capsys.readouterr().err


def test_help_does_not_wait_for_torch() -> None:
    code = """
import sys
from selftaught.app.cli import main
try:
    main(["play", "--help"])
except SystemExit:
    print([m for m in ("torch", "numpy", "PIL", "starlette", "uvicorn") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "--host" in done.stdout and done.stdout.splitlines()[-1] == "[]"
