"""Listings of many files: the order of their paths, one entry a real file, and few bytes for each."""

import os
import tracemalloc
from pathlib import Path

from selftaught.data.folder import read_folder
from selftaught.data.listing import Entries, Entry, list_files, list_folder

MIXED = ("a b.png", "a.png", "a/z.png", "a/b/x.png", "a/b.png", "a!/k.png", "b/y.png", "a/ä.png", "Z.png")


def touch(root: Path, names: tuple[str, ...] | list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_files_are_in_the_order_of_their_parts(tmp_path: Path) -> None:
    touch(tmp_path, MIXED)
    files = list_folder(str(tmp_path)).files
    assert [f.parts for f in files] == sorted(tuple(name.split("/")) for name in MIXED)
    assert [f.path for f in files] == [str(tmp_path.joinpath(*f.parts)) for f in files]
    facts = (tmp_path / "Z.png").stat()
    assert files[0] == Entry(str(tmp_path / "Z.png"), ("Z.png",), 1, facts.st_mtime_ns)


def test_any_way_to_name_the_folder_gives_the_same_places(tmp_path: Path) -> None:
    touch(tmp_path, MIXED)
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        listings = {root: list_folder(root).files for root in (".", "./", str(tmp_path) + "//", "a/..")}
        assert [f.path for f in listings["."]] == ["/".join(f.parts) for f in listings["./"]]
    finally:
        os.chdir(before)
    assert len({tuple(f.parts for f in files) for files in listings.values()}) == 1


def test_a_file_of_several_names_is_listed_under_the_first(tmp_path: Path) -> None:
    touch(tmp_path, ["m.png", "other.png"])
    for name in ("z.png", "deep/a.png", "b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).hardlink_to(tmp_path / "m.png")
    (tmp_path / "c.png").symlink_to("other.png")
    listing = list_folder(str(tmp_path))
    assert ["/".join(f.parts) for f in listing.files] == ["b.png", "c.png"]
    said = {Path(s.path).name: Path(s.reason.split()[5]).name for s in listing.skipped}
    assert said == {"a.png": "b.png", "m.png": "b.png", "z.png": "b.png", "other.png": "c.png"}


def test_listed_files_keep_their_order_and_repetitions(tmp_path: Path) -> None:
    touch(tmp_path, ["a.png", "b.png"])
    names = [str(tmp_path / name) for name in ("b.png", "a.png", "b.png")]
    files = list_files(names).files
    assert list(files.paths) == names and [f.parts for f in files] == [(name,) for name in names]
    assert [f.path for f in files.chosen([2, 1])] == names[:0:-1] and len(Entries()) == 0


def test_a_file_takes_little_more_than_its_name(tmp_path: Path) -> None:
    touch(tmp_path, [f"class{n % 7}/{n:06}.png" for n in range(3000)])
    list_folder(str(tmp_path))
    tracemalloc.start()
    try:
        files = list_folder(str(tmp_path)).files
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    name = len(str(tmp_path)) + 21 + 49
    assert len(files) == 3000
    assert held / 3000 < name + 60 and most / 3000 < name + 250, (held / 3000, most / 3000, name)


def test_labels_follow_the_pictures_that_are_left(tmp_path: Path) -> None:
    from PIL import Image

    for n, name in enumerate(["c/2.png", "a/1.png", "c/1.png", "b/1.png", "b/2.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (n, 0, 0)).save(tmp_path / name)
    (tmp_path / "b/1.png").write_bytes(b"no picture")
    (tmp_path / "beside.png").write_bytes(b"x")
    read = read_folder(tmp_path, size=4, labelled=True)
    assert read.classes == ("a", "b", "c") and read.y is not None and read.y.tolist() == [0, 1, 2, 2]
    assert read.x[:, 0, 0, 0].tolist() == [1, 4, 2, 0]
