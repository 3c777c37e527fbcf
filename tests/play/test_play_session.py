"""The session without a server: guesses as the saved classifier gives them, suggestions, changes, limits, disk."""

import io
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from play_server import a_model, a_session, as_file, drawings, with_classes

from selftaught.app.classifier import Classifier
from selftaught.app.loading import load
from selftaught.app.play.guesses import Guess, guesses, suggestion
from selftaught.app.play.pictures import Limits, shown_name
from selftaught.app.play.session import PlaySession
from selftaught.core.errors import DataError, RunError
from selftaught.data.pictures import Pictures


def guess(id: int, **probabilities: float) -> Guess:
    return Guess(id, probabilities, ())


def asked(session: PlaySession) -> Pictures:
    return Pictures(torch.stack([p.x for p in session.unlabelled]), tuple(p.name for p in session.unlabelled))


def test_guesses_are_those_of_the_saved_classifier(tmp_path: Path) -> None:
    session = with_classes(a_session(tmp_path))
    said = session.predict()
    saved = Classifier.load(session.save())
    expected = saved.predict_pictures(asked(session))
    assert [g.label for g in said] == [p.label for p in expected]
    for mine, its in zip(said, expected, strict=True):
        assert mine.probabilities == pytest.approx(its.probabilities, abs=1e-5)
        assert [session.picture(n.id).name for n in mine.neighbours] == [n.name for n in its.neighbours]
        assert [n.similarity for n in mine.neighbours] == pytest.approx(
            [n.similarity for n in its.neighbours], abs=1e-5
        )
        assert session.neighbours(mine.id) == mine.neighbours
    assert saved.classes == ("a", "b") and saved.support.names == ("a0.png", "b0.png")


@pytest.mark.parametrize("head", ["ridge", "logistic", "own"])
def test_other_heads(tmp_path: Path, head: str) -> None:
    session = with_classes(PlaySession(a_model(), tmp_path / "clf", head))  # type: ignore[arg-type]
    expected = Classifier.load(session.save()).predict_pictures(asked(session))
    for mine, its in zip(session.predict(), expected, strict=True):
        assert mine.probabilities == pytest.approx(its.probabilities, abs=1e-5)


def test_nothing_is_guessed_before_two_classes_have_a_picture(tmp_path: Path) -> None:
    session = a_session(tmp_path)
    files = drawings()
    session.add(files[0][1], "query.png")
    session.add_class("a")
    session.add(files[0][0], "a.png", "a")
    session.add_class("b")
    assert session.predict() == [] and session.suggest() is None
    session.add(files[1][0], "b.png", "b")
    assert len(session.predict()) == 1 and len(session.predict()[0].neighbours) == 2
    session.add_class("empty")
    assert set(session.predict()[0].probabilities) == {"a", "b"}


def test_suggestion_by_margin_and_by_entropy() -> None:
    """By hand: the first is torn between two of three classes, the second between all."""
    torn, open_ = guess(1, a=0.49, b=0.48, c=0.03), guess(2, a=0.40, b=0.32, c=0.28)
    sure = guess(3, a=0.9, b=0.1, c=0.0)
    margin = suggestion([sure, torn, open_], "margin")
    assert margin is not None and (margin.id, margin.between) == (1, ("a", "b"))
    assert margin.value == pytest.approx(0.01)
    entropy = suggestion([sure, torn, open_], "entropy")
    assert entropy is not None and entropy.id == 2
    assert entropy.value == pytest.approx(-sum(p * math.log(p) for p in (0.40, 0.32, 0.28)))
    assert sure.entropy == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    assert guess(4, a=1.0, b=0.0).entropy == 0


def test_what_a_label_would_change_is_what_it_changes(tmp_path: Path) -> None:
    session = with_classes(a_session(tmp_path))
    one = session.unlabelled[0].id
    before = session.predict()
    foreseen = session.what_changes(one, "b")
    assert session.predict() == before and session.class_of(one) is None
    done = session.label(one, "b")
    assert done == foreseen and len(done.moves) == 3 and one not in {m.after.id for m in done.moves}
    assert [m.after for m in sorted(done.moves, key=lambda m: m.after.id)] == session.predict()
    assert list(done.moves) == sorted(done.moves, key=lambda m: -m.distance) and done.moves[0].distance > 0
    move, pa, pb = done.moves[0], done.moves[0].before.probabilities, done.moves[0].after.probabilities
    assert move.distance == pytest.approx(abs(pa["a"] - pb["a"]))  # two classes: what one loses the other gains
    assert all(m.flipped == (m.before.label != m.after.label) for m in done.moves)
    session.unlabel(one)
    assert {g.id: g.probabilities for g in session.predict()} == {g.id: g.probabilities for g in before}


def test_a_wrong_label_flips(tmp_path: Path) -> None:
    """Two copies of a picture: labelling one as the other class takes the copy along."""
    session = with_classes(a_session(tmp_path))
    session.unlabelled.clear()
    file = drawings(seed=4)[0][0]
    first, copy = session.add(file, "one.png"), session.add(file, "copy.png")
    was = session.predict()[1].label
    change = session.what_changes(first.id, "b" if was == "a" else "a")
    assert [m.after.id for m in change.flipped] == [copy.id]


def test_labels_move_between_classes(tmp_path: Path) -> None:
    session = with_classes(a_session(tmp_path))
    one = session.classes["a"][0].id
    session.label(one, "b")
    assert session.class_of(one) == "b" and not session.classes["a"] and session.predict() == []
    assert session.label(one, "b").moves == ()
    session.rename_class("b", " owls ")
    assert list(session.classes) == ["a", "owls"] and session.class_of(one) == "owls"
    session.remove_class("owls")
    assert len(session.unlabelled) == 6 and session.class_of(one) is None
    session.remove(one)
    with pytest.raises(DataError, match=f"no picture {one}"):
        session.picture(one)


