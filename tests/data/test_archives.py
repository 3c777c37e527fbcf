"""Archives that want to leave their place, fill the memory, or hide what they lost."""

import bz2
import gzip
import io
import lzma
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from selftaught.core.errors import DataError
from selftaught.data import archives
from selftaught.data.archives import open_zip, tar_files
from selftaught.data.captions import read_captioned

FILES = {"a.txt": b"one", "deep/b.txt": b"two" * 400, "c.txt": b""}


def tar(members: dict[str, bytes], more: Callable[[tarfile.TarFile], None] = lambda _: None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as opened:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
        more(opened)
    return out.getvalue()


def odd(kind: bytes, link: str = "") -> Callable[[tarfile.TarFile], None]:
    def add(opened: tarfile.TarFile) -> None:
        member = tarfile.TarInfo("odd.txt")
        member.type, member.linkname = kind, link
        opened.addfile(member)

    return add


def written(folder: Path, content: bytes, name: str = "x.tar") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def everything(place: Path) -> dict[str, bytes]:
    return dict(tar_files(place, lambda name: True))


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_files_come_whole_however_packed(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    place = written(tmp_path, pack(tar(FILES)))
    assert everything(place) == FILES
    assert dict(tar_files(place, lambda name: name == "a.txt")) == {"a.txt": b"one"}


@pytest.mark.parametrize("name", ["../a.txt", "/a.txt", "x/../../a.txt", "..\\a.txt", "C:\\a.txt", "\\a.txt"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_paths_that_lead_outside(tmp_path: Path, name: str, kind: str) -> None:
    if kind == "tar":
        with pytest.raises(DataError, match="a path outside of it"):
            everything(written(tmp_path, tar({name: b"x"})))
        return
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr(name, b"x")
    with pytest.raises(DataError, match="a path outside of it"):
        open_zip(tmp_path / "x.zip")


@pytest.mark.parametrize(
    ("kind", "link", "message"),
    [
        (tarfile.SYMTYPE, "/etc/passwd", "a link"),
        (tarfile.SYMTYPE, "a.txt", "a link"),
        (tarfile.LNKTYPE, "a.txt", "a link"),
        (tarfile.CHRTYPE, "", "a device"),
        (tarfile.BLKTYPE, "", "a device"),
        (tarfile.FIFOTYPE, "", "pipe"),
    ],
)
def test_links_and_devices_are_refused_also_where_nobody_wants_them(
    tmp_path: Path, kind: bytes, link: str, message: str
) -> None:
    place = written(tmp_path, tar(FILES, odd(kind, link)))
    with pytest.raises(DataError, match=rf"x\.tar holds 'odd\.txt', .*{message}.*plain files only"):
        list(tar_files(place, lambda name: name == "a.txt"))


def test_the_same_name_twice(tmp_path: Path) -> None:
    for second in ("a.txt", "./a.txt"):

        def again(opened: tarfile.TarFile, second: str = second) -> None:
            opened.addfile(tarfile.TarInfo(second))

        with pytest.raises(DataError, match=r"a\.txt' twice"):
            everything(written(tmp_path, tar(FILES, again)))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened, pytest.warns(UserWarning, match="Duplicate"):
        opened.writestr("a", b"1")
        opened.writestr("a", b"2")
    with pytest.raises(DataError, match="'a' twice"):
        open_zip(tmp_path / "x.zip")


def test_a_file_with_holes(tmp_path: Path) -> None:
    """Old GNU form: 512 bytes on disk that say they are 8 GB."""
    plain = bytearray(tar({"a.txt": b"x" * 512}))
    plain[156:157] = b"S"
    plain[386:398], plain[398:410] = b"00000000000\0", b"00000001000\0"
    plain[483:495] = b"77777777777\0"
    plain[148:156] = b" " * 8
    plain[148:156] = f"{sum(plain[:512]):06o}\0 ".encode()
    with pytest.raises(DataError, match=r"a\.txt', a device, pipe or file with holes"):
        everything(written(tmp_path, bytes(plain)))


@pytest.mark.parametrize("wanted", [True, False])
def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, wanted: bool) -> None:
    """300 MB of zeros in 300 KB, in one piece and in many; also where the files are passed over."""
    with gzip.open(tmp_path / "x.tar.gz", "wb", compresslevel=1) as out:
        for n in range(10):
            member = tarfile.TarInfo(f"{n}.txt")
            member.size = 300 * 102_400
            out.write(member.tobuf())
            for _ in range(300):
                out.write(bytes(102_400))
    with pytest.raises(DataError, match="more than 100 times its size"):
        for _, content in tar_files(tmp_path / "x.tar.gz", lambda name: wanted):
            assert len(content) <= archives.FREE_BYTES


def test_one_file_too_large(tmp_path: Path) -> None:
    place = written(tmp_path, tar({"a.txt": b"x" * 5000}))
    with pytest.raises(DataError, match="5,000 bytes in one piece, more than 4,999"):
        list(tar_files(place, lambda name: True, most=4999))


def test_zip_bombs_links_and_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "x.zip"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("zeros", bytes(1_000_000))
    monkeypatch.setattr(archives, "FREE_BYTES", 100_000)
    with pytest.raises(DataError, match="more than 100 times its size"):
        open_zip(place)
    monkeypatch.setattr(archives, "MOST_BYTES", 999_999)
    with pytest.raises(DataError, match="of more than 999,999 bytes"):
        open_zip(place)
    monkeypatch.undo()
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(place, "w") as out:
        out.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="'link', a link"):
        open_zip(place)
    with zipfile.ZipFile(place, "w") as out:
        out.writestr("a", b"hello hello")
    place.write_bytes(place.read_bytes().replace(b"hello hello", b"hello jello"))
    with pytest.raises(DataError, match=r"x\.zip: a is damaged .*CRC"):
        open_zip(place)[1]("a")


def test_nothing_is_lost_in_silence(tmp_path: Path) -> None:
    """Cut at every block, and each header damaged in turn: an error, or every file."""
    whole = tar(FILES)
    for end in range(0, len(whole), 512):
        place = written(tmp_path, whole[:end])
        try:
            assert everything(place) == FILES
        except DataError as error:
            assert str(place) in str(error)
        else:
            assert end > whole.rindex(b"c.txt")
    for start in (whole.index(name.encode()) for name in FILES):
        broken = bytearray(whole)
        broken[start + 150] ^= 1
        with pytest.raises(DataError, match=r"damaged at byte|truncated"):
            everything(written(tmp_path, bytes(broken)))


def test_two_archives_in_one_file_are_no_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="damaged at byte"):
        everything(written(tmp_path, tar({"a.txt": b"1"}) + tar({"b.txt": b"2"})))


def test_any_noise_is_one_error(tmp_path: Path) -> None:
    chance = random.Random(0)
    for _ in range(200):
        broken = bytearray(tar(FILES))
        for _ in range(chance.randint(1, 20)):
            broken[chance.randrange(3 * 512)] = chance.choice([0, 255, chance.randrange(256)])
        try:
            found = everything(written(tmp_path, bytes(broken)))
        except DataError:
            continue
        assert len(found) == len(FILES)


def test_shards_are_refused_alike(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a link"):
        read_captioned(written(tmp_path, tar({"a.txt": b"x"}, odd(tarfile.SYMTYPE, "/etc/passwd"))), size=8)


def test_shards_name_what_they_cannot_use(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(out, "PNG")
    sample = {"a.png": out.getvalue(), "a.txt": b"red"}
    read = read_captioned(written(tmp_path, tar(sample | {"b.heic": b"x", "b.txt": b"blue"})), size=8)
    assert read.names == ("x.tar/a.png",)
    assert [(s.path, s.reason) for s in read.skipped] == [
        ("x.tar/b", "no picture for its caption that Pillow opens")
    ]
    with pytest.raises(DataError, match="two pictures of the name 'a'"):
        read_captioned(written(tmp_path, tar(sample | {"a.jpg": b"x"})), size=8)
