"""Class lists of your own, and rows of tables that would lose a part of what they say."""

from pathlib import Path

import pytest
from PIL import Image

from selftaught.core.errors import DataError
from selftaught.data.captions import read_captioned
from selftaught.data.splits import read_class_list


def test_names_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes("\ufeffgröße\r\n\r\n  b/c \na".encode())
    assert read_class_list(tmp_path / "mine.txt") == ("größe", "b/c", "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no class"),
        (b" \n", "names no class"),
        (b"a\nb\na\n", "names 'a' twice"),
        (b"a\0b\n", r"control characters in 'a"),
        (b"caf\xe9", "is not UTF-8"),
    ],
)
def test_broken_lists_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"mine\.txt.*{message}"):
        read_class_list(tmp_path / "mine.txt")
    with pytest.raises(DataError, match="cannot read the class list"):
        read_class_list(tmp_path / "gone.txt")


def test_a_caption_with_a_comma_is_not_cut(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text("file,caption\na.png,blue, round\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"captions\.csv, line 2 has more columns.*texts with commas"):
        read_captioned(tmp_path, size=8)


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text(f"file,caption\n{'x' * 5000},long\n", encoding="utf-8")
    with pytest.raises(DataError, match="not there"):
        read_captioned(tmp_path, size=8)
