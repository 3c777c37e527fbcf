"""The Omniglot reader, on a tiny set in the official form; the real one if SELFTAUGHT_OMNIGLOT is set."""

import io
import os
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from selftaught.core.errors import DataError
from selftaught.data.omniglot import drawers, read_omniglot
from selftaught.data.splits import read_split, split_names

CHARACTERS = ("Greek/character01", "Greek/character02", "Latin/character01")


def png(corner: tuple[int, int]) -> bytes:
    """Black ink on white, one bit, 105 x 105: a square of 30 pixels at `corner` (x, y)."""
    picture = Image.new("1", (105, 105), 1)
    ImageDraw.Draw(picture).rectangle((*corner, corner[0] + 29, corner[1] + 29), fill=0)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def members() -> dict[str, bytes]:
    corners = dict(zip(CHARACTERS, ((0, 0), (75, 0), (0, 75)), strict=True))
    return {
        f"images_background/{c}/{n:04d}_{d:02d}.png": png(corners[c])
        for n, c in enumerate(CHARACTERS, 1)
        for d in (1, 2, 20)
    }


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "images_background.zip"
    with zipfile.ZipFile(path, "w") as out:
        for name, data in reversed(members().items()):
            out.writestr(name, data)
        out.writestr("__MACOSX/images_background/Greek/character01/._0001_01.png", b"not a picture")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in members().items():
        path = tmp_path / "unpacked" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "unpacked"


def test_ink_is_255_on_0(archive: Path) -> None:
    read = read_omniglot(archive)
    assert read.x.shape == (9, 1, 28, 28) and read.x.dtype == torch.uint8
    first = read.x[0, 0]
    assert first[:7, :7].min() == 255 and first[10:].max() == 0 and first[:, 10:].max() == 0


def test_classes_groups_names_and_drawers(archive: Path) -> None:
    read = read_omniglot(archive)
    assert read.classes == CHARACTERS
    assert read.y is not None and read.y.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert read.groups == ("Greek",) * 6 + ("Latin",) * 3
    assert read.names[4] == "images_background/Greek/character02/0002_02.png"
    assert drawers(read).tolist() == [1, 2, 20] * 3


def test_folder_equals_zip(archive: Path, folder: Path) -> None:
    packed, unpacked = read_omniglot(archive), read_omniglot(folder)
    assert torch.equal(packed.x, unpacked.x) and packed.names == unpacked.names
    inner = read_omniglot(folder / "images_background")
    assert inner.classes == CHARACTERS and torch.equal(inner.x, packed.x)
    alphabet = read_omniglot(folder / "images_background" / "Latin")
    assert alphabet.classes == ("Latin/character01",) and torch.equal(alphabet.x, packed.x[6:])


