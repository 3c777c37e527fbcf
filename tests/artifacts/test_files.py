"""Files are the old one or the new one, whatever happens in between."""

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from selftaught.artifacts.files import read_json, sweep, write_atomically, write_bytes, write_json, write_text
from selftaught.core.errors import ConfigError, RunError, SaveError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(number: int) -> Callable[[Path], None]:
    """A writer that gets half of the file out and is then refused."""

    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    return write


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_refused_write_keeps_the_old_file_and_says_so(tmp_path: Path, number: int) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(SaveError, match="choose another folder") as caught:
        write_atomically(path, refuse(number))
    assert str(path) in str(caught.value) and os.strerror(number) in str(caught.value)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError])
def test_other_failures_pass_through_and_leave_nothing(tmp_path: Path, kind: type[BaseException]) -> None:
    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise kind

    with pytest.raises(kind):
        write_atomically(tmp_path / "out.txt", write)
    assert names(tmp_path) == []


def test_a_really_full_quota(tmp_path: Path) -> None:
    """The system itself refuses: no file may grow beyond 1000 bytes in this process."""
    pytest.importorskip("resource")
    code = """
        import resource, sys
        from selftaught.artifacts.files import write_bytes
        from selftaught.core.errors import SaveError
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_bytes(sys.argv[1], b"n" * 5000)
        except SaveError as error:
            print(error)
            sys.exit(error.exit_code)
    """
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == SaveError.exit_code, done.stderr
    assert "out.bin" in done.stdout
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["out.bin"]


def test_killed_before_the_rename_keeps_the_old_file(tmp_path: Path) -> None:
    code = """
        import os, pathlib, sys
        from selftaught.artifacts.files import write_text
        pathlib.Path.replace = lambda *_: os._exit(9)
        write_text(sys.argv[1], "new")
    """
    path = tmp_path / "out.txt"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], check=False)
    assert done.returncode == 9
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2  # a killed process cannot tidy up ...
    sweep(tmp_path)
    assert names(tmp_path) == ["out.txt"]  # ... the next holder of the lock does


def test_parents_are_made_and_the_content_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "out.bin"
    write_bytes(path, b"1")
    write_bytes(path, b"22")
    assert path.read_bytes() == b"22"


def test_new_files_have_the_permissions_of_ordinary_ones(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("")
    write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_link_keeps_pointing_where_it_did(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    try:
        (tmp_path / "link").symlink_to("real")
    except OSError:
        pytest.skip("no symbolic links here")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


@pytest.mark.skipif(not Path(os.devnull).exists() or os.name == "nt", reason="no device files")
def test_devices_and_folders_are_not_replaced(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path):
        with pytest.raises(SaveError, match="not an ordinary file"):
            write_text(path, "x")
    assert fifo.is_fifo()


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="could not be written"):
        write_text(tmp_path / "file" / "out.txt", "x")


def test_json_round_trip(tmp_path: Path) -> None:
    content = {"name": "Größe", "odd": "\udc80", "n": [1, 2.5, None, True], "in": {"a": "b"}}
    write_json(tmp_path / "x.json", content | {"path": Path("a") / "b"})
    assert read_json(tmp_path / "x.json") == content | {"path": "a/b"}


def test_json_of_something_else_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    with pytest.raises(ConfigError, match=r"x\.json was not written"):
        write_json(path, {"new": object()})
    assert read_json(path) == {"old": 1}


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"[1]", b"3", b"\xff\xfe\x00", b"[" * 200_000, b'{"a": 1}x'])
def test_broken_json_names_the_file_and_the_way_out(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"x\.json.*run again into a new folder"):
        read_json(path)


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"x\.json is missing"):
        read_json(tmp_path / "x.json")
    with pytest.raises(RunError, match="cannot be read"):
        read_json(tmp_path)
