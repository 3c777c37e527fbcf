"""Everything that can lie in a folder and is no good picture: none of it may crash, hang or go unsaid."""

import os
import socket
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killer_job import shout
from PIL import Image

from selftaught.core.errors import DataError
from selftaught.data import folder, listing, parallel
from selftaught.data.decode import printable
from selftaught.data.folder import read_files, read_folder
from selftaught.data.pictures import Pictures


def good(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((20, 20), 80).save(path)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"IEND"
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 0)
        + end
        + struct.pack(">I", zlib.crc32(end))
    )


def reasons(pictures: Pictures) -> dict[str, str]:
    return {Path(s.path).name: s.reason for s in pictures.skipped}


def test_bad_files_are_skipped_with_a_reason(tmp_path: Path) -> None:
    whole = good(tmp_path / "good.png").read_bytes()
    Image.effect_noise((99, 99), 80).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("this is no picture")
    (tmp_path / "page.gif").write_text("<html>404</html>")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "notes.txt").write_text("notes")
    pictures = read_folder(tmp_path, size=8)
    assert [Path(n).name for n in pictures.names] == ["good.png"]
    why = reasons(pictures)
    assert set(why) == {"cut.jpg", "cut.png", "empty.png", "text.jpg", "page.gif", "phone.heic"}
    assert "truncated" in why["cut.jpg"] and "cannot be decoded" in why["cut.png"]
    assert "0 bytes" in why["empty.png"] and "format" in why["text.jpg"]
    assert "save it as JPEG" in why["phone.heic"]
    assert listing.list_folder(str(tmp_path)).ignored == ("notes.txt",)


def test_wrong_extension_is_no_obstacle(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "x.jpg", format="PNG")
    assert read_folder(tmp_path, size=4).x[0, :, 0, 0].tolist() == [255, 0, 0]


