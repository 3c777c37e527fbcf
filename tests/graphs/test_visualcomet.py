"""VisualCOMET's annotations from a tiny made file; what is wrong with a record is said and left out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from selftaught.artifacts.tensors import save_tensors
from selftaught.core.errors import DataError
from selftaught.data.tokens import vocabulary_of
from selftaught.graphs.events import collate
from selftaught.graphs.fitting import fit, write_texts
from selftaught.graphs.model import HEGR
from selftaught.graphs.visualcomet import read_visualcomet

GOOD: dict[str, Any] = {
    "img_fn": "film/a@0.jpg", "movie": "film", "place": "in a hall", "event": "1 hands a letter to 2",
    "intent": ["help 2"], "before": ["write a letter", "walk in"], "after": ["leave"],
}  # fmt: skip


@pytest.fixture
def features(tmp_path: Path) -> Path:
    folder = tmp_path / "features"
    objects, image = torch.randn(3, 6), torch.randn(6)
    save_tensors(folder / "film/a@0.safetensors", {"objects": objects, "image": image}, {})
    save_tensors(folder / "film/b@0.safetensors", {"objects": objects[:2], "boxes": torch.rand(2, 4)}, {})
    save_tensors(folder / "film/flat.safetensors", {"objects": image}, {})
    save_tensors(folder / "film/nan.safetensors", {"objects": objects / 0}, {})
    save_tensors(folder / "film/boxes.safetensors", {"objects": objects, "boxes": torch.rand(2, 4)}, {})
    (folder / "film/broken.safetensors").write_bytes(b"no tensors")
    return folder


def written_to(folder: Path, records: object) -> Path:
    file = folder / "annots.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    return file


def test_records_become_events(tmp_path: Path, features: Path) -> None:
    other = {**GOOD, "img_fn": "film/b@0.jpg", "event": "Someone waits for 2", "after": [" "]}
    events, skipped = read_visualcomet(written_to(tmp_path, [GOOD, other]), features)
    assert skipped == () and len(events) == 2
    first, second = events
    assert first.features.shape == (4, 6) and first.tags.tolist() == [1, 2, 3, 0]
    assert first.texts == (("write a letter", "walk in"), ("help 2",), ("leave",))
    # Objects 0-3, mentions of 1 and 2 at 4 and 5, the place at 6; person 3 is not spoken of.
    for index in first.hyperedges:
        assert index.T.tolist() == [[0, 0], [4, 0], [6, 0], [1, 1], [5, 1], [6, 1]]
    assert second.texts[2] == () and second.features.shape == (2, 6) and "film/b@0.jpg" in second.name


def test_they_can_be_learned_and_written_about(tmp_path: Path, features: Path) -> None:
    events, _ = read_visualcomet(written_to(tmp_path, [GOOD]), features)
    texts = [t for moment in events[0].texts for t in moment]
    config = HEGR(6, vocabulary_of([*texts, GOOD["event"], GOOD["place"]]), context=8, width=16, hidden=16)
    net = config.network(0)
    batch = collate(events, config.tokenizer())
    fit(net, batch, 40, rate=3e-2, batch=1)
    assert write_texts(net, batch) == [("write a letter", "help 2", "leave")]
    chosen = {
        tuple(collate(events, config.tokenizer(), torch.Generator().manual_seed(s)).target[0, 0].tolist())
        for s in range(8)
    }
    assert len(chosen) == 2


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("text", "a str where an object belongs"),
        ({k: v for k, v in GOOD.items() if k != "event"}, "'event' is missing"),
        ({**GOOD, "place": 3}, "'place' is missing or no text"),
        ({**GOOD, "before": "one"}, "'before' is no list"),
        ({**GOOD, "intent": [1]}, "'intent' is no list"),
        ({**GOOD, "event": "!"}, "'event' has no words"),
        ({**GOOD, "event": "1 sees 7"}, "names person 7, but the picture has 3 objects"),
        ({**GOOD, "img_fn": "../secret.jpg"}, "leads out"),
        ({**GOOD, "img_fn": "/secret.jpg"}, "leads out"),
        ({**GOOD, "img_fn": "film/none.jpg"}, "none.safetensors is missing"),
        ({**GOOD, "img_fn": "film/broken.jpg"}, "not a whole safetensors file"),
        ({**GOOD, "img_fn": "film/flat.jpg"}, "no tensor 'objects'"),
        ({**GOOD, "img_fn": "film/nan.jpg"}, "NaN or infinite"),
        ({**GOOD, "img_fn": "film/boxes.jpg"}, "'boxes' must be"),
    ],
)
def test_malformed_records_are_named_and_left_out(tmp_path: Path, features: Path, record: Any, says: str) -> None:
    events, skipped = read_visualcomet(written_to(tmp_path, [GOOD, record]), features)
    assert len(events) == 1 and [s.path for s in skipped] == ["annots.json#1"] and says in skipped[0].reason
    with pytest.raises(DataError, match="none of 1 records"):
        read_visualcomet(written_to(tmp_path, [record]), features)


def test_files_of_another_kind_are_refused(tmp_path: Path, features: Path) -> None:
    with pytest.raises(DataError, match="are a list"):
        read_visualcomet(written_to(tmp_path, {"a": 1}), features)
    with pytest.raises(DataError, match="missing"):
        read_visualcomet(tmp_path / "nothing.json", features)
    (tmp_path / "bad.json").write_text("[{", encoding="utf-8")
    with pytest.raises(DataError, match="as JSON"):
        read_visualcomet(tmp_path / "bad.json", features)
    with pytest.raises(DataError, match="none of 0 records"):
        read_visualcomet(written_to(tmp_path, []), features)
