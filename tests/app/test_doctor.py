"""Each ailment is planted in a healthy set and must be found, by name; the healthy set must pass."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from selftaught.app import doctor
from selftaught.app.doctor import Finding, examine, overlap, shared
from selftaught.data.folder import read_folder
from selftaught.data.pictures import Pictures, Skipped


def noise(count: int, seed: int = 0, channels: int = 3, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def pictures(x: Tensor, sizes: list[int] | None = None, skipped: tuple[Skipped, ...] = ()) -> Pictures:
    names = tuple(f"p{i}" for i in range(len(x)))
    if sizes is None:
        return Pictures(x, names, skipped=skipped)
    y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return Pictures(x, names, y, tuple(f"class{n}" for n in range(len(sizes))), skipped=skipped)


def found(findings: list[Finding], title: str) -> Finding:
    hits = [f for f in findings if f.title == title]
    assert len(hits) == 1, [f.title for f in findings]
    return hits[0]


def ailments(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(f.level, f.title) for f in findings if f.level != "ok"]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_healthy_set_passes(channels: int) -> None:
    findings = examine(pictures(noise(100, channels=channels), [20] * 5), ways=5, shots=5)
    assert ailments(findings) == []
    assert {f.title for f in findings} == {
        "Number of pictures",
        "Classes",
        "Exact duplicates",
        "Near duplicates",
        "Contrast",
        "Files",
    }


def test_every_ailment_comes_with_a_way_out() -> None:
    x = noise(30)
    x[1], x[2], x[3] = x[0], 7, x[4] // 100
    findings = examine(pictures(x, [28, 1, 1], (Skipped("bad.png", "truncated"),)), ways=5, shots=5)
    assert len(ailments(findings)) >= 7
    assert all(f.way_out and f.detail for f in findings if f.level != "ok")


@pytest.mark.parametrize(("count", "level"), [(3, "problem"), (20, "warning"), (64, "ok")])
def test_number_of_pictures(count: int, level: str) -> None:
    assert examine(pictures(noise(count)))[0].level == level


def test_fewer_pictures_than_ways_and_none_at_all() -> None:
    assert ailments(examine(pictures(noise(70)), ways=80)) == [("problem", "Too few pictures")]
    assert "at least 80" in examine(pictures(noise(70)), ways=80)[0].detail
    assert ailments(examine(pictures(noise(0)))) == [("problem", "No pictures")]


def test_exact_duplicates() -> None:
    x = noise(70)
    x[40] = x[3]
    finding = found(examine(pictures(x)), "Exact duplicates")
    assert finding.level == "warning" and "1 of 70" in finding.detail and "p3 = p40" in finding.detail
    x[10:60] = x[0]
    assert found(examine(pictures(x)), "Exact duplicates").level == "problem"


def test_same_picture_in_two_classes() -> None:
    x = noise(70)
    x[1] = x[0]
    assert all(f.title != "The same picture in two classes" for f in examine(pictures(x, [35, 35])))
    x[40] = x[0]
    finding = found(examine(pictures(x, [35, 35])), "The same picture in two classes")
    assert finding.level == "problem" and "p0 in class0 and class1" in finding.detail


@pytest.mark.parametrize("block", [512, 4])
def test_near_duplicates(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(doctor, "_BLOCK", block)
    x = noise(70)
    x[50] = (x[5].int() + 3).clamp(0, 255)
    x[60] = x[6]  # equal to the bit, so not "nearly"
    finding = found(examine(pictures(x)), "Near duplicates")
    assert (
        finding.level == "warning"
        and finding.detail.startswith("2 pictures")
        and finding.detail.endswith(": p5 ~ p50.")
    )


def test_near_duplicates_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MOST_COMPARED", 10)
    detail = found(examine(pictures(noise(70))), "Near duplicates").detail
    assert "looked at 10 of 70" in detail
    monkeypatch.setattr(doctor, "MOST_COMPARED", 5000)
    monkeypatch.setattr(doctor, "_MOST_PAIRS", 1)
    monkeypatch.setattr(doctor, "_BLOCK", 4)
    x = (noise(1).float() * 0.9 + torch.arange(70).view(-1, 1, 1, 1) / 4).to(torch.uint8)
    assert found(examine(pictures(x)), "Near duplicates").level == "warning"


def test_single_colour_and_low_contrast() -> None:
    x = noise(70)
    x[4], x[5] = 255, torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1)
    x[6] = 100 + x[6] // 25
    findings = examine(pictures(x))
    flat, faint = found(findings, "Pictures of a single colour"), found(findings, "Low contrast")
    assert "2 of 70: p4; p5" in flat.detail and flat.level == "warning"
    assert "1 of 70" in faint.detail and "p6" in faint.detail
    x[10:30] = 0
    assert found(examine(pictures(x)), "Pictures of a single colour").level == "problem"


def test_classes() -> None:
    assert ailments(examine(pictures(noise(90), [80, 10]), ways=2, shots=5)) == [("warning", "Uneven classes")]
    finding = found(examine(pictures(noise(90), [40, 45, 5]), ways=3, shots=5), "Classes with too few pictures")
    assert finding.level == "problem" and "class2 (5)" in finding.detail and "1 of 3" in finding.detail
    fine = examine(pictures(noise(90), [42, 42, 6]), ways=3, shots=5)
    assert all(f.title != "Classes with too few pictures" for f in fine)
    assert found(examine(pictures(noise(90), [45, 45]), ways=5), "Too few classes").level == "problem"
    single = found(examine(pictures(noise(90), [89, 1])), "Classes with too few pictures")
    assert single.level == "warning" and "class1 (1)" in single.detail


def test_skipped_files() -> None:
    few = examine(pictures(noise(70), skipped=(Skipped("a.png", "truncated"),)))
    assert found(few, "Files left out").level == "warning"
    assert "a.png: truncated" in found(few, "Files left out").detail
    many = examine(pictures(noise(70), skipped=(Skipped("a.png", "truncated"),) * 71))
    assert found(many, "Files left out").level == "problem"
    assert "and 68 more" in found(many, "Files left out").detail


def test_originals(tmp_path: Path) -> None:
    for n, side in enumerate([40] * 8 + [10]):
        Image.effect_noise((side + 5, side), 90).save(tmp_path / f"{n}.png")
    finding = found(examine(read_folder(tmp_path, size=20)), "Small originals")
    assert "1 of 9" in finding.detail and "8.png (15 x 10)" in finding.detail
    assert found(examine(read_folder(tmp_path, size=10)), "Originals").level == "ok"
    Image.effect_noise((400, 400), 90).save(tmp_path / "9.png")
    mixed = found(examine(read_folder(tmp_path, size=10)), "Originals of very different size")
    assert "10 to 400" in mixed.detail


def test_overlap() -> None:
    a, b = noise(40, 1), noise(30, 2)
    apart = overlap(pictures(a), pictures(b))
    assert [f.level for f in apart] == ["ok"]
    b[7], b[9] = a[3], (a[5].int() + 2).clamp(0, 255)
    finding = overlap(pictures(a), pictures(b))[0]
    assert finding.level == "problem" and "2 of 30" in finding.detail and "1 to the bit" in finding.detail
    assert "p7 is p3" in finding.detail and "p9 is p5" in finding.detail
    assert shared(pictures(a), pictures(b)).tolist() == [[3, 7]]
    assert shared(pictures(a), pictures(b), near=True).tolist() == [[5, 9]]


def test_overlap_of_sets_of_different_size() -> None:
    small = noise(10, 3, size=16)
    large = small[2:4].repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert shared(pictures(small), pictures(large)).tolist() == []
    assert overlap(pictures(small), pictures(large))[0].detail.startswith("2 of 2 pictures")
    assert overlap(pictures(small), pictures(noise(4, 9, channels=1)))[0].level == "ok"


def test_tiny_pictures() -> None:
    assert examine(pictures(noise(70, size=1)))
    assert examine(pictures(noise(70, size=3, channels=1)))