def test_postscript_is_never_run(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png", format="EPS")
    good(tmp_path / "good.png")
    assert "format" in reasons(read_folder(tmp_path, size=4))["x.png"]


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_decompression_bomb(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    good(tmp_path / "good.png")
    before = Image.MAX_IMAGE_PIXELS
    pictures = read_folder(tmp_path, size=8)
    assert "64,000,000 pixels" in reasons(pictures)["bomb.png"] and len(pictures) == 1
    assert before == Image.MAX_IMAGE_PIXELS


def test_limit_of_pixels_is_the_callers(tmp_path: Path) -> None:
    good(tmp_path / "a.png")
    with pytest.raises(DataError, match="399 pixels"):
        read_folder(tmp_path, size=8, limit_pixels=399)
    before = Image.MAX_IMAGE_PIXELS
    assert len(read_folder(tmp_path, size=8, limit_pixels=400)) == 1
    assert before == Image.MAX_IMAGE_PIXELS != 400


def test_pipes_sockets_and_devices_do_not_block(tmp_path: Path) -> None:
    good(tmp_path / "good.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "null.png").symlink_to("/dev/zero")
    # Socket paths are short on Unix, so a folder of our own near the root.
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as plug:
        plug.bind(f"{short}/s.png")
        (tmp_path / "linked").symlink_to(short)
        pictures = read_folder(tmp_path, size=8)
    assert {n: "not a file" in r for n, r in reasons(pictures).items()} == {
        "pipe.png": True,
        "null.png": True,
        "s.png": True,
    }
    assert "not a file" in reasons(read_files([tmp_path / "pipe.png", tmp_path / "good.png"], size=8))["pipe.png"]


def test_link_loops_end_and_each_file_counts_once(tmp_path: Path) -> None:
    good(tmp_path / "a/one.png")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "a/self").symlink_to(tmp_path / "a")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "again.png").symlink_to(tmp_path / "a/one.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    pictures = read_folder(tmp_path, size=8)
    assert [str(Path(n).relative_to(tmp_path)) for n in pictures.names] == ["a/one.png"]
    why = reasons(pictures)
    assert set(why) == {"again.png", "gone.png", "round.png"}
    assert "same file as" in why["again.png"] and "broken link" in why["gone.png"]


def test_links_out_of_the_folder_are_followed(tmp_path: Path) -> None:
    good(tmp_path / "elsewhere/x.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    assert len(read_folder(tmp_path / "in", size=8)) == 1


def test_folder_with_the_name_of_a_picture(tmp_path: Path) -> None:
    good(tmp_path / "x.png/inner.png")
    pictures = read_folder(tmp_path, size=8)
    assert [Path(n).name for n in pictures.names] == ["inner.png"] and pictures.skipped == ()


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    for name in ["seen.png", ".hidden.png", "._seen.png", ".git/x.png", "__MACOSX/y.png", "@eaDir/z.jpg"]:
        good(tmp_path / name)
    pictures = read_folder(tmp_path, size=8)
    assert [Path(n).name for n in pictures.names] == ["seen.png"] and pictures.skipped == ()


def test_odd_names_are_read_and_can_be_printed(tmp_path: Path) -> None:
    names = [
        b"caf\xe9.png",
        "日本　語.png".encode(),
        b"new\nline.png",
        b"\x1b[31mred.png",
        "é".encode() + b" '\".png",
    ]
    for name in names:
        good(tmp_path / "plain.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    (tmp_path / os.fsdecode(b"bad\xff.png")).write_bytes(b"x")
    pictures = read_folder(tmp_path, size=8, cache=tmp_path / "cache")
    again = read_folder(tmp_path, size=8, cache=tmp_path / "cache")
    assert len(pictures) == 5 and again.names == pictures.names
    shown = " ".join([*pictures.names, *(s.path for s in pictures.skipped)])
    shown.encode("utf-8")  # lone surrogates would raise
    assert "\n" not in shown and "\x1b" not in shown and "日本　語.png" in shown
    assert "caf\\xe9.png" in shown and "bad\\xff.png" in shown


def test_printable_leaves_plain_names_alone() -> None:
    assert printable("dir/naïve Bild 1.png") == "dir/naïve Bild 1.png"
    assert printable("a\x00b\udcff\ud800") == "a\\x00b\\xff\\ud800"


def test_odd_class_names(tmp_path: Path) -> None:
    good(tmp_path / os.fsdecode(b"k\xe9") / "a.png")
    good(tmp_path / "b/a.png")
    pictures = read_folder(tmp_path, size=8, labelled=True)
    assert pictures.classes == ("b", "k\\xe9")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good(tmp_path / "locked.png"), good(tmp_path / "open.png")
    plain = Path.open

    def guarded(self: Path, *args: Any, **options: Any) -> Any:
        if self.name == "locked.png":
            raise PermissionError(13, "Permission denied", str(self))
        return plain(self, *args, **options)

    # The tests may run as root, to whom every file is open.
    monkeypatch.setattr(Path, "open", guarded)
    assert reasons(read_folder(tmp_path, size=8, cache=tmp_path / "c")) == {
        "locked.png": "no permission to read it"
    }
    monkeypatch.undo()
    # A refusal is not remembered: the rights may be put right without the file changing.
    assert len(read_folder(tmp_path, size=8, cache=tmp_path / "c")) == 2


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good(tmp_path / "open/a.png"), good(tmp_path / "shut/b.png")
    plain = os.scandir

    def guarded(path: str) -> Any:
        if path.endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return plain(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert "no permission" in reasons(read_folder(tmp_path, size=8))["shut"]
    with pytest.raises(DataError, match="no permission"):
        read_folder(tmp_path / "shut", size=8)
    with pytest.raises(DataError, match=r"shut \(.*no permission"):
        read_folder(tmp_path, size=8, labelled=True)


def test_out_of_memory_costs_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good(tmp_path / "a.png"), good(tmp_path / "b.png")
    plain = Image.Image.resize
    calls = iter([True, False])

    def once(self: Image.Image, *args: Any, **options: Any) -> Image.Image:
        if next(calls):
            raise MemoryError
        return plain(self, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", once)
    assert "memory" in reasons(read_folder(tmp_path, size=8))["a.png"]


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nowhere.*spelling"):
        read_folder(tmp_path / "nowhere", size=8)
    with pytest.raises(DataError, match="there is no folder"):
        read_folder("nul\0byte", size=8)
    with pytest.raises(DataError, match=r"is empty.*Put JPEG or PNG"):
        read_folder(tmp_path, size=8)
    (tmp_path / "a.zip").touch(), (tmp_path / "b.csv").touch()
    with pytest.raises(DataError, match=r"file, not a folder. Unpack it"):
        read_folder(tmp_path / "a.zip", size=8)
    with pytest.raises(DataError, match=r"file, not a folder. Name the folder"):
        read_folder(tmp_path / "b.csv", size=8)
    with pytest.raises(DataError, match=r"no pictures, only 2 other files: a\.zip, b\.csv"):
        read_folder(tmp_path, size=8)
    with pytest.raises(DataError, match="file, not a folder"):
        read_folder(good(tmp_path / "p.png"), size=8, labelled=True)
    with pytest.raises(DataError, match="list of files is empty"):
        read_files([], size=8)


def test_nothing_usable(tmp_path: Path) -> None:
    for n in range(5):
        (tmp_path / f"{n}.png").write_bytes(b"x" * n)
    with pytest.raises(DataError, match=r"none of the 5 pictures.*0\.png: is empty.*and 2 more.*JPEG or PNG"):
        read_folder(tmp_path, size=8, cache=tmp_path / "cache")
    with pytest.raises(DataError, match=r"gone\.png: there is no such file"):
        read_files([tmp_path / "gone.png"], size=8)
    assert not list((tmp_path / "cache").iterdir())


def test_listed_folder_and_missing_file(tmp_path: Path) -> None:
    pictures = read_files([good(tmp_path / "a.png"), tmp_path, tmp_path / "gone.png"], size=8)
    assert len(pictures) == 1
    assert "read_folder" in pictures.skipped[0].reason
    assert "no such file" in pictures.skipped[1].reason


def test_classes_that_cannot_be(tmp_path: Path) -> None:
    good(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"no folders in it.*Make one folder a class"):
        read_folder(tmp_path, size=8, labelled=True)
    good(tmp_path / "full/a.png")
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match=r"1 of 2 class folders .* hold no usable picture: void. Add"):
        read_folder(tmp_path, size=8, labelled=True)
    (tmp_path / "void/bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"hold no usable picture: void \(.*bad\.png: not in a picture format"):
        read_folder(tmp_path, size=8, labelled=True)


def test_deep_nesting(tmp_path: Path) -> None:
    good(tmp_path.joinpath(*["d"] * 300, "a.png"))
    assert len(read_folder(tmp_path, size=8)) == 1


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(parallel, "CHUNK", 2)
    yield


@pytest.mark.usefixtures("small_chunks")
def test_a_file_that_kills_its_worker_costs_only_itself() -> None:
    items = [*"abc", "kill", *"defghij"]
    results = list(parallel.in_order(shout, items, 2, "dead"))
    assert results == [*"ABC", "dead", *"DEFGHIJ"]


def test_a_crash_is_reported_and_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good(tmp_path / "a.png"), good(tmp_path / "b.png")

    def crashing(job: Any, items: list[str], workers: int, crashed: Any) -> Iterator[Any]:
        yield crashed
        yield from job(items[1:])

    monkeypatch.setattr(folder, "in_order", crashing)
    assert reasons(read_folder(tmp_path, size=8, cache=tmp_path / "c")) == {"a.png": "the decoder crashed on it"}
    monkeypatch.undo()
    assert len(read_folder(tmp_path, size=8, cache=tmp_path / "c")) == 2


def test_without_processes_the_work_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: int) -> None:
        raise OSError("no semaphores here")

    monkeypatch.setattr(parallel, "_pool", refused)
    assert list(parallel.in_order(shout, ["a", "b"], 2, "dead")) == ["A", "B"]


def test_an_abandoned_reading_leaves_no_processes() -> None:
    import multiprocessing

    results = parallel.in_order(shout, ["a"] * 40, 2, "dead")
    assert next(results) == "A"
    results.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []
