"""Safetensors only: what comes back is bit-equal, and nothing in a file is ever run."""

import io
import json
import pickle
import random
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from selftaught.artifacts.tensors import load_tensors, save_tensors
from selftaught.core.errors import RunError, SaveError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def with_header(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def test_every_type_comes_back_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {str(d): (torch.randn(3, 5) * 9).to(d) for d in DTYPES}
    tensors |= {"odd": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]), "scalar": torch.tensor(3)}
    tensors |= {"empty": torch.empty(0, 4), "a": torch.ones(1)}
    save_tensors(tmp_path / "x.safetensors", tensors, {"who": "me"})
    loaded, metadata = load_tensors(tmp_path / "x.safetensors")
    assert metadata == {"who": "me"}
    assert list(loaded) == list(tensors)  # the order too
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        assert bits(loaded[name]) == bits(tensor), name


def test_views_shared_memory_and_parameters(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "base": base, "same": base, "turned": base.T, "part": base[:, 1:3], "wide": torch.ones(1).expand(5),
        "trained": torch.nn.Parameter(base), "conj": torch.tensor([1 + 2j]).conj(),
    }  # fmt: skip
    save_tensors(tmp_path / "x.safetensors", tensors, {})
    loaded, _ = load_tensors(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor), name
        assert not loaded[name].requires_grad
    loaded["base"].zero_()
    assert torch.equal(loaded["same"], base)


def test_loaded_tensors_do_not_hang_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(1000)}, {})
    loaded, _ = load_tensors(path)
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert loaded["a"].sum() == 1000


def test_nothing_at_all_can_be_saved(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", {}, {})
    assert load_tensors(tmp_path / "x.safetensors") == ({}, {})


def test_files_of_other_libraries_load(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    loaded, metadata = load_tensors(tmp_path / "x.safetensors")
    assert torch.equal(loaded["a"], torch.ones(2)) and metadata == {}


@pytest.mark.parametrize("bad", [torch.eye(3).to_sparse(), torch.ones(2, device="meta")])
def test_tensors_without_a_form_keep_the_old_file(tmp_path: Path, bad: Tensor) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(1)}, {})
    with pytest.raises(SaveError, match=r"x\.safetensors was not written"):
        save_tensors(path, {"a": bad}, {})
    assert torch.equal(load_tensors(path)[0]["a"], torch.ones(1))


class Bomb:
    """Unpickling this makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("form", ["pickle", "zip"])
def test_a_pickle_under_another_name_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    mark, path = tmp_path / "it-ran", tmp_path / "x.safetensors"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Bomb(mark)))
        pickle.loads(path.read_bytes())
    else:
        torch.save({"a": Bomb(mark)}, path)
        assert zipfile.is_zipfile(path)
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert mark.exists()  # the bomb is live
    mark.unlink()
    with pytest.raises(RunError, match=r"x\.safetensors is not a whole safetensors file.*never"):
        load_tensors(path)
    assert not mark.exists()


HOSTILE = {
    "empty": b"",
    "short": b"\x01\x02",
    "huge header": struct.pack("<Q", 2**63) + b"{}",
    "header beyond the end": struct.pack("<Q", 1000) + b"{}",
    "no json": with_header(b"hello"),
    "no text": with_header(b"\xff\xfe\xfd"),
    "a list": with_header(b"[]"),
    "deep": with_header(b'{"a":' * 50_000),
    "beyond the end": with_header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
    "overflow": with_header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
    "negative": with_header(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"0000"),
    "overlap": with_header(
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
        b"0000",
    ),
    "unknown type": with_header(b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', b"0000"),
    "trailing bytes": with_header(b"{}", b"more"),
    "names no list": with_header(json.dumps({"__metadata__": {"selftaught.order": "{"}}).encode()),
    "names missing": with_header(json.dumps({"__metadata__": {"selftaught.order": '["a"]'}}).encode()),
    "names twice": with_header(
        b'{"__metadata__":{"selftaught.order":"[\\"a\\",\\"a\\"]"},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"0",
    ),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_end_in_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"x\.safetensors.*Use an intact copy"):
        load_tensors(path)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(3), "b": torch.ones(2)}, {"k": "v"})
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(RunError):
            load_tensors(path)


def test_flipped_header_bytes_load_or_raise_the_one_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.int64)}, {"k": "v"})
    content = path.read_bytes()
    chance, refused = random.Random(0), 0
    for _ in range(400):
        broken = bytearray(content)
        broken[chance.randrange(len(content) - 28)] = chance.randrange(256)
        path.write_bytes(broken)
        try:
            load_tensors(path)
        except RunError:
            refused += 1
    assert refused > 200


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "no.safetensors", tmp_path):
        with pytest.raises(RunError, match="is missing"):
            load_tensors(path)
