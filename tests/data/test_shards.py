"""WebDataset shards: the same pictures as in a folder, labels, bad members, memory, the cache."""

import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selftaught.app.pretrain import pretrain
from selftaught.app.sources import as_pictures
from selftaught.core.errors import ConfigError, DataError, SaveError
from selftaught.data import rows, shards
from selftaught.data.folder import read_folder
from selftaught.data.shards import read_shards, shards_of

Members = Mapping[str, bytes]


def picture(n: int, kind: str = "PNG", side: int = 12) -> bytes:
    """A picture of noise of its own."""
    out = io.BytesIO()
    pixels = np.random.default_rng(n).integers(0, 256, (side, side + n % 3, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def shard(place: Path, members: Members, more: Callable[[tarfile.TarFile], None] = lambda _: None) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        more(tar)
    return place


KINDS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP", ".tiff": "TIFF"}


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    """Twelve pictures of several formats in three classes, in a folder and in two shards, in the same order."""
    content = {
        f"{'abc'[n // 4]}/{n:02}{extension}": picture(n, KINDS[extension])
        for n, extension in enumerate([*KINDS] * 2)
    }
    for name, data in content.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    parts = list(content.items())
    shard(tmp_path / "shards/00.tar", dict(parts[:5]))
    shard(tmp_path / "shards/01.tar", dict(parts[5:]))
    return tmp_path / "folder", tmp_path / "shards"


@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_pictures_as_in_a_folder(both: tuple[Path, Path], channels: int) -> None:
    folder, home = both
    a = read_folder(folder, size=8, channels=channels, labelled=True)
    b = read_shards(home, size=8, channels=channels, labelled=True)
    assert torch.equal(a.x, b.x) and b.x.shape == (12, channels, 8, 8)
    assert b.classes == a.classes == ("a", "b", "c")
    assert a.y is not None and b.y is not None and torch.equal(a.y, b.y)
    assert b.names[:2] == ("00.tar/a/00.png", "00.tar/a/01.jpg") and b.names[5] == "01.tar/b/05.tiff"
    assert b.skipped == ()


def test_the_same_training_as_from_a_folder(both: tuple[Path, Path], tmp_path: Path) -> None:
    weights = []
    for name, data in zip(("f", "s"), both, strict=True):
        options = {"batch": 6}
        model = pretrain(
            data, out=tmp_path / name, method="simclr", options=options, size=16, views="photo", steps=2,
            quiet=True, encoder_options={"width": 8},
        )  # fmt: skip
        weights.append(model.weights)
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_a_run_of_a_labelled_method_resumes_from_shards(both: tuple[Path, Path], tmp_path: Path) -> None:
    asked = {"ways": 2, "shots": 1, "queries": 1, "tasks": 1}
    pretrain(
        both[1], out=tmp_path / "run", method="protonet", options=asked, size=16, views="photo", steps=1,
        quiet=True, labelled=True, encoder_options={"width": 8},
    )  # fmt: skip
    model = pretrain(both[1], out=tmp_path / "run", resume=True, quiet=True)
    assert model.config.data["pictures"] == 12 and model.read(both[1], labelled=True).classes == ("a", "b", "c")
    assert model.adapt(both[1]).predict(both[1] / "00.tar")[0].name == "00.tar/a/00.png"


def test_which_paths_stand_for_shards(both: tuple[Path, Path], tmp_path: Path) -> None:
    folder, home = both
    assert [p.name for p in shards_of(home)] == ["00.tar", "01.tar"] and shards_of(home / "01.tar") == (
        home / "01.tar",
    )
    assert shards_of(folder) == () and shards_of(tmp_path / "missing") == () and shards_of(tmp_path) == ()
    shard(folder / "old.tar", {"a.png": picture(1)})
    assert shards_of(folder) == ()
    read = as_pictures(folder, 8, 3)
    assert len(read) == 12 and [s.reason for s in read.skipped] == [
        "is an archive; shards are read by their name or that of a folder without pictures"
    ]
    assert len(as_pictures(folder / "old.tar", 8, 3)) == 1 and len(as_pictures(str(home), 8, 3)) == 12
    with pytest.raises(DataError, match=r"missing: there are no WebDataset shards"):
        read_shards(tmp_path / "missing", size=8)
    with pytest.raises(DataError, match=r"read_shards"):
        read_folder(folder / "old.tar", size=8)


def labels(members: Members, place: Path) -> list[str]:
    read = read_shards(shard(place / "x.tar", members), size=8, labelled=True)
    assert read.y is not None
    return [read.classes[n] for n in read.y.tolist()]


def test_labels_come_from_cls_then_json_then_the_folder(tmp_path: Path) -> None:
    p = picture(0)
    numbers = {"d/a.jpg": p, "d/a.cls": b"10\n", "e/b.png": p, "e/b.cls": b"9", "e/b.json": b'{"cls": 3}'}
    assert labels(numbers, tmp_path) == ["10", "9"]
    assert read_shards(tmp_path / "x.tar", size=8, labelled=True).classes == ("9", "10")
    assert labels({"a.cls": b"cat", "b.cls": b"an owl", "a.jpg": p, "b.jpg": p}, tmp_path) == ["cat", "an owl"]
    said = {"a.jpg": p, "a.json": b'{"label": "cat", "w": 3}', "b.jpg": p, "b.json": b'{"class_name": "owl"}'}
    assert labels(said, tmp_path) == ["cat", "owl"]
    assert labels({"top/in/cat/x/1.jpg": p, "top/in/owl/1.jpg": p}, tmp_path) == ["cat", "owl"]
    assert labels({"./cat/1.jpg": p, "./cat/2.jpg": p}, tmp_path) == ["cat", "cat"]
    assert read_shards(tmp_path / "x.tar", size=8).y is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"a.cls": b"1"}, r"x\.tar/b\.jpg has no KEY\.cls .*which others have.*read it unlabelled"),
        ({"a.json": b'{"cls": 0}', "b.json": b'{"cls": true}'}, r"x\.tar/b\.jpg has no KEY\.json with a class"),
        ({"a.cls": b"\xff\xfe", "b.json": b"[" * 100_000}, r"x\.tar/a\.jpg has no class: neither KEY\.cls, nor"),
        ({"deep/c.jpg": picture(0)}, r"x\.tar/a\.jpg has no class"),
        ({}, r"x\.tar/a\.jpg has no class"),
    ],
)
def test_a_picture_without_a_label_is_an_error_only_where_one_is_asked_for(
    tmp_path: Path, more: Members, message: str
) -> None:
    members = {"a.jpg": picture(0), "b.jpg": picture(0), **more}
    with pytest.raises(DataError, match=message):
        labels(members, tmp_path)
    assert len(read_shards(tmp_path / "x.tar", size=8)) >= 2


def test_bad_members_are_skipped_by_shard_and_key(tmp_path: Path) -> None:
    members = {
        "a.png": picture(0),
        "cut.png": picture(1)[:60],
        "empty.jpg": b"",
        "phone.heic": b"x",
        "notes.pdf": b"x",
        "._a.png": b"x",
        "__MACOSX/a.png": b"x",
        "deep/b.jpg": picture(2, "JPEG"),
    }
    read = read_shards(shard(tmp_path / "x.tar", members), size=8, limit_pixels=1000)
    assert read.names == ("x.tar/a.png", "x.tar/deep/b.jpg")
    assert {s.path: s.reason.split(":")[0] for s in read.skipped} == {
        "x.tar/cut.png": "cannot be decoded",
        "x.tar/empty.jpg": "is empty (0 bytes)",
        "x.tar/phone.heic": "Pillow does not open .heic; save it as JPEG or PNG",
    }
    shard(tmp_path / "y.tar", {"a.png": picture(0, side=40)})
    with pytest.raises(
        DataError, match=r"no picture in the shards of .*y\.tar/a\.png: has more than 1,000 pixels"
    ):
        read_shards(tmp_path / "y.tar", size=8, limit_pixels=1000)


def link(tar: tarfile.TarFile) -> None:
    member = tarfile.TarInfo("b.jpg")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tar.addfile(member)


