"""A session as plain JSON values, for the page."""

from typing import Any

from selftaught.app.play.guesses import Change, Guess, Move, Suggestion
from selftaught.app.play.pictures import Picture
from selftaught.app.play.session import PlaySession


def state(session: PlaySession) -> dict[str, Any]:
    """Everything the page shows but the thumbnails and the map."""
    config, limits = session.model.config, session.limits
    found = {g.id: g for g in session.predict()}
    return {
        "model": {
            "method": config.method,
            "encoder": config.encoder,
            "size": config.size,
            "channels": config.channels,
            "width": session.model.width,
            "head": session.head,
        },
        "out": session.out.name,
        "saved": session.saved,
        "unsaved": session.unsaved,
        "limits": {
            "file_bytes": limits.file_bytes,
            "per_class": limits.per_class,
            "classes": limits.classes,
            "unlabelled": limits.unlabelled,
        },
        "classes": [{"name": n, "pictures": [_picture(p) for p in ps]} for n, ps in session.classes.items()],
        "unlabelled": [
            _picture(p) | {"guess": _guess(found[p.id]) if p.id in found else None} for p in session.unlabelled
        ],
        "suggestions": {m: _suggestion(session.suggest(m)) for m in ("margin", "entropy")},
    }


def places(session: PlaySession) -> dict[str, Any]:
    """The embedding map."""
    ids, points = session.map()
    return {"kind": session.map_kind, "points": [[i, *xy] for i, xy in zip(ids, points.tolist(), strict=True)]}


def changed(change: Change) -> dict[str, Any]:
    """What a label changes."""
    return {
        "id": change.id,
        "label": change.label,
        "flipped": len(change.flipped),
        "moves": [_move(m) for m in change.moves],
    }


def _picture(picture: Picture) -> dict[str, Any]:
    return {"id": picture.id, "name": picture.name}


def _guess(guess: Guess) -> dict[str, Any]:
    return {
        "label": guess.label,
        "probability": guess.probability,
        "probabilities": dict(guess.probabilities),
        "margin": guess.margin,
        "entropy": guess.entropy,
        "neighbours": [vars(n) for n in guess.neighbours],
    }


def _suggestion(one: Suggestion | None) -> dict[str, Any] | None:
    return None if one is None else {"id": one.id, "value": one.value, "between": list(one.between)}


def _move(move: Move) -> dict[str, Any]:
    return {
        "id": move.after.id,
        "before": move.before.label,
        "after": move.after.label,
        "was": move.before.probability,
        "is": move.after.probability,
        "distance": move.distance,
        "flipped": move.flipped,
    }