def test_same_character_in_two_trees_is_taken_once(folder: Path) -> None:
    source = folder / "images_background" / "Latin"
    source.rename(folder / "moved")
    for tree in ("images_background", "images_background_small1"):
        for file in (folder / "moved").rglob("*.png"):
            target = folder / tree / "Latin" / file.relative_to(folder / "moved")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    for file in sorted((folder / "moved").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    assert len(read_omniglot(folder)) == 9


def test_rotations_are_classes_of_their_own(archive: Path) -> None:
    read = read_omniglot(archive, rotations=True)
    upright = read_omniglot(archive)
    assert len(read) == 36 and len(read.classes) == 12 and read.y is not None
    assert read.classes[3] == "Greek/character01/rot090" and read.classes[11] == "Latin/character01/rot270"
    # Counter-clockwise by 90 degrees, the upper left corner goes to the lower left.
    turned = read.x[read.y == 3]
    assert turned[0, 0, 21:, :7].min() == 255 and turned[0, 0, :18].max() == 0
    assert torch.equal(torch.rot90(read.x[read.y == 10], -3, (2, 3)), upright.x[upright.y == 1])
    assert torch.equal(drawers(read), drawers(upright).repeat(4))
    assert len(set(read.names)) == 36 and read.groups == (upright.groups or ()) * 4


def test_only_the_named_classes(archive: Path) -> None:
    read = read_omniglot(archive, classes=["Latin/character01", "Greek/character02"])
    assert read.classes == ("Greek/character02", "Latin/character01")
    assert read.y is not None and read.y.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(DataError, match=r"lacks 1 of 1 classes, first 'Korean/character01'"):
        read_omniglot(archive, classes=["Korean/character01"])


def test_resizing_averages(archive: Path) -> None:
    full = read_omniglot(archive, size=105).x.float()
    small = read_omniglot(archive, size=20).x.float()
    assert set(full.unique().tolist()) == {0.0, 255.0}
    # The ink's share of the area stays; picking single pixels would not keep it.
    assert torch.allclose(full.mean((1, 2, 3)), small.mean((1, 2, 3)), rtol=0.03)
    assert len(small.unique()) > 2


def test_errors_name_the_file_and_a_way_on(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist.*images_background\.zip"):
        read_omniglot(tmp_path / "nowhere")
    broken = tmp_path / "broken.zip"
    broken.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(DataError, match=r"broken\.zip is not a readable zip"):
        read_omniglot(broken)
    with pytest.raises(DataError, match="holds no Omniglot pictures"):
        (tmp_path / "empty").mkdir()
        read_omniglot(tmp_path / "empty")
    bad = tmp_path / "bad.zip"
    with zipfile.ZipFile(bad, "w") as out:
        out.writestr("Greek/character01/0001_01.png", png((0, 0))[:60])
    with pytest.raises(DataError, match=r"0001_01\.png in .*bad\.zip cannot be decoded"):
        read_omniglot(bad)


def test_path_traversal_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.zip"
    with zipfile.ZipFile(bad, "w") as out:
        out.writestr("../Greek/character01/0001_01.png", png((0, 0)))
    with pytest.raises(DataError, match="a path outside of it"):
        read_omniglot(bad)


def test_drawers_refuses_other_names(archive: Path) -> None:
    read = read_omniglot(archive)
    renamed = type(read)(read.x[:1], ("cat.png",))
    with pytest.raises(DataError, match=r"'cat\.png' is not an Omniglot file name"):
        drawers(renamed)


def test_class_lists() -> None:
    lists = {name: read_split(name) for name in split_names()}
    background = lists["omniglot_background"]
    sizes = {name.removeprefix("omniglot_"): len(classes) for name, classes in lists.items()}
    assert sizes["background"] == 964 and sizes["background_small1"] == 136
    assert sizes["train_first25"] + sizes["validation_last5"] == 964
    assert all(list(c) == sorted(set(c)) and set(c) <= set(background) for c in lists.values())

    def alphabets(name: str) -> list[str]:
        return sorted({c.split("/")[0] for c in lists[f"omniglot_{name}"]})

    every = alphabets("background")
    assert len(every) == 30
    assert alphabets("background_small1") == ["Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"]
    assert alphabets("train_first25") == every[:25] and alphabets("validation_last5") == every[25:]
    assert alphabets("tuning_train20") == every[:20] and alphabets("tuning_5") == every[20:25]
    with pytest.raises(DataError, match="there are: omniglot_background"):
        read_split("omniglot")


def test_the_real_background_set() -> None:
    place = os.environ.get("SELFTAUGHT_OMNIGLOT")
    if not place:
        pytest.skip("set SELFTAUGHT_OMNIGLOT to images_background.zip to read the real set")
    read = read_omniglot(place)
    assert read.x.shape == (19280, 1, 28, 28) and read.classes == read_split("omniglot_background")
    assert drawers(read).bincount().tolist() == [0] + [964] * 20
    # Ink is a small part of each picture: the wrong polarity would give about 235.
    assert 10 < read.x.float().mean() < 40