def test_unsafe_and_damaged_shards_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    good, room = {"a.jpg": picture(0)}, tmp_path / "room"
    shard(tmp_path / "link.tar", good, link)
    shard(tmp_path / "out.tar", good | {"../b.jpg": picture(0)})
    shard(tmp_path / "twice.tar", good | {"a.png": picture(0)})
    cut = shard(tmp_path / "cut.tar", good | {"b.bmp": picture(1, "BMP", 90)})
    cut.write_bytes(cut.read_bytes()[:5000])
    (tmp_path / "empty.tar").touch()
    wanted = {
        "link": "a link",
        "out": "a path outside",
        "twice": "two pictures of the name 'a'",
        "cut": "truncated",
        "empty": r"empty\.tar is empty",
    }
    for name, message in wanted.items():
        with pytest.raises(DataError, match=message):
            read_shards(tmp_path / f"{name}.tar", size=8, cache=room)
        assert list(room.iterdir()) == []
    for size, channels, workers in ((0, 3, None), (8, 2, None), (8, 3, -1)):
        with pytest.raises(ConfigError):
            read_shards(tmp_path / "link.tar", size=size, channels=channels, workers=workers)


def test_any_noise_is_an_error_or_every_picture(tmp_path: Path) -> None:
    whole = shard(tmp_path / "x.tar", {f"{n}.png": picture(n) for n in range(3)}).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(100):
        broken = np.frombuffer(whole, np.uint8).copy()
        broken[rng.integers(0, 5000, rng.integers(1, 9))] = rng.integers(0, 256)
        (tmp_path / "x.tar").write_bytes(broken.tobytes())
        try:
            read = read_shards(tmp_path / "x.tar", size=8)
        except DataError:
            continue
        assert len(read) + len(read.skipped) == 3


def test_workers_give_what_one_process_gives(both: tuple[Path, Path]) -> None:
    shard(both[1] / "02.tar", {f"{n}.png": picture(n)[: 60 if n == 7 else None] for n in range(40)})
    alone, together = (read_shards(both[1], size=8, workers=n) for n in (0, 2))
    assert torch.equal(alone.x, together.x) and alone.names == together.names and len(alone) == 51
    assert alone.skipped == together.skipped and alone.skipped[0].path == "02.tar/7.png"


