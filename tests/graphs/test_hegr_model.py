"""HEGR on scenes of the made world: equivariance, moments apart, absent nodes, files."""

import re
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selftaught.artifacts.tensors import save_tensors
from selftaught.core.errors import ConfigError, DataError, RunError
from selftaught.graphs.events import Event, EventBatch, collate, mentions_of, person_hyperedges, written
from selftaught.graphs.fitting import exact_match, fit, load_hegr, save_hegr, token_f1, write_texts
from selftaught.graphs.model import HEGR, HEGRNet, Hyper
from selftaught.graphs.world import draw_laws, draw_scenes, event_of, words_of_world
from selftaught.optimizers.gradient import NotFiniteError

KINDS: tuple[Hyper, ...] = ("moments", "one", "cliques", "none")
LAWS = draw_laws(0)


def config(hyper: Hyper = "moments", width: int = 16) -> HEGR:
    return HEGR(6, words_of_world(), context=8, width=width, hidden=width, tags=8, hyper=hyper)


def event(actors: int = 3, seed: int = 0) -> Event:
    features = torch.randn(actors, 6, generator=torch.Generator().manual_seed(seed))
    return event_of(draw_scenes(1, seed, actors)[0], LAWS, features)


def network(hyper: Hyper = "moments") -> HEGRNet:
    """In float64, with moments' shifts that are not zero."""
    net = config(hyper).network(0).double()
    for name, value in net.named_parameters():
        if name.endswith("shift"):
            torch.nn.init.normal_(value)
    return net


def batch_of(*events: Event) -> EventBatch:
    found = collate(events, config().tokenizer())
    return replace(found, **{k: v.double() for k, v in vars(found).items() if v.is_floating_point()})


@pytest.mark.parametrize("hyper", KINDS)
def test_renumbered_objects_are_renumbered_outputs(hyper: Hyper) -> None:
    """Objects swap places, mentions stay; the texts do not change at all."""
    net, plain = network(hyper), batch_of(event(4))
    order = torch.tensor([2, 0, 3, 1])
    nodes = torch.cat([order, torch.arange(4, plain.there.shape[1])])
    other = replace(
        plain,
        features=plain.features[:, order],
        boxes=plain.boxes[:, order],
        object_tags=plain.object_tags[:, order],
        incidence=plain.incidence[:, :, nodes],
    )
    assert torch.allclose(net(other), net(plain)[:, :, nodes], atol=1e-10)
    assert torch.allclose(net.loss(other), net.loss(plain), atol=1e-10)


@pytest.mark.parametrize("hyper", KINDS)
def test_filled_up_places_change_nothing(hyper: Hyper) -> None:
    """A small event alone and beside a larger one."""
    net, small = network(hyper), event(2)
    alone, beside = batch_of(small), batch_of(small, event(5, seed=1))
    there = beside.there[0]
    assert int(there.sum()) == 5 and len(there) == 11
    assert torch.allclose(net(beside)[0][:, there], net(alone)[0], atol=1e-10)
    assert torch.equal(net.write(beside)[0], net.write(alone)[0])
    moved = beside.features.clone()
    moved[0, 2:] = 1e3
    assert torch.allclose(net(replace(beside, features=moved))[0][:, there], net(alone)[0], atol=1e-8)
    total = net.loss(beside)
    total.backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


def test_a_node_in_no_hyperedge_gets_nothing_added() -> None:
    net, batch = network(), batch_of(event(3))
    lonely = batch.incidence.clone()
    lonely[:, :, 1] = 0
    added: list[Tensor] = []
    net.enhance.register_forward_hook(lambda module, inputs, out: added.append(out))
    out = net(replace(batch, incidence=lonely))
    assert torch.equal(added[0][:, :, 1], torch.zeros_like(added[0][:, :, 1]))
    assert bool((added[0][:, :, 0] != 0).any()) and bool(out.isfinite().all())


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_a_hyperedge_of_one_moment_does_not_move_another(moment: int) -> None:
    batch = batch_of(event(4))
    other = batch.incidence.clone()
    other[:, moment, :3, 0] = 1 - other[:, moment, :3, 0]
    changed = replace(batch, incidence=other)
    for hyper in ("moments", "cliques", "one"):
        net = network(hyper)
        gap = (net(changed) - net(batch)).abs().amax((0, 2, 3))
        assert gap[moment] > 1e-6
        assert bool((gap[torch.arange(3) != moment] == 0).all()) is (hyper != "one")
    plain = network("none")
    assert torch.equal(plain(changed), plain(batch))


def test_without_moments_all_moments_share_their_nodes() -> None:
    batch = batch_of(event(4))
    shared, apart = network("one")(batch), network("moments")(batch)
    assert torch.equal(shared[:, 0], shared[:, 2]) and not torch.allclose(apart[:, 0], apart[:, 2])


def test_all_kinds_have_about_as_many_parameters() -> None:
    counts = {k: sum(p.numel() for p in config(k, 48).network(0).parameters()) for k in KINDS}
    assert counts["none"] == counts["moments"]
    assert max(counts.values()) < 1.01 * min(counts.values())


