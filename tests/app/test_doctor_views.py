"""Views that teach nothing are found by raw pixels, fitting ones pass; the page of views; the command itself."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from selftaught.app.cli import main
from selftaught.app.doctor_views import examine_views, spread_of, view_grid, write_view_page
from selftaught.core.errors import ConfigError
from selftaught.data.emoji import read_emoji
from selftaught.data.pictures import Pictures
from selftaught.data.strokes import draw_strokes
from selftaught.data.views import FLAT, GLYPH, PHOTO, Views

STRONG = Views(
    crop=(0.02, 0.06), flip=0.5, rotate=180, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5, erase=0.8,
    erase_area=0.5,
)  # fmt: skip


def scenes(count: int, size: int = 64, seed: int = 0) -> Tensor:
    """Smooth colours without an even border: as pictures of a camera, uint8 [count 3 size size]."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)
    return (smooth.clamp(0, 1) * 255).to(torch.uint8)


def named(x: Tensor) -> Pictures:
    return Pictures(x, tuple(f"p{i}" for i in range(len(x))))


def written(x: Tensor, folder: Path, start: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n, picture in enumerate(x, start):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{n:03}.png")
    return folder


@pytest.mark.parametrize(
    ("pictures", "views"),
    [(named(scenes(64)), PHOTO), (read_emoji("twemoji", split="train"), FLAT), (draw_strokes(40, 2), GLYPH)],
    ids=["scenes", "emoji", "characters"],
)
def test_fitting_recipes_pass_and_unfitting_ones_do_not(pictures: Pictures, views: Views) -> None:
    assert [f.level for f in examine_views(pictures, views)] == ["ok"]
    equal = examine_views(pictures, Views())[0]
    assert equal.level == "problem" and equal.title == "Views are identical"
    alike = examine_views(pictures, Views(brightness=0.02, jitter=1.0))[0]
    assert alike.level == "warning" and alike.title == "Views hardly differ"


@pytest.mark.parametrize(
    "pictures", [read_emoji("noto", split="train"), draw_strokes(40, 2)], ids=["emoji", "ink"]
)
def test_views_that_keep_nothing_of_a_picture(pictures: Pictures) -> None:
    finding = examine_views(pictures, STRONG, "'own'")[0]
    assert finding.level == "warning" and finding.title == "Views may be too strong"
    assert "'own'" in finding.detail and "50%" in finding.detail and "--page" in finding.way_out


def test_the_measure_by_hand() -> None:
    """Views that only mirror: equal or not, by a coin; distances between pictures by a loop."""
    pictures = named(scenes(16, 8))
    found = spread_of(pictures, Views())
    assert found is not None and found.equal == 1 and found.ratio < 1e-6 and found.nearer == 1
    mirrored = spread_of(pictures, Views(flip=0.5))
    assert mirrored is not None and 0.1 < mirrored.equal < 0.9
    x = pictures.x.float() / 255
    between = [float((a - b).square().mean()) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    assert mirrored.ratio == pytest.approx(
        float((x - x.flip(-1)).square().flatten(1).mean(1).mean()) * (1 - mirrored.equal)
        / (sum(between) / len(between)), rel=0.5,
    )  # fmt: skip


def test_too_few_or_plain_pictures_say_nothing_and_draws_repeat() -> None:
    assert examine_views(named(scenes(7)), PHOTO) == []
    assert examine_views(named(torch.full((40, 3, 16, 16), 9, dtype=torch.uint8)), PHOTO) == []
    assert spread_of(named(scenes(20)), PHOTO) == spread_of(named(scenes(20)), PHOTO)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_grid_shows_pictures_and_their_views(channels: int) -> None:
    x = scenes(30, 16)[:, :channels]
    grid = view_grid(named(x), Views(), rows=3, columns=2)
    tile = 16 * 6 + 4
    assert grid.dtype == torch.uint8 and grid.shape == (channels, 3 * tile, 3 * tile)
    for row, picture in enumerate((0, 10, 20)):
        for column in range(3):
            corner = grid[:, row * tile : (row + 1) * tile - 4 : 6, column * tile : (column + 1) * tile - 4 : 6]
            assert torch.equal(corner, x[picture]), (row, column)
    assert not torch.equal(view_grid(named(x), GLYPH), view_grid(named(x), GLYPH, seed=1))


def test_pages(tmp_path: Path) -> None:
    pictures = named(scenes(3, 64))
    write_view_page(tmp_path / "v.png", pictures, PHOTO)
    with Image.open(tmp_path / "v.png") as page:
        assert page.size == (8 * 68, 3 * 68)
    awkward = Pictures(pictures.x, ("<b>&.png", "a" * 80 + ".png", "p"))
    write_view_page(tmp_path / "v.svg", awkward, PHOTO)
    root = ET.parse(tmp_path / "v.svg").getroot()
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "<b>&.png" and len(texts) == 3 and str(texts[1]).endswith("a.png")
    with pytest.raises(ConfigError, match=r"\.png or \.svg"):
        write_view_page(tmp_path / "v.jpg", pictures, PHOTO)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v.png", "v.svg"]


def test_clean_folders_pass_without_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = written(scenes(70), tmp_path / "train"), written(scenes(20, seed=1), tmp_path / "test")
    page = tmp_path / "views.png"
    assert main(["doctor", str(train), "--against", str(test), "--page", str(page)]) == 0
    said = capsys.readouterr().out
    assert "WARNING" not in said and "PROBLEM" not in said, said
    assert "Sets are apart" in said and "ok      Views" in said and page.is_file()


def test_clean_classes_pass_and_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for c in range(4):
        written(scenes(17, seed=c), tmp_path / f"class{c}")
    assert main(["doctor", str(tmp_path), "--ways", "4", "--shots", "5"]) == 0
    said = capsys.readouterr().out
    assert "WARNING" not in said and "PROBLEM" not in said, said
    assert main(["doctor", str(tmp_path), "--shots", "17"]) == 0
    assert "PROBLEM Classes with too few pictures: 4 of 4" in capsys.readouterr().out


def test_a_leak_is_found_through_format_and_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = scenes(80, 96)
    train, test = written(x[:70], tmp_path / "train"), written(x[70:], tmp_path / "test")
    with Image.open(train / "005.png") as picture:
        picture.save(test / "compressed.jpg", quality=60)
        picture.resize((50, 50)).save(test / "small.png")
    (test / "torn.png").write_bytes((train / "006.png").read_bytes()[:200])
    assert main(["doctor", str(train), "--against", str(test)]) == 0
    said = capsys.readouterr().out
    assert "PROBLEM The two sets overlap: 2 of 12" in said
    assert "compressed.jpg is" in said and "small.png is" in said and "005.png" in said


def test_what_is_asked_for_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(scenes(70), tmp_path / "train")
    assert main(["doctor", str(folder), "--views", "glyph"]) == 0
    assert "'glyph', because it was asked for" in capsys.readouterr().out
    assert main(["doctor", str(folder), "--size", "96"]) == 0
    assert "WARNING Small originals: 70 of 70" in capsys.readouterr().out
    assert main(["doctor", str(folder), "--against", str(tmp_path / "gone")]) == 2
    assert "gone" in capsys.readouterr().err
    assert main(["doctor", str(folder), "--page", str(tmp_path / "views.gif")]) != 0


def test_the_example_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(__file__).parents[2]
    text = (root / "docs" / "doctor.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    exec(
        compile(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[0], "doctor.md", "exec"), {}
    )
    command = re.findall(r"^```sh\nselftaught (.*)$", text, re.MULTILINE)[0]
    assert main(command.split()) == 0
    assert capsys.readouterr().out == re.findall(r"^```text\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[0]
    with Image.open("views.png") as drawn, Image.open(root / "docs" / "figures" / "doctor_views.png") as shown:
        assert drawn.size == shown.size