def test_workers_start_once_the_rest_takes_long(both: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    def spy(job: object, items: object, workers: int, crashed: object) -> object:
        contents = list(items)  # type: ignore[call-overload]
        given.append(len(contents))
        return iter(job(contents))  # type: ignore[operator]

    shard(both[1] / "02.tar", {f"{n}.png": picture(n) for n in range(30)})
    monkeypatch.setattr(shards, "in_order", spy)
    first = read_shards(both[1], size=8).x
    monkeypatch.setattr(shards, "START_SECONDS", 0.0)
    assert torch.equal(read_shards(both[1], size=8).x, first) and given == [0, 26]


def test_the_cache_is_used_again_and_a_changed_shard_is_not(
    both: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(
        both[1] / "02.tar",
        {"c/z.png": picture(0), "c/bad.jpg": b"x", "c/y.heic": b"x", "c/tab\tname.png": picture(3)},
    )
    monkeypatch.setenv("SELFTAUGHT_CACHE", str(tmp_path / "room"))
    first = as_pictures(both[1], 8, 3, labelled=True)
    assert sorted(p.suffix for p in (tmp_path / "room").iterdir()) == [".json", ".npy", ".tsv"]
    with monkeypatch.context() as patched:
        patched.setattr(shards, "_contents", None)
        second = as_pictures(both[1], 8, 3, labelled=True)
        second.x.fill_(7)  # must not reach the stored set
        third = as_pictures(both[1], 8, 3)
        with pytest.raises(TypeError):
            as_pictures(both[1], 9, 3)
    assert first.names == second.names == third.names and first.names[-1] == "02.tar/c/tab\\x09name.png"
    assert first.skipped == second.skipped and len(first.skipped) == 2
    assert torch.equal(first.x, third.x) and first.classes == second.classes
    assert first.y is not None and second.y is not None and torch.equal(first.y, second.y)
    shard(both[1] / "02.tar", {"c/z.png": picture(5)})
    os.utime(both[1] / "02.tar", (1, 1))
    assert len(as_pictures(both[1], 8, 3)) == 13


def test_half_a_cache_counts_for_nothing(both: tuple[Path, Path], tmp_path: Path) -> None:
    room = tmp_path / "room"
    first = read_shards(both[1], size=8, cache=room)
    for suffix in (".json", ".npy", ".tsv"):
        for cut in (True, False):
            hurt = next(room.glob(f"*{suffix}"))
            hurt.write_bytes(hurt.read_bytes()[:-20]) if cut else hurt.unlink()
            again = read_shards(both[1], size=8, cache=room)
            assert torch.equal(again.x, first.x) and again.names == first.names


def test_a_full_disk_is_said_and_leaves_nothing(
    both: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fdopen

    def narrow(handle: int, mode: str, buffering: int) -> object:
        file = real(handle, mode, 0)

        class Full:
            fileno, seek, tell, truncate, close, flush = (
                getattr(file, n) for n in ("fileno", "seek", "tell", "truncate", "close", "flush")
            )

            @staticmethod
            def write(data: bytes) -> int:
                if file.tell() > 600:
                    raise OSError(28, "No space left on device")
                return file.write(data)

        return Full

    monkeypatch.setattr(os, "fdopen", narrow)
    with pytest.raises(SaveError, match=r"No space left.*larger disk"):
        read_shards(both[1], size=8, cache=tmp_path / "room")
    assert list((tmp_path / "room").iterdir()) == []


_KILLED = """
import os, sys
from pathlib import Path
from selftaught.data import shards
def dying(chunk, form, real=shards.decode_many):
    print(*[p.name for p in Path(sys.argv[2]).iterdir()], flush=True)
    os.kill(os.getpid(), int(sys.argv[3]))
shards.decode_many = dying
shards.read_shards(sys.argv[1], size=8, cache=Path(sys.argv[2]))
"""


def test_an_interrupted_reading_leaves_no_cache_and_the_next_clears_up(
    both: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = tmp_path / "room"

    def interrupted(chunk: object, form: object) -> None:
        assert [p.name[:9] for p in room.iterdir()] == ["building-"]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shards, "decode_many", interrupted)
        read_shards(both[1], size=8, cache=room)
    assert list(room.iterdir()) == []
    command = [sys.executable, "-c", _KILLED, str(both[1]), str(room), str(int(signal.SIGKILL))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode and ended.stdout.startswith("building-"), ended.stderr
    assert len(list(room.iterdir())) == 1
    with rows.Rows(room, (3, 8, 8)):  # the system's lock tells it from what was left
        (living,) = room.iterdir()
        assert living.name not in ended.stdout
        assert len(read_shards(both[1], size=8, cache=room)) == 12 and living.exists()
    assert sorted(p.suffix for p in room.iterdir()) == [".json", ".npy", ".tsv"]


_MEASURED = """
import sys, threading
from selftaught.data.shards import read_shards
def own():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon:")) / 1000
read_shards(sys.argv[2], size=64, workers=0)
before = high = own()
done = threading.Event()
def watch():
    global high
    while not done.wait(0.005):
        high = max(high, own())
thread = threading.Thread(target=watch)
thread.start()
read = read_shards(sys.argv[1], size=64, workers=0, in_memory_bytes=0)
done.set()
thread.join()
print(len(read), read.x.nbytes / 1e6, high - before)
"""


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    told = Path("/proc/self/status")
    if not told.exists() or "RssAnon:" not in told.read_text():
        pytest.skip("own memory is read from /proc, which this system lacks")
    content = [picture(n, "JPEG", 64) for n in range(20)]
    shard(tmp_path / "small.tar", {f"{n}.jpg": content[n] for n in range(20)})
    for part in range(2):
        shard(tmp_path / f"big/{part}.tar", {f"{n:04}.jpg": content[n % 20] for n in range(1000)})
    command = [sys.executable, "-c", _MEASURED, str(tmp_path / "big"), str(tmp_path / "small.tar")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    count, size, grown = (float(word) for word in ended.stdout.split())
    assert count == 2000 and size > 24
    assert grown < 6, f"{grown} MB more for a set of {size} MB"