def test_writing_is_what_the_loss_scores() -> None:
    """The first written word is the most likely one after the start; teacher forcing and writing agree."""
    net, batch = network(), batch_of(event(3))
    tokens = net.write(batch)
    scored = replace(batch, target=tokens)
    memory, there, state = net._read(scored)
    logits, _ = net._decode(tokens.flatten(0, 1)[:, :-1], state, memory, there)
    assert torch.equal(logits.argmax(-1), tokens.flatten(0, 1)[:, 1:])
    wanted = batch.target.flatten(0, 1)[:, 1:]
    logits, _ = net._decode(batch.target.flatten(0, 1)[:, :-1], state, memory, there)
    log = logits.log_softmax(-1)
    said = [-log[i, j, w] for i, row in enumerate(wanted.tolist()) for j, w in enumerate(row) if w]
    assert torch.allclose(net.loss(batch), torch.stack(said).mean(), atol=1e-10)


def test_a_few_scenes_are_learned_by_heart() -> None:
    scenes = draw_scenes(2, 3)
    generator = torch.Generator().manual_seed(0)
    events = [event_of(s, LAWS, torch.randn(3, 6, generator=generator)) for s in scenes]
    net = config().network(0)
    batch = collate(events, net.config.tokenizer())
    first = float(net.loss(batch).detach())
    assert fit(net, batch, 60, rate=2e-2, batch=2) < 0.05 * first
    wanted = [e.texts[k][0] for e in events for k in range(3)]
    assert exact_match([text for row in write_texts(net, batch) for text in row], wanted) == 1


def test_the_same_seed_is_the_same_model() -> None:
    found: list[dict[str, Tensor]] = []
    for _ in range(2):
        torch.manual_seed(len(found))
        net = config().network(1)
        fit(net, batch_single(), 3, batch=2, seed=5)
        found.append(net.state_dict())
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


def batch_single() -> EventBatch:
    return collate([event(3), event(4, 1)], config().tokenizer())


def test_a_model_is_a_file(tmp_path: Path) -> None:
    net, batch = config("one").network(3), batch_single()
    save_hegr(tmp_path / "m.safetensors", net)
    again = load_hegr(tmp_path / "m.safetensors")
    assert again.config == net.config and torch.equal(again(batch), net(batch))
    save_tensors(tmp_path / "other.safetensors", net.state_dict(), {})
    with pytest.raises(RunError, match="no HEGR model"):
        load_hegr(tmp_path / "other.safetensors")
    part = dict(list(net.state_dict().items())[1:])
    save_tensors(tmp_path / "part.safetensors", part, {"format": "selftaught.hegr.1", "config": "{}"})
    with pytest.raises(RunError, match="no whole HEGR model"):
        load_hegr(tmp_path / "part.safetensors")


def test_mentions_are_tags_with_what_follows() -> None:
    assert mentions_of("1 hits 2 with a bat") == [(1, ["hits"]), (2, ["with", "a", "bat"])]
    assert mentions_of("Suddenly 3's dog barks") == [(0, ["suddenly"]), (3, ["s", "dog", "barks"])]
    index = person_hyperedges([1, 2, 0], [2, 0, 2])
    assert index.T.tolist() == [[1, 0], [3, 0], [5, 0], [6, 0]]
    assert person_hyperedges([1], [0]).shape == (2, 0)


def test_scores_by_hand() -> None:
    assert exact_match(["a b", "c"], ["a b", "d"]) == 0.5
    assert token_f1(["the red red star"], ["the red star"]) == pytest.approx(2 * 3 / 7)
    assert token_f1(["", "x"], ["", ""]) == 0.5
    with pytest.raises(ValueError, match="2 texts"):
        exact_match(["a", "b"], ["a"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hyperedges": (torch.tensor([[9], [0]]),) * 3}, "names node 9"),
        ({"boxes": torch.zeros(2, 4)}, r"3 objects, but boxes \[2, 4\]"),
        ({"tags": torch.zeros(1, dtype=torch.int64)}, r"tags \[1\]"),
    ],
)
def test_events_that_do_not_fit_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=f"world0/scene00000: .*{says}"):
        batch_of(replace(event(3), **changes))


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="at least one"):
        collate([], config().tokenizer())
    with pytest.raises(DataError, match="differ in width"):
        batch_of(event(3), replace(event(3), features=torch.zeros(3, 5)))
    far = replace(event(3), tags=torch.tensor([1, 2, 9]))
    with pytest.raises(DataError, match="tag 9 is beyond tags=8"):
        network()(batch_of(far))
    with pytest.raises(DataError, match="no texts"):
        network().loss(batch_of(replace(event(3), texts=((), (), ()))))
    with pytest.raises(NotFiniteError, match="step 0"):
        fit(config().network(0), collate([replace(event(3), features=torch.full((3, 6), torch.nan))],
                                         config().tokenizer()), 1)  # fmt: skip
    for wrong in ({"hyper": "two"}, {"vocabulary": " "}, {"context": 2}, {"heads": 3}):
        with pytest.raises(ConfigError):
            HEGR(**{"features": 6, "vocabulary": "a b", **wrong}).network(0)  # type: ignore[arg-type]


def test_words_unknown_are_the_unknown_one() -> None:
    net = config()
    odd = replace(event(3), texts=(("a yeti ghost appears",), (), ()))
    target = collate([odd], net.tokenizer()).target
    assert written(target[0, 0], net.tokenizer()) == "a ? ? ?" and not bool(target[0, 1:].any())
    assert {f.name for f in fields(EventBatch)} == set(vars(batch_single()))


def test_the_page_has_the_options() -> None:
    page = Path(__file__).parents[2] / "docs" / "graphs.md"
    text = page.read_text(encoding="utf-8").partition("## Options")[2]
    said = dict(re.findall(r"^\| `(\w+)` \| `?([^`|]+?)`? \|", text, flags=re.MULTILINE))
    assert said == {f.name: "needed" if f.default is MISSING else repr(f.default) for f in fields(HEGR)}
