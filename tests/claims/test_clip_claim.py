"""CLIP's claim: what is held out stays out, rivals share what they should, and every sentence has a figure."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from selftaught.claims import clip, clip_emoji, clip_shapes
from selftaught.claims.clip_models import Heads, Setting, best_of, reciprocal_rank, rival
from selftaught.claims.outcome import Estimate, as_json, from_json
from selftaught.data.tokens import words_of
from selftaught.nets import build_encoder
from selftaught.tasks.captions import captions_of


def test_unseen_pairs_are_in_no_training_picture_and_their_words_are() -> None:
    w = clip_shapes.world(clip.QUICK, 0)
    shown = {tuple(pair) for pair in w.train.pairs.tolist()} | {tuple(pair) for pair in w.check.pairs.tolist()}
    assert shown.isdisjoint(w.unseen) and {tuple(p) for p in w.new.pairs.tolist()} <= set(w.unseen)
    assert len(w.seen) + len(w.unseen) == 48 and len(w.unseen) == clip.QUICK.unseen
    words = {word for name in w.train.pictures.classes for word in words_of(name)}
    assert all(
        set(words_of(t.replace("{}", clip_shapes.name_of(p)))) <= words
        for p in w.unseen
        for t in clip_shapes.TEMPLATES
    )
    assert clip_shapes.held_out(12, 0) == clip_shapes.held_out(12, 0) != clip_shapes.held_out(12, 1)


def test_a_drawing_is_what_its_captions_say() -> None:
    drawn = clip_shapes.draw([(0, 1), (2, 0)], 40, 24, torch.Generator().manual_seed(0))
    assert drawn.pictures.y is not None
    for x, n, (c, s) in zip(drawn.pictures.x, drawn.pictures.y.tolist(), drawn.pairs.tolist(), strict=True):
        name = clip_shapes.name_of((c, s))
        assert f"a {name}" in captions_of(drawn.pictures.classes[n])
        peak = (x.float() - x.float().mean(0)).flatten(1).amax(1)
        assert int(peak.argmax()) == {0: 0, 2: 2}[c]  # red stands out in the red pictures, blue in the blue


def test_new_emoji_have_trained_words_and_no_trained_name() -> None:
    train = clip_emoji.training(Setting())
    said = {c.lower() for name in train.classes for c in captions_of(name)}
    words = {word for caption in said for word in words_of(caption)}
    asked = {split: clip_emoji.new_names(train, split, clip_emoji.OLD_STYLES) for split in ("validation", "test")}
    assert set(asked["test"].names).isdisjoint(asked["validation"].names)
    for named in asked.values():
        assert len(named.names) > 50 and len(named.x) == 2 * len(named.names)
        assert all(set(words_of(n)) <= words and n.lower() not in said for n in named.names)
    assert train.groups is None and all(not name.startswith(clip_emoji.NEW_STYLE) for name in train.names)


def test_scores_of_the_rival_are_means_of_its_words() -> None:
    words = {"red": 0, "blue": 1, "square": 2}
    truth = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    arm = rival(build_encoder("conv4", 3, 16, 0, width=4), words, truth, 0, (slice(0, 2), slice(2, 3)))
    assert isinstance(arm, Heads)
    x = torch.rand(3, 3, 16, 16)
    weights = dict(arm.net.state_dict())
    logits = arm.net.eval()(x).detach()
    wanted = (logits[:, :2].log_softmax(-1)[:, 1] + 0) / 2
    assert torch.allclose(arm.scores(weights, x, ["blue square"])[:, 0], wanted, atol=1e-6)
    single = replace(arm, groups=(slice(None),), prior=1.0)
    less = logits.log_softmax(-1) - truth.mean(0).log()
    assert torch.allclose(
        single.scores(weights, x, ["red", "red square"])[:, 1], less[:, [0, 2]].mean(-1), atol=1e-6
    )


def test_ranks_and_the_first_best_checkpoint() -> None:
    scores = torch.tensor([[3.0, 2, 1], [3, 2, 1], [1, 1, 1]])
    assert reciprocal_rank(scores, torch.tensor([0, 1, 0])) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    kept: list[Any] = [{"a": torch.tensor(k)} for k in range(3)]
    assert best_of([0.1, 0.5, 0.5], kept) is kept[1]


def test_the_quick_version_says_all() -> None:
    done = clip.show(quick=True)
    assert from_json(as_json(done)) == done or as_json(from_json(as_json(done))) == as_json(done)
    assert [row["model"] for row in done.rows if row["pictures"] == "shapes"] == [
        "CLIP", "CLIP, 5 templates", "CLIP, collisions as negatives", "CLIP, collisions as negatives, 5 templates",
        "heads for colour and shape", "chance",
    ]  # fmt: skip
    assert {row["model"] for row in done.rows} >= {"a head for every word", "nearest pixels"}
    assert all(isinstance(row["new names"], Estimate) for row in done.rows if row["model"] != "nearest pixels")
    assert [line.label for line in done.lines] == ["from the names on", "pictures alone"]
    assert done.verdict.split(":")[0] in ("Shown", "Not shown") and "above chance" in done.verdict


def test_a_verdict_needs_both_worlds() -> None:
    def found(emoji: float) -> dict[str, clip.Found]:
        row = {"known": 0.9, "new": 0.8, "harder": 0.5, "last": 0.4}
        low = dict.fromkeys(row, 0.01)
        hand = row | {"harder": emoji}
        return {
            "shapes": [{"CLIP": row, "heads for colour and shape": row, "chance": low}] * 3,
            "emoji": [{"CLIP": hand, "a head for every word": row, "chance": low}] * 3,
        }

    assert clip.verdict(found(0.3)).startswith("Shown") and clip.verdict(found(0.01)).startswith("Not shown")
    assert "Heads trained on the same words lead on emoji" in clip.losing(found(0.3))
