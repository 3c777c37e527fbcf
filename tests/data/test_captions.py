"""Captioned pictures from tables, text files and shards; what is wrong is said with file, line and a way out."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftaught.core.errors import DataError
from selftaught.data.captions import captioned, has_captions, read_captioned
from selftaught.data.emoji import emoji_metadata, read_captioned_emoji
from selftaught.data.pictures import Pictures


def paint(place: Path, red: int) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), (red, 0, 0), dtype=np.uint8)).save(place)
    return place


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Pictures a.png, b.png, deep/c.png with red 10, 20, 30."""
    for red, name in ((10, "a.png"), (20, "b.png"), (30, "deep/c.png")):
        paint(tmp_path / name, red)
    return tmp_path


def said(pictures: Pictures) -> dict[int, list[str]]:
    """Redness of each picture -> its captions."""
    assert pictures.y is not None
    reds = pictures.x[:, 0, 0, 0].tolist()
    return {red: pictures.classes[n].splitlines() for red, n in zip(reds, pictures.y.tolist(), strict=True)}


CSV = 'file,caption\na.png,"a red thing, small"\ndeep/c.png,a cat\n./a.png,  the  same  \na.png,a cat\n'


def test_a_table_names_pictures_and_may_name_them_again(three: Path) -> None:
    assert not has_captions(three)
    (three / "captions.csv").write_text(CSV, encoding="utf-8-sig")
    assert has_captions(three)
    pictures = read_captioned(three, size=8)
    assert said(pictures) == {10: ["a red thing, small", "a cat", "the same"], 30: ["a cat"]}
    assert [Path(name).name for name in pictures.names] == ["a.png", "c.png"]


def test_json_lines_take_one_caption_or_several(three: Path) -> None:
    lines = [
        {"file": "a.png", "caption": ["x y", "z"]},
        {"file_name": "b.png", "text": "z"},
        {"file": "deep/c.png", "caption": "z"},
    ]
    (three / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    pictures = read_captioned(three, size=8)
    assert said(pictures) == {10: ["x y", "z"], 20: ["z"], 30: ["z"]} and len(pictures.classes) == 2


def test_text_beside_a_picture(three: Path) -> None:
    (three / "a.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    (three / "deep/c.txt").write_text("three", encoding="utf-8")
    assert has_captions(three)
    pictures = read_captioned(three, size=8)
    assert said(pictures) == {10: ["one", "two"], 30: ["three"]}
    (left_out,) = pictures.skipped
    assert left_out.path.endswith("b.png") and "b.txt" in left_out.reason


def shard(place: Path, samples: dict[str, bytes]) -> Path:
    with tarfile.open(place, "w") as tar:
        for name, content in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return place


def test_webdataset_shards(three: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    png = {red: (three / name).read_bytes() for red, name in ((10, "a.png"), (20, "b.png"), (30, "deep/c.png"))}
    home = tmp_path_factory.mktemp("shards")
    first = {"0/a.png": png[10], "0/a.txt": b"one\ntwo\n", "0/a.cls": b"7"}
    shard(home / "00.tar", first | {"b.png": png[20], "b.json": b'{"caption": "three"}'})
    shard(home / "01.tar", {"c.txt": b"one", "c.png": png[30]})
    assert has_captions(home) and has_captions(home / "01.tar")
    pictures = read_captioned(home, size=8)
    assert said(pictures) == {10: ["one", "two"], 20: ["three"], 30: ["one"]}
    assert pictures.names == ("00.tar/0/a.png", "00.tar/b.png", "01.tar/c.png")
    assert said(read_captioned(home / "01.tar", size=8)) == {30: ["one"]}
    shard(home / "02.tar", {"d.png": png[30]})
    with pytest.raises(DataError, match=r"02\.tar: d has no d\.txt"):
        read_captioned(home, size=8)
    shard(home / "02.tar", {"d.png": png[30], "d.txt": b" \n"})
    with pytest.raises(DataError, match=r"02\.tar, d\.txt: the caption is empty"):
        read_captioned(home, size=8)
    shard(home / "02.tar", {"../d.png": png[30]})
    with pytest.raises(DataError, match="outside"):
        read_captioned(home, size=8)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.csv", "file,caption\na.png,x\nq.png,y\n", r"captions\.csv names 1 picture.*q\.png.*delete"),
        (
            "captions.csv",
            "file,caption\na.png,x\nb.png,\n",
            r"captions\.csv, line 3: the caption is empty.*Write one",
        ),
        (
            "captions.csv",
            "a.png,x\n",
            r"captions\.csv has no column 'file'.*a\.png, x.*begin it with file,caption",
        ),
        ("captions.csv", "", r"captions\.csv has no column 'file'.*empty"),
        ("captions.csv", "file,caption\n", r"captions\.csv names no picture"),
        ("captions.csv", 'file,caption\na.png,"x\n', r"captions\.csv, line \d+: .*Save it as CSV"),
        ("captions.csv", "file,caption\n../a.png,x\n", r"captions\.csv names '\.\./a\.png'.*inside"),
        ("captions.csv", "file,caption\n,x\n", r"captions\.csv names ''"),
        ("captions.jsonl", '{"file": "a.png"}\n', r"captions\.jsonl, line 1 is not of the form"),
        ("captions.jsonl", '{"file": "a.png", "caption": "x"}\n[[', r"captions\.jsonl, line 2 is not of the form"),
        ("captions.jsonl", '{"file": "a.png", "caption": []}', r"line 1 is not of the form"),
        ("captions.jsonl", '{"file": "a.png", "caption": " "}', r"captions\.jsonl, line 1: the caption is empty"),
        ("a.txt", " \n\n", r"a\.txt is empty: write a caption"),
    ],
)
def test_what_is_wrong_is_named_with_a_way_out(three: Path, name: str, content: str, message: str) -> None:
    (three / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_captioned(three, size=8)


def test_two_tables_no_text_and_other_encodings(three: Path) -> None:
    with pytest.raises(DataError, match=r"has no captions: put a captions\.csv"):
        read_captioned(three, size=8)
    (three / "captions.csv").write_bytes("file,caption\na.png,caf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_captioned(three, size=8)
    (three / "captions.jsonl").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="keep one"):
        read_captioned(three, size=8)


def test_a_picture_that_cannot_be_decoded_is_skipped(three: Path) -> None:
    (three / "b.png").write_bytes(b"no picture")
    (three / "captions.csv").write_text("file,caption\nb.png,x\na.png,y\n", encoding="utf-8")
    pictures = read_captioned(three, size=8)
    assert said(pictures) == {10: ["y"]}
    assert [Path(s.path).name for s in pictures.skipped] == ["b.png"]


def test_emoji_say_their_name_and_keywords() -> None:
    pictures = read_captioned_emoji("noto", split="validation")
    assert pictures.y is not None
    about = [e for e in emoji_metadata() if e.split == "validation"]
    texts = [pictures.classes[n].splitlines() for n in pictures.y.tolist()]
    assert len(texts) == len(about) and texts[0][:2] == ["grinning face", "face"]
    assert all(e.emoji not in text for e, t in zip(about, texts, strict=True) for text in t)
    with pytest.raises(DataError, match="no caption"):
        captioned(pictures, [[]] * len(pictures))
