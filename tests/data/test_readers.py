"""Readers of published sets, on tiny archives in the official forms."""

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selftaught.core.errors import DataError
from selftaught.data import cifar10, fashion_mnist
from selftaught.data.caltech101 import read_caltech101
from selftaught.data.cifar10 import read_cifar10
from selftaught.data.fashion_mnist import read_fashion_mnist

CIFAR_FILES = (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin")


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def tar_gz(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def jpeg(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "JPEG", quality=95)
    return out.getvalue()


# --- CIFAR-10 -------------------------------------------------------------------------------------


def cifar_batches() -> dict[str, bytes]:
    """Two records a file: label, a red plane of 1s, a green one of 2s, a blue one of the file number."""
    planes = [bytes([1]) * 1024 + bytes([2]) * 1024 + bytes([n]) * 1024 for n in range(6)]
    return {name: b"".join(bytes([n + k]) + planes[n] for k in (0, 3)) for n, name in enumerate(CIFAR_FILES)}


def cifar_tar(batches: dict[str, bytes]) -> bytes:
    return tar_gz({f"cifar-10-batches-bin/{name}": data for name, data in reversed(batches.items())})


def test_cifar10_tar(tmp_path: Path) -> None:
    place = tmp_path / "cifar-10-binary.tar.gz"
    place.write_bytes(cifar_tar(cifar_batches()))
    read = read_cifar10(place)
    assert read.x.shape == (12, 3, 32, 32) and read.y is not None and read.groups is not None
    assert read.y.tolist() == [0, 3, 1, 4, 2, 5, 3, 6, 4, 7, 5, 8]
    assert read.x[:, 2, 0, 0].tolist() == [n for n in range(6) for _ in range(2)]
    assert read.x[:, 0].unique().tolist() == [1] and read.x[:, 1].unique().tolist() == [2]
    assert read.classes[8] == "ship" and read.groups == ("train",) * 10 + ("test",) * 2
    test = read_cifar10(place, split="test")
    assert torch.equal(test.x, read.x[10:]) and test.names == ("test/00000", "test/00001")


def test_cifar10_folder(tmp_path: Path) -> None:
    inner = tmp_path / "cifar-10-batches-bin"
    inner.mkdir()
    for name, data in cifar_batches().items():
        (inner / name).write_bytes(data)
    assert len(read_cifar10(tmp_path)) == len(read_cifar10(inner)) == 12
    (inner / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_3\.bin; use the \*binary\*"):
        read_cifar10(tmp_path)


def test_cifar10_python_version_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "cifar-10-python.tar.gz"
    place.write_bytes(tar_gz({"cifar-10-batches-py/data_batch_1": b"\x80\x02"}))
    with pytest.raises(DataError, match=r"use the \*binary\* version"):
        read_cifar10(place)


def test_cifar10_damage(tmp_path: Path) -> None:
    place = tmp_path / "cifar.tar.gz"
    good = cifar_tar(cifar_batches())
    for cut in (10, len(good) // 2, len(good) - 9):
        place.write_bytes(good[:cut])
        with pytest.raises(DataError, match=r"cifar\.tar\.gz is truncated or no tar archive"):
            read_cifar10(place)
    batches = cifar_batches()
    place.write_bytes(cifar_tar({**batches, "test_batch.bin": batches["test_batch.bin"][:-1]}))
    with pytest.raises(DataError, match=r"test_batch\.bin in .* truncated"):
        read_cifar10(place)
    place.write_bytes(cifar_tar({**batches, "test_batch.bin": b"\x0a" + batches["test_batch.bin"][1:]}))
    with pytest.raises(DataError, match="labels above 9"):
        read_cifar10(place)


@pytest.mark.parametrize("name", ["../test_batch.bin", "/etc/test_batch.bin", "a/../../test_batch.bin"])
def test_path_traversal_in_a_tar_is_refused(name: str, tmp_path: Path) -> None:
    place = tmp_path / "cifar.tar.gz"
    place.write_bytes(tar_gz({name: cifar_batches()["test_batch.bin"]}))
    with pytest.raises(DataError, match="a path outside of it"):
        read_cifar10(place, split="test")


def test_cifar10_is_downloaded_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = cifar_tar(cifar_batches())
    source = tmp_path / "official" / "cifar-10-binary.tar.gz"
    source.parent.mkdir()
    source.write_bytes(archive)
    monkeypatch.setattr(cifar10, "URL", source.as_uri())
    monkeypatch.setattr(cifar10, "MD5", md5(archive))
    monkeypatch.setenv("SELFTAUGHT_DATA", str(tmp_path / "kept"))
    assert len(read_cifar10()) == 12
    source.unlink()
    assert len(read_cifar10()) == 12 and left(tmp_path / "kept") == ["cifar-10-binary.tar.gz"]


def joined(path: Path, names: list[str], label: list[int], split: list[int], **other: object) -> Path:
    pictures = [jpeg((40 * n, 0, 0), (48, 32)) for n in range(len(label))]
    fields = {
        "blob": np.frombuffer(b"".join(pictures), dtype=np.uint8),
        "offset": np.cumsum([0, *map(len, pictures)]),
        "label": np.array(label, dtype=np.int16),
        "split": np.array(split, dtype=np.uint8),
        "classes": np.array(names),
    }
    np.savez(path, **{**fields, **other})  # type: ignore[arg-type]
    return path


def test_cifar10_joined_jpegs(tmp_path: Path) -> None:
    place = joined(tmp_path / "c.npz", ["airplane", "cat"], [0, 1, 1], [1, 0, 0])
    read = read_cifar10(place)
    assert read.classes == ("airplane", "cat") and read.groups == ("train", "train", "test")
    assert read.y is not None and read.y.tolist() == [1, 1, 0]
    assert (read.x[:, 0, 16, 16].float() - torch.tensor([40.0, 80.0, 0.0])).abs().max() < 4
    assert torch.equal(read_cifar10(place, split="test").x, read.x[2:])


def test_joined_jpegs_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do not fit"):
        read_cifar10(joined(tmp_path / "a.npz", ["x"], [0, 1], [0, 0]))
    with pytest.raises(DataError, match="do not fit"):
        read_cifar10(joined(tmp_path / "b.npz", ["x"], [0, 0], [0, 0], offset=np.array([0, 5])))
    with pytest.raises(DataError, match=r"picture 0 of .* cannot be decoded"):
        read_cifar10(
            joined(tmp_path / "c.npz", ["x"], [0], [0], blob=np.zeros(9, np.uint8), offset=np.array([0, 9]))
        )
    with pytest.raises(DataError, match=r"is no .*npz file"):
        read_cifar10(joined(tmp_path / "d.npz", ["x"], [0], [0], classes=np.array([{}], dtype=object)))


# --- Fashion-MNIST --------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    header = np.array([0x0800 + array.ndim, *array.shape], dtype=">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def fashion_files() -> dict[str, bytes]:
    files = {}
    for prefix, count in (("train", 4), ("t10k", 3)):
        x = np.arange(count)[:, None, None] + np.zeros((count, 28, 28))
        x[:, 0, 5] = 200
        files[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(idx(x))
        files[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(idx(9 - np.arange(count)))
    return files


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    folder = tmp_path / "fashion"
    folder.mkdir()
    for name, data in fashion_files().items():
        (folder / name).write_bytes(data)
    return folder


def test_fashion_mnist(fashion: Path) -> None:
    read = read_fashion_mnist(fashion)
    assert read.x.shape == (7, 1, 28, 28) and read.y is not None
    assert read.y.tolist() == [9, 8, 7, 6, 9, 8, 7] and read.classes[9] == "Ankle boot"
    assert read.x[:, 0, 1, 1].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert read.x[:, 0, 0, 5].unique().tolist() == [200] and read.x[:, 0, 5, 0].max() < 200
    assert read.names[4] == "test/00000" and len(read_fashion_mnist(fashion, split="test")) == 3


def test_fashion_mnist_unzipped_and_single_files(fashion: Path) -> None:
    whole = read_fashion_mnist(fashion)
    test = read_fashion_mnist(fashion / "t10k-images-idx3-ubyte.gz")
    assert torch.equal(test.x, whole.x[4:])
    for file in list(fashion.iterdir()):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    assert torch.equal(read_fashion_mnist(fashion).x, whole.x)


def test_fashion_mnist_damage(fashion: Path) -> None:
    images = fashion / "train-images-idx3-ubyte.gz"
    good = images.read_bytes()
    for data, message in (
        (good[:-10], "truncated or not gzipped"),
        (gzip.compress(gzip.decompress(good)[:-10]), "bytes of data for the shape"),
        (gzip.compress(idx(np.zeros((4, 28)))), "not an idx file"),
        (gzip.compress(idx(np.zeros((5, 28, 28)))), "as many labels"),
        (b"", "not gzipped|not an idx"),
    ):
        images.write_bytes(data)
        with pytest.raises(DataError, match=message):
            read_fashion_mnist(fashion)
    images.unlink()
    with pytest.raises(DataError, match=r"lacks train-images-idx3-ubyte\.gz; download it from"):
        read_fashion_mnist(fashion)


def test_fashion_mnist_download(fashion: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fashion_mnist, "URL", fashion.as_uri())
    monkeypatch.setattr(fashion_mnist, "MD5", {k: md5(v) for k, v in fashion_files().items()})
    monkeypatch.setenv("SELFTAUGHT_DATA", str(tmp_path / "kept"))
    if fashion_files() != {p.name: p.read_bytes() for p in fashion.iterdir()}:
        monkeypatch.setattr(fashion_mnist, "MD5", {p.name: md5(p.read_bytes()) for p in fashion.iterdir()})
    assert len(read_fashion_mnist(split="test")) == 3
    assert left(tmp_path / "kept" / "fashion-mnist") == [
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ]
    assert len(read_fashion_mnist()) == 7


# --- Caltech-101 ----------------------------------------------------------------------------------


def caltech_files() -> dict[str, bytes]:
    """Wide pictures whose middle is green and whose sides are red, so that cropping shows."""
    files = {}
    for name, count in (("BACKGROUND_Google", 2), ("ant", 2), ("Faces", 1)):
        for n in range(1, count + 1):
            picture = Image.new("RGB", (120, 60), (200, 0, 0))
            picture.paste((0, 200, 0), (30, 0, 90, 60))
            out = io.BytesIO()
            picture.save(out, "JPEG", quality=95)
            files[f"101_ObjectCategories/{name}/image_{n:04d}.jpg"] = out.getvalue()
    return files


def test_caltech101_tar_and_folder(tmp_path: Path) -> None:
    place = tmp_path / "101_ObjectCategories.tar.gz"
    place.write_bytes(tar_gz({**caltech_files(), "101_ObjectCategories/ant/._image_0001.jpg": b"mac"}))
    packed = read_caltech101(place, size=16)
    assert packed.classes == ("Faces", "ant") and packed.x.shape == (3, 3, 16, 16)
    assert packed.y is not None and packed.y.tolist() == [0, 1, 1]
    assert packed.names == ("Faces/image_0001.jpg", "ant/image_0001.jpg", "ant/image_0002.jpg")
    middle = packed.x[:, :, :, 2:14].float()
    assert middle[:, 1].min() > 170 and middle[:, 0].max() < 40
    for name, data in caltech_files().items():
        file = tmp_path / "out" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    for folder in (tmp_path / "out", tmp_path / "out" / "101_ObjectCategories"):
        unpacked = read_caltech101(folder, size=16)
        assert torch.equal(unpacked.x, packed.x) and unpacked.names == packed.names


def test_caltech101_joined_jpegs_lose_the_background(tmp_path: Path) -> None:
    place = joined(tmp_path / "c.npz", ["BACKGROUND_Google", "Faces", "ant"], [0, 1, 2, 0, 2], [0] * 5)
    read = read_caltech101(place, size=32)
    assert read.classes == ("Faces", "ant") and read.y is not None and read.y.tolist() == [0, 1, 1]
    assert (read.x[:, 0, 9, 9].float() - torch.tensor([40.0, 80.0, 160.0])).abs().max() < 4


def test_caltech101_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"get caltech-101\.zip from https"):
        read_caltech101()
    with pytest.raises(DataError, match="does not exist"):
        read_caltech101(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no 101_ObjectCategories"):
        (tmp_path / "empty").mkdir()
        read_caltech101(tmp_path / "empty")
    place = tmp_path / "c.tar.gz"
    place.write_bytes(tar_gz(caltech_files()))
    with pytest.raises(DataError, match=r"has md5 .* instead of b224c7392d521a49829488ab0f1120d9"):
        read_caltech101(place, verify=True)
    place.write_bytes(tar_gz({"101_ObjectCategories/ant/image_0001.jpg": b"no picture"}))
    with pytest.raises(DataError, match=r"ant/image_0001\.jpg in .* cannot be decoded"):
        read_caltech101(place)
