"""The report is one honest, self-contained, valid HTML file."""

import dataclasses
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from selftaught.app import charts
from selftaught.app.report import (
    AccuracyRow,
    DataSummary,
    Gallery,
    Geometry,
    Neighbours,
    ReportData,
    embedding_map,
    render,
    write_report,
)
from selftaught.app.thumbnails import evenly, png_addresses
from selftaught.core.errors import ConfigError, SaveError
from selftaught.data.pictures import Skipped

HOSTILE = "<script>alert('x')</script>\"&{{ 7*7 }}"
VOID = {"meta", "img", "br", "hr", "input", "link"}


def row(name: str, mean: float, shots: int = 1, ways: int = 5, head: str = "ridge") -> AccuracyRow:
    return AccuracyRow(name, ways, shots, mean, 0.01, head, "running", 600, 15, 0)


def three(model: float, raw: float, untrained: float, shots: int = 1) -> list[AccuracyRow]:
    return [
        row("BMSSL", model, shots),
        row("raw pixels", raw, shots),
        row("untrained encoder", untrained, shots),
    ]


def pictures(n: int, channels: int = 3, side: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, channels, side, side), generator=generator).to(torch.uint8)


def gallery(n: int = 12, side: int = 16) -> Gallery:
    points = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    labels = tuple(i % 3 for i in range(n))
    names = tuple(f"picture {i}.png" for i in range(n))
    return Gallery(pictures(n, side=side), names, points, labels, ("cat", "dog", "heron"))


def small() -> ReportData:
    data = DataSummary({"pictures": 12}, (3, 16, 16))
    return ReportData("A title", "selftaught train x --steps 7", "2026-12-01T10:24:00+00:00", "0.1.0", data)


def full() -> ReportData:
    return dataclasses.replace(
        small(),
        data=DataSummary({"pictures": 1234}, (3, 16, 16), 3, (Skipped("half.jpg", "file ends early"),)),
        config={"method": "bmssl", "inner": {"lr": 0.05}},
        rows=[*three(0.6, 0.4, 0.5), *three(0.7, 0.5, 0.6, shots=5), row("SimCLR", 0.59)],
        metrics=[{"step": i, "seconds": 0.5 * i, "loss": 3 / (i + 1), "rank": 2.0} for i in range(40)],
        gallery=gallery(),
        neighbours=[Neighbours(i, ((i + 3) % 12, (i + 1) % 12), (0.91, 0.42)) for i in range(3)],
        geometry=Geometry(9.5, 64, 0.31, -2.5),
        notes=["A note on the run."],
    )


