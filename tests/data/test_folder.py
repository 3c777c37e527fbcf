"""The folder reader on pictures of known content: values, order, labels, cache, memory maps."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selftaught.core.errors import ConfigError, SaveError
from selftaught.data import folder
from selftaught.data.folder import read_files, read_folder


def save(path: Path, colour: object = (255, 0, 0), size: tuple[int, int] = (12, 12), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def one(path: Path, size: int = 8, channels: int = 3) -> torch.Tensor:
    return read_files([path], size=size, channels=channels).x[0]


def corners(x: torch.Tensor) -> list[int]:
    """Red channel at top left, top right, bottom left, bottom right."""
    return [int(x[0, i, j]) for i in (0, -1) for j in (0, -1)]


def marked(mode: str = "RGB") -> Image.Image:
    """A square whose four quarters are 0, 80, 160, 240."""
    array = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((8, 8), np.uint8))
    return Image.fromarray(array).convert(mode)


def test_nested_folder_in_sorted_order(tmp_path: Path) -> None:
    for n, name in enumerate(["b.png", "a/z.png", "a/deep/x.JPG", "c/a.bmp"]):
        save(tmp_path / name, (n * 60, 0, 0))
    pictures = read_folder(tmp_path, size=6)
    assert pictures.x.shape == (4, 3, 6, 6) and pictures.x.dtype == torch.uint8
    assert [str(Path(n).relative_to(tmp_path)) for n in pictures.names] == [
        "a/deep/x.JPG",
        "a/z.png",
        "b.png",
        "c/a.bmp",
    ]
    assert (pictures.x[:, 0, 0, 0].int() - torch.tensor([120, 60, 0, 180])).abs().max() <= 2
    assert pictures.y is None and pictures.skipped == ()


def test_one_picture_as_folder_and_as_file(tmp_path: Path) -> None:
    path = save(tmp_path / "only.png")
    assert len(read_folder(tmp_path, size=4)) == 1
    assert read_folder(path, size=4).names == (str(path),)
    assert read_folder(str(path), size=4).names == (str(path),)


def test_listed_files_keep_their_order(tmp_path: Path) -> None:
    b, a = save(tmp_path / "b.png", (9, 0, 0)), save(tmp_path / "a.png", (7, 0, 0))
    pictures = read_files([b, a, b], size=4)
    assert pictures.x[:, 0, 0, 0].tolist() == [9, 7, 9]


def test_labels_are_first_level_folders(tmp_path: Path) -> None:
    for name in ["zebra/1.png", "ant/x/1.png", "ant/2.png", "loose.png"]:
        save(tmp_path / name)
    (tmp_path / "__MACOSX").mkdir()
    pictures = read_folder(tmp_path, size=4, labelled=True)
    assert pictures.classes == ("ant", "zebra")
    assert pictures.y is not None and pictures.y.dtype == torch.int64
    assert pictures.y.tolist() == [0, 0, 1]
    assert [(Path(s.path).name, s.reason) for s in pictures.skipped] == [("loose.png", "is not in a class folder")]


def test_orientation_is_applied_once(tmp_path: Path) -> None:
    for suffix in ("jpg", "png", "tif", "webp"):
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
        options = {"lossless": True} if suffix == "webp" else {"quality": 100} if suffix == "jpg" else {}
        marked().save(tmp_path / f"m.{suffix}", exif=exif, **options)
        seen = corners(one(tmp_path / f"m.{suffix}"))
        assert np.allclose(seen, [160, 0, 240, 80], atol=6), suffix


def test_broken_exif_keeps_the_picture(tmp_path: Path) -> None:
    marked().save(tmp_path / "m.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=100)
    assert np.allclose(corners(one(tmp_path / "m.jpg")), [0, 80, 160, 240], atol=6)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, dtype: str) -> None:
    values = np.kron(np.array([[0, 20000], [40000, 65535]]), np.ones((4, 4), int)).astype(dtype)
    Image.frombytes("I;16" if dtype == "<u2" else "I;16B", (8, 8), values.tobytes()).save(tmp_path / "d.tif")
    assert corners(one(tmp_path / "d.tif")) == [0, 78, 156, 255]


def test_sixteen_bit_png_and_pgm(tmp_path: Path) -> None:
    values = np.full((8, 8), 20000, np.uint16)
    Image.fromarray(values).save(tmp_path / "d.png")
    (tmp_path / "d.pgm").write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())
    assert read_folder(tmp_path, size=8).x.unique().tolist() == [78]


def test_thirty_two_bits_and_floats(tmp_path: Path) -> None:
    grid = np.kron(np.array([[0, 1], [2, 4]]), np.ones((4, 4), int))
    for name, values, expected in [
        ("f01", grid.astype(np.float32) / 4, [0, 64, 128, 255]),
        ("f255", grid.astype(np.float32) * 50, [0, 50, 100, 200]),
        ("negative", grid.astype(np.float32) - 2, [0, 64, 128, 255]),
        ("i16", (grid * 16383).astype(np.int32), [0, 64, 127, 255]),
        ("i8", (grid * 50).astype(np.int32), [0, 50, 100, 200]),
    ]:
        Image.fromarray(values).save(tmp_path / f"{name}.tif")
        assert np.allclose(corners(one(tmp_path / f"{name}.tif")), expected, atol=1), name
    holes = np.where(grid == 2, np.nan, grid / 4).astype(np.float32)
    Image.fromarray(holes).save(tmp_path / "nan.tif")
    assert corners(one(tmp_path / "nan.tif")) == [0, 64, 0, 255]


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    picture.paste((200, 0, 0, 255), (0, 0, 4, 8))
    picture.save(tmp_path / "a.png")
    assert one(tmp_path / "a.png")[:, 0, 0].tolist() == [200, 0, 0]
    assert one(tmp_path / "a.png")[:, 0, -1].tolist() == [255, 255, 255]


def test_white_on_transparent_is_laid_on_black(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    picture.paste((250, 255, 250, 255), (0, 0, 4, 8))
    picture.save(tmp_path / "w.png")
    assert one(tmp_path / "w.png")[:, 0, 0].tolist() == [250, 255, 250]
    assert one(tmp_path / "w.png")[:, 0, -1].tolist() == [0, 0, 0]
    save(tmp_path / "opaque.png", (255, 255, 255, 255), mode="RGBA")
    save(tmp_path / "nothing.png", (255, 255, 255, 0), mode="RGBA")
    assert one(tmp_path / "opaque.png").min() == 255 and one(tmp_path / "nothing.png").min() == 255


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 200, 0, 200, 0])
    picture.paste(0, (0, 0, 4, 8))
    for name in ("p.png", "p.gif"):
        picture.save(tmp_path / name, transparency=1)
        x = one(tmp_path / name)
        assert x[:, 0, 0].tolist() == [0, 0, 200] and x[:, 0, -1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "P", "LA", "HSV", "YCbCr", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_gives_the_asked_channels(tmp_path: Path, mode: str, channels: int) -> None:
    picture = marked("L").point(lambda v: 255 * (v > 100)).convert("RGB" if mode in ("CMYK", "HSV") else "L")
    picture.convert(mode).save(tmp_path / "m.tif") if mode != "HSV" else picture.save(tmp_path / "m.tif")
    x = one(tmp_path / "m.tif", 16, channels)
    assert x.shape == (channels, 16, 16)
    assert x[:, 0].max() <= 1 and x[:, -1].min() >= 254


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    for name in ("a.gif", "a.png", "a.webp"):
        options = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert one(tmp_path / name)[:, 0, 0].tolist() == [255, 0, 0]


def test_centre_crop_without_distortion(tmp_path: Path) -> None:
    wide = Image.new("RGB", (40, 10), "red")
    wide.paste("blue", (15, 0, 25, 10))
    wide.save(tmp_path / "w.png")
    wide.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "h.png")
    x = read_folder(tmp_path, size=10).x
    assert x[:, 0].max() == 0 and x[:, 2].min() == 255


def test_shrinking_averages(tmp_path: Path) -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    Image.fromarray(stripes).save(tmp_path / "s.png")
    x = one(tmp_path / "s.png", 8, 1).float()
    assert (x - 127.5).abs().max() < 12  # picking pixels instead would give 0 or 255


def test_same_size_is_untouched(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "n.png")
    assert torch.equal(one(tmp_path / "n.png"), torch.from_numpy(noise[:8]).permute(2, 0, 1))


def test_workers_give_what_one_process_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(40):
        save(tmp_path / f"{n:02}.png", (n, 2 * n, 3 * n))
    (tmp_path / "07.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    alone = read_folder(tmp_path, size=4, workers=1)
    monkeypatch.setattr(folder, "FEW_FILES", 2)
    steps: list[tuple[int, int]] = []
    together = read_folder(tmp_path, size=4, workers=2, progress=lambda *step: steps.append(step))
    assert torch.equal(alone.x, together.x) and alone.names == together.names
    assert alone.skipped == together.skipped and len(alone.skipped) == 1
    assert steps == [(n + 1, 40) for n in range(40)]


def test_workers_start_once_the_rest_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(70):
        save(tmp_path / f"{n:02}.png", (n, 0, 0))
    given: list[int] = []

    def spy(job: object, items: list[str], workers: int, crashed: object) -> object:
        given.append(len(items))
        return iter(job(items)) if items else iter(())  # type: ignore[operator]

    monkeypatch.setattr(folder, "FEW_FILES", 2)
    monkeypatch.setattr(folder, "in_order", spy)
    assert read_folder(tmp_path, size=4).x[:, 0, 0, 0].tolist() == list(range(70))
    monkeypatch.setattr(folder, "START_SECONDS", 0.0)
    assert read_folder(tmp_path, size=4).x[:, 0, 0, 0].tolist() == list(range(70))
    assert given == [0, 38]


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise AssertionError("decoded although the cache holds the set")

    monkeypatch.setattr(folder, "_fill", fill)


@pytest.mark.parametrize("in_memory_bytes", [1 << 30, 10])
def test_cache_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory_bytes: int) -> None:
    for n in range(3):
        save(tmp_path / f"in/c{n}/{n}.png", (n, 0, 0))
    save(tmp_path / "in/c0/bad.png").write_bytes(b"no picture")
    room = tmp_path / "cache"

    def read(size: int = 4) -> folder.Pictures:
        return read_folder(tmp_path / "in", size=size, labelled=True, cache=room, in_memory_bytes=in_memory_bytes)

    first = read()
    assert not list(room.glob("*.tmp"))
    with monkeypatch.context() as patched:
        forbid(patched)
        second = read()
        with pytest.raises(AssertionError, match="decoded"):
            read(size=5)
    assert torch.equal(first.x, second.x) and first.names == second.names
    assert second.y is not None and second.y.tolist() == [0, 1, 2]
    assert first.skipped == second.skipped and len(second.skipped) == 1
    second.x.fill_(77)  # must not reach the stored set
    assert torch.equal(read().x[:, 0, 0, 0], torch.tensor([0, 1, 2], dtype=torch.uint8))


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    path = save(tmp_path / "in/a.png", (1, 0, 0))
    read_folder(tmp_path / "in", size=4, cache=tmp_path / "c")
    save(path, (2, 0, 0))
    os.utime(path, (time.time() + 5, time.time() + 5))
    assert read_folder(tmp_path / "in", size=4, cache=tmp_path / "c").x[0, 0, 0, 0] == 2


@pytest.mark.parametrize("in_memory_bytes", [1 << 30, 10])
@pytest.mark.parametrize("harm", ["cut data", "no data", "cut notes", "no notes", "wrong notes"])
def test_half_written_cache_is_ignored(tmp_path: Path, in_memory_bytes: int, harm: str) -> None:
    save(tmp_path / "in/a.png", (1, 0, 0))
    room = tmp_path / "c"
    read_folder(tmp_path / "in", size=4, cache=room, in_memory_bytes=in_memory_bytes)
    notes = next(room.glob("*.json"))
    data = next(p for p in room.iterdir() if p.suffix != ".json")
    hurt = data if "data" in harm else notes
    if harm.startswith("no"):
        hurt.unlink()
    elif harm.startswith("cut"):
        hurt.write_bytes(hurt.read_bytes()[:-5])
    else:
        notes.write_text(json.dumps({**json.loads(notes.read_text()), "count": 2}))
    again = read_folder(tmp_path / "in", size=4, cache=room, in_memory_bytes=in_memory_bytes)
    assert again.x[0, 0, 0, 0] == 1


def test_large_set_is_mapped(tmp_path: Path) -> None:
    for n in range(3):
        save(tmp_path / f"in/{n}.png", (n + 1, 0, 0))
    (tmp_path / "in/1.png").write_bytes(b"broken")
    x = read_folder(tmp_path / "in", size=4, in_memory_bytes=10).x
    assert x[:, 0, 0, 0].tolist() == [1, 3]
    mapped = read_folder(tmp_path / "in", size=4, in_memory_bytes=10, cache=tmp_path / "c").x
    assert torch.equal(mapped, x)
    assert sorted(p.suffix for p in (tmp_path / "c").iterdir()) == [".json", ".npy"]


def test_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    save(tmp_path / "in/a.png")
    monkeypatch.setattr(os, "posix_fallocate", full)
    for cache in (None, tmp_path / "c"):
        with pytest.raises(SaveError, match="No space left"):
            read_folder(tmp_path / "in", size=4, in_memory_bytes=10, cache=cache)
    assert not list((tmp_path / "c").iterdir())


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "in/a.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="cache folder"):
        read_folder(tmp_path / "in", size=4, cache=tmp_path / "file")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("selftaught.data.cache.save_file", full)
    with pytest.warns(RuntimeWarning, match="could not be kept"):
        assert len(read_folder(tmp_path / "in", size=4, cache=tmp_path / "c")) == 1
    assert not list((tmp_path / "c").iterdir())


@pytest.mark.parametrize("wish", [{"channels": 2}, {"size": 0}, {"workers": -1}, {"limit_pixels": 0}])
def test_impossible_wishes(tmp_path: Path, wish: dict[str, int]) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(ConfigError):
        read_folder(tmp_path, **{"size": 4, **wish})
