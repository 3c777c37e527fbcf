"""The made world: what pictures show, what sentences say, hyperedges that follow from both, the page."""

import re
from pathlib import Path

import pytest
import torch

from selftaught.core.errors import ConfigError, DataError
from selftaught.data.tokens import words_of
from selftaught.graphs.hypergraph import to_incidence
from selftaught.graphs.page import write_page
from selftaught.graphs.world import (
    COLOURS,
    INTENTS,
    MOVES,
    PLACES,
    SHAPES,
    boxes_of,
    crops_of,
    draw_laws,
    draw_scenes,
    event_of,
    hypergraphs_of,
    render,
    texts_of,
    words_of_world,
)

LAWS, SCENES = draw_laws(0), draw_scenes(60, 5, actors=4)


def test_the_same_seed_is_the_same_world() -> None:
    again = draw_scenes(60, 5, actors=4)
    assert [(s.sentence, s.shapes, s.name) for s in again] == [(s.sentence, s.shapes, s.name) for s in SCENES]
    assert torch.equal(render(again[3]), render(SCENES[3]))
    assert not torch.equal(draw_laws(1).cause, LAWS.cause)


def test_texts_follow_the_laws() -> None:
    for s in SCENES[:20]:
        before, present, after = texts_of(s, LAWS)
        a, b = s.striker, s.struck
        intent = int(LAWS.intent[MOVES.index(s.moves[a]), SHAPES.index(s.shapes[b])])
        assert present == f"wants to {INTENTS[intent]} the {s.colours[b]} {s.shapes[b]}"
        assert before.endswith(f"the {s.colours[a]} {s.shapes[a]}") and s.named(b) in after
    vocabulary = set(words_of_world().split())
    said = " ".join([*(t for s in SCENES for t in texts_of(s, LAWS)), *(s.sentence for s in SCENES)])
    assert {w for w in words_of(said) if not w.isdecimal()} <= vocabulary


def test_neither_side_tells_what_the_other_knows() -> None:
    for s in SCENES:
        assert not set(words_of(s.sentence)) & {*SHAPES, *COLOURS, *PLACES}
        found = hypergraphs_of([1, 2, 3, 4], s.sentence)
        assert [h.tolist() for h in event_of(s, LAWS, torch.zeros(4, 2)).hyperedges] == [h.tolist() for h in found]


def test_hyperedges_of_a_sentence_by_hand() -> None:
    """Objects 0-2, mentions 3-5 (of tags 2, 1, 3), place 6; 2 strikes 3."""
    sentence = "2 rolls and strikes, 1 hops, 3 spins and is struck"
    before, present, after = (to_incidence(h, 7) for h in hypergraphs_of([1, 2, 3], sentence))

    def sets(h: torch.Tensor) -> set[frozenset[int]]:
        return {frozenset(column.nonzero().flatten().tolist()) for column in h.T}

    alone = {frozenset({0, 4, 6}), frozenset({1, 3, 6}), frozenset({2, 5, 6})}
    assert sets(before) == alone
    assert sets(present) == {frozenset({0, 4, 6}), frozenset({1, 3, 2, 5, 6})}
    assert sets(after) == {frozenset({0, 4, 6}), frozenset({1, 3, 6}), frozenset({2, 5, 3, 6})}
    for wrong in ("1 hops, 2 spins", "1 rolls and strikes, 9 hops and is struck"):
        with pytest.raises(DataError, match="strikes whom"):
            hypergraphs_of([1, 2], wrong)


def test_pictures_show_every_actor_where_its_box_is() -> None:
    for s in SCENES[:20]:
        picture = render(s)[1]
        assert torch.equal(picture[:, 0, 0], torch.tensor(PLACES[s.place], dtype=torch.uint8))
        boxes, crops = boxes_of(s), crops_of(s)
        assert crops.shape == (4, 3, 16, 16) and bool(((boxes >= 0) & (boxes <= 1)).all())
        for colour, crop in zip(s.colours, crops, strict=True):
            hits = (crop == torch.tensor(COLOURS[colour], dtype=torch.uint8)[:, None, None]).all(0)
            assert hits.sum() > 30 and bool(hits[6:10, 6:10].any())


def test_movement_is_seen_over_the_moments_only() -> None:
    s = SCENES[0]
    before, present, after = s.positions
    assert not torch.equal(before[s.striker], present[s.striker])
    assert torch.equal(before[s.struck], present[s.struck]) and not torch.equal(present[s.struck], after[s.struck])
    assert torch.equal(present[s.striker], after[s.striker])
    assert float(torch.pdist(present).min()) > 12


def test_worlds_that_cannot_be_are_refused() -> None:
    for count, actors in ((0, 3), (1, 1), (1, 7)):
        with pytest.raises(ConfigError, match="actors"):
            draw_scenes(count, 0, actors)


def test_the_page_shows_pictures_and_marks(tmp_path: Path) -> None:
    true = [texts_of(s, LAWS) for s in SCENES[:2]]
    wrote = [true[0], ("<b>nonsense</b>", *true[1][1:])]
    file = tmp_path / "deep" / "page.html"
    write_page(file, "Scenes & texts", "two of them", SCENES[:2], true, {"ours": wrote})
    text = file.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 6 and "Scenes &amp; texts" in text
    assert len(re.findall(r'class="right"', text)) == 5 and len(re.findall(r'class="wrong"', text)) == 1
    assert "&lt;b&gt;nonsense" in text and "<b>" not in text and "<script" not in text
    assert "of 6: ours 5." in text
    tags = [f">{n + 1}</b>" for n in range(len(SCENES[0].shapes))]
    assert all(text.count(tag) == 6 for tag in tags)
    with pytest.raises(ValueError, match="2 scenes"):
        write_page(file, "", "", SCENES[:2], true, {"ours": true[:1] * 3})