def test_saved_loaded_and_opened_again(tmp_path: Path) -> None:
    session = with_classes(a_session(tmp_path))
    assert session.unsaved and not session.saved
    session.save()
    assert session.saved and not session.unsaved
    session.add(drawings(seed=7)[0][0], "later.png")
    assert not session.unsaved  # an unlabelled picture makes no other classifier
    before = session.predict()
    session.label(session.unlabelled[0].id, "b")
    assert session.unsaved
    session.load()
    assert not session.unsaved and [len(p) for p in session.classes.values()] == [1, 1]
    for then, was in zip(session.predict(), before[1:], strict=True):
        assert then.probabilities == pytest.approx(was.probabilities, abs=1e-5)
    again = PlaySession(load(session.out), tmp_path / "other")
    assert list(again.classes) == ["a", "b"] and again.head == "prototype"
    assert [p.name for p in again.pictures] == ["a0.png", "b0.png"]
    assert Image.open(io.BytesIO(again.pictures[0].thumbnail)).size == (16, 16)


def test_loading_what_does_not_fit(tmp_path: Path) -> None:
    with_classes(a_session(tmp_path)).save()
    session = PlaySession(a_model(size=20), tmp_path / "clf")
    with pytest.raises(RunError, match="selftaught play"):
        session.load()
    with pytest.raises(RunError, match=r"classifier\.json is missing"):
        PlaySession(a_model(), tmp_path / "none").load()


def test_saving_needs_classes_with_pictures(tmp_path: Path) -> None:
    session = a_session(tmp_path)
    session.add_class("a")
    with pytest.raises(DataError, match="'a' has no picture"):
        session.save()
    session.add(drawings()[0][0], "a.png", "a")
    with pytest.raises(DataError, match="at least two"):
        session.save()
    assert not session.out.exists()


def test_the_map(tmp_path: Path) -> None:
    session = a_session(tmp_path)
    assert session.map()[0] == ()
    with_classes(session)
    ids, points = session.map()
    assert ids == tuple(sorted(p.id for p in session.pictures)) and points.shape == (6, 2)
    assert points.min() >= 0 and points.max() <= 1 and session.map_kind == "PCA"
    assert float((points.amax(0) - points.amin(0)).max()) == pytest.approx(1)
    session.label(session.unlabelled[0].id, "a")
    assert session.map()[1] is points  # labels move nothing


BOMB = as_file(Image.new("1", (3000, 3000)))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"<svg onload=alert(1)>", "not in a picture format"),
        (drawings()[0][0][:60], "cannot be decoded"),
        (BOMB, "more than 1,000,000 pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not in a picture format"),
        (b"x" * 200_001, "larger than"),
    ],
)
def test_bad_files_are_named_and_leave_nothing(
    tmp_path: Path, content: bytes, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))  # so that no picture can become a file
    session = a_session(tmp_path, Limits(file_bytes=200_000, pixels=1_000_000))
    with pytest.raises(DataError, match=says) as caught:
        session.add(content, "C:\\me\\bad.png")
    assert str(caught.value).startswith("bad.png: ") and not session.pictures
    session.add(drawings()[0][0], "good.png")
    assert not list(tmp_path.iterdir())


def test_limits(tmp_path: Path) -> None:
    session = a_session(tmp_path, Limits(per_class=1, classes=2, unlabelled=2))
    (a0, a1, _), (b0, _, _) = drawings()
    session.add_class("a")
    session.add(a0, "0.png", "a")
    with pytest.raises(DataError, match="1 pictures in class 'a' are the most"):
        session.add(a1, "1.png", "a")
    session.add(a1, "1.png")
    one = session.add(b0, "2.png")
    for full in (lambda: session.add(b0, "3.png"), lambda: session.remove_class("a")):
        with pytest.raises(DataError, match="2 unlabelled pictures are the most"):
            full()
    with pytest.raises(DataError, match="are the most"):
        session.label(one.id, "a")
    assert session.class_of(one.id) is None and len(session.classes["a"]) == 1
    session.add_class("b")
    with pytest.raises(DataError, match="2 classes are the most"):
        session.add_class("c")


@pytest.mark.parametrize(("name", "says"), [(" ", "needs a name"), ("a", "already"), ("x" * 61, "too long")])
def test_bad_class_names(tmp_path: Path, name: str, says: str) -> None:
    session = a_session(tmp_path)
    session.add_class("a")
    with pytest.raises(DataError, match=says):
        session.add_class(name)
    assert session.add_class("tab\there") == "tab\\x09here"
    with pytest.raises(DataError, match="no class 'z'"):
        session.add(drawings()[0][0], "0.png", "z")


def test_names_of_files() -> None:
    assert shown_name("/home/me/owl.png") == shown_name("C:\\me\\owl.png") == "owl.png"
    assert shown_name("") == shown_name("/") == "picture" and len(shown_name("x" * 500)) == 120


def test_guesses_of_nothing() -> None:
    assert guesses(a_model(), {}, (), "prototype") == [] and suggestion([], "entropy") is None


def test_a_method_without_an_encoder_is_refused(tmp_path: Path) -> None:
    model = replace(a_model(), net=torch.nn.Sequential())
    with pytest.raises(RunError, match="no encoder of pictures"):
        PlaySession(model, tmp_path / "clf")