class Page(HTMLParser):
    """Nesting, attributes and text of a page; raises when a tag is closed out of turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"repeated attribute in {tag}: {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.mark.parametrize("make", [small, full])
def test_page_is_valid_and_needs_nothing_from_outside(make) -> None:
    text = render(make())
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "object", "base", "form")
        for name in ("src", "href", "xlink:href", "srcset"):
            assert (attrs.get(name) or "data:").startswith("data:"), (tag, attrs)
        assert not any(name.startswith("on") for name in attrs)
    assert "default-src 'none'" in text


def test_page_is_accessible() -> None:
    page = Page(render(full()))
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("img") and all(a.get("alt") for a in page.all("img"))
    drawn = [a for a in page.all("svg") if a.get("aria-hidden") != "true"]
    assert drawn and all(a.get("role") == "img" and a.get("aria-label") for a in drawn)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for section in page.all("section"):
        assert section["aria-labelledby"] in ids
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert "prefers-color-scheme: dark" in render(small()) and "@media print" in render(small())


def test_every_part_is_there() -> None:
    text = Page(render(full())).text
    for part in (
        "selftaught train x --steps 7", "2026-12-01 10:24 UTC", "1 234", "half.jpg", "file ends early",
        "60.0", "59.0 to 61.0", "SimCLR", "loss", "inner.lr", "0.05", "picture 3.png", "0.91", "9.5 of 64",
        "A note on the run.", "No sign of collapse.", "of 40 lines",
        "600", "ridge", "running",
    ):  # fmt: skip
        assert part in text, part


def test_missing_parts_are_named_with_the_way_to_get_them() -> None:
    page = Page(render(small()))
    absent = [a for _, a in page.tags if a.get("class") == "absent"]
    assert len(absent) == 5
    assert "needs labels" in page.text and "one folder per class" in page.text
    assert page.all("svg") == [] and page.all("img") == [] and page.scripts == []
    assert "No accuracy was measured" in page.text
    assert "None" not in page.text


def test_hostile_text_is_shown_and_not_run() -> None:
    names = (HOSTILE,) * 12
    data = dataclasses.replace(
        full(),
        title=HOSTILE,
        command=HOSTILE,
        created=HOSTILE,
        version=HOSTILE,
        model=HOSTILE,
        data=DataSummary({HOSTILE: 1}, (3, 16, 16), 3, (Skipped(HOSTILE, HOSTILE),)),
        config={HOSTILE: {HOSTILE: [HOSTILE]}},
        rows=[row(HOSTILE, 0.6, head=HOSTILE), row("raw pixels", 0.4)],
        metrics=[{"step": 1, "seconds": 1, HOSTILE: 2.0}],
        gallery=dataclasses.replace(gallery(), names=names, classes=(HOSTILE, "b", "c")),
        geometry=Geometry(1.0, 4, message=HOSTILE),
        notes=[HOSTILE],
    )
    text = render(data)
    page = Page(text)
    assert "<script>alert" not in text
    assert len(page.all("script")) == 1 and "alert" not in "".join(page.scripts)
    assert page.text.count(HOSTILE) > 20
    assert {a["alt"] for a in page.all("img")} <= {HOSTILE, f"{HOSTILE}, same class"}


def test_equal_data_give_equal_bytes() -> None:
    assert render(full()) == render(full())


def test_four_hundred_noisy_pictures_stay_below_three_megabytes() -> None:
    many = gallery(400, side=64)
    near = [Neighbours(i, tuple(range(50, 60)), (0.5,) * 10) for i in range(10)]
    text = render(dataclasses.replace(full(), gallery=many, neighbours=near))
    assert len(text.encode()) < 3_000_000
    assert len(Page(text).all("image")) == 400


def test_thumbnails_keep_their_pixels_when_they_fit() -> None:
    import base64
    import io

    import numpy as np
    from PIL import Image

    for channels in (1, 3, 4):
        x = pictures(2, channels)
        address = png_addresses(x, 10**6)[1]
        seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))))
        wanted = x[1].permute(1, 2, 0).squeeze(-1) if channels == 1 else x[1].permute(1, 2, 0)
        assert np.array_equal(seen, wanted.numpy())
    assert sum(map(len, png_addresses(pictures(5), 3000))) <= 3000
    large = torch.randint(256, (40, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert 30_000 < sum(map(len, png_addresses(large, 60_000))) <= 60_000  # shrunk, and no more than needed
    assert png_addresses(pictures(5)[:0], 10) == []
    with pytest.raises(ConfigError, match="uint8"):
        png_addresses(pictures(2).float(), 1000)


def test_report_replaces_the_file_or_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ConfigError):
        write_report(dataclasses.replace(full(), model="nobody"), path)
    assert path.read_text() == "old"
    write_report(full(), path)
    assert path.read_text(encoding="utf-8") == render(full())
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(SaveError):
        write_report(full(), path / "below a file.html")


def test_curves_with_values_that_are_not_finite() -> None:
    metrics = [{"step": i, "loss": math.nan if i == 3 else 1.0 + i, "gone": math.inf} for i in range(6)]
    page = Page(render(dataclasses.replace(small(), metrics=metrics)))
    assert "1 value was not finite" in page.text and "6 values were not finite" in page.text
    drawing = str(charts.curve_panel([0, 1, 2, 3, 4], [1, 2, math.nan, 2, 1], "alt"))
    line = re.search(r'class="line s0" d="([^"]+)"', drawing)
    assert line is not None and line[1].count("M") == 2 and "nan" not in drawing


def test_a_long_log_is_thinned_but_keeps_its_mean() -> None:
    metrics = [{"step": i, "loss": float(i % 2)} for i in range(3000)]
    text = render(dataclasses.replace(small(), metrics=metrics))
    assert "mean of neighbouring steps" in text
    line = re.search(r'class="line s0" d="([^"]+)"', text)
    assert line is not None and line[1].count("L") == 299


def test_chart_places_accuracies_and_intervals_to_scale() -> None:
    series = [charts.Series("a", (1.0, 4.0, 16.0), (0.2, 0.6, 1.0), (0.1, 0.2, 0.0))]
    assert charts.reach(series, 0.05) == (0.05, 1.0)
    drawing = str(charts.accuracy_panel(series, 0.2, (0.0, 1.0), "alt"))
    spots = [tuple(map(float, s)) for s in re.findall(r'class="dot s0" d="M([\d.]+) ([\d.]+)', drawing)]
    (x0, y0), (x1, y1), (x2, y2) = spots
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    bars = re.findall(r'class="bar s0" d="M[\d.]+ ([\d.]+)h8m-4 0V([\d.]+)', drawing)
    assert len(bars) == 2
    assert float(bars[1][0]) - float(bars[1][1]) == pytest.approx(y0 - y1, abs=0.2)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 8.1), (5, 5), (0, 0), (1e-6, 2e-6), (19.9, 73.7)])
def test_ticks_are_round_few_and_enclose(low: float, high: float) -> None:
    found = charts.ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 9
    assert found == sorted(set(found))


def test_several_heads_and_seeds_have_lines_of_their_own() -> None:
    rows = [row("BMSSL", 0.6, head="ridge"), row("BMSSL", 0.7, head="logistic"), row("raw pixels", 0.4)]
    text = Page(render(dataclasses.replace(small(), rows=rows))).text
    assert "BMSSL (ridge)" in text and "BMSSL (logistic)" in text
    assert "raw pixels (" not in text


def test_agreement_of_neighbours_beside_chance() -> None:
    # 12 pictures of 3 classes: 3 of the other 11 share a class; two neighbours for each of three queries.
    text = Page(render(full())).text
    assert "3 of 6 neighbours shown are of the same class" in text
    assert "chance would give about 1.6" in text


@pytest.mark.parametrize(
    "change",
    [
        {"names": ("only one",)},
        {"labels": (0,)},
        {"labels": (7,) * 12},
        {"points": torch.zeros(3, 2)},
        {"points": torch.full((12, 2), math.nan)},
    ],
)
def test_gallery_that_does_not_fit_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="gallery"):
        render(dataclasses.replace(full(), gallery=dataclasses.replace(gallery(), **change)))


def test_neighbours_outside_the_gallery_are_refused() -> None:
    with pytest.raises(ConfigError, match="positions"):
        render(dataclasses.replace(full(), neighbours=[Neighbours(0, (99,), (0.5,))]))


@pytest.mark.parametrize("n", [2, 10, 45])
def test_embedding_map_keeps_two_groups_apart_and_repeats(n: int) -> None:
    generator = torch.Generator().manual_seed(1)
    side = torch.arange(n) % 2
    features = torch.randn(n, 8, generator=generator) * 0.1
    features[:, 0] += 1 - 2.0 * side
    points = embedding_map(features, seed=3)
    assert points.shape == (n, 2) and points.dtype == torch.float32
    assert torch.equal(points, embedding_map(features, seed=3))
    if n > 2:
        distance = torch.cdist(points, points).fill_diagonal_(math.inf)
        assert (side[distance.argmin(1)] == side).float().mean() == 1


def test_embedding_map_of_odd_features() -> None:
    assert embedding_map(torch.zeros(0, 4)).shape == (0, 2)
    assert torch.equal(embedding_map(torch.ones(40, 4)), torch.zeros(40, 2))
    assert torch.isfinite(embedding_map(torch.randn(40, 1))).all()
    with pytest.raises(ConfigError, match="finite"):
        embedding_map(torch.full((3, 2), math.nan))
    with pytest.raises(ConfigError, match="flatten"):
        embedding_map(torch.zeros(3, 2, 2))
    flat = dataclasses.replace(gallery(), points=torch.zeros(12, 2))
    assert "nan" not in Page(render(dataclasses.replace(small(), gallery=flat))).text


def test_evenly_spread_positions() -> None:
    assert list(evenly(3, 5)) == [0, 1, 2]
    found = evenly(1000, 600)
    assert len(set(found)) == 600 and min(found) == 0 and max(found) < 1000
