"""The demonstration: learn from packaged drawings without labels, name drawings of things never seen."""

import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from selftaught.app.evaluation import as_json, evaluate
from selftaught.app.model import Model
from selftaught.app.pretrain import pretrain
from selftaught.app.reporting import keep_rows, write_run_report
from selftaught.core.errors import RunError
from selftaught.data.emoji import read_emoji
from selftaught.data.pictures import Pictures
from selftaught.evaluate.table import Row

STEPS = 250
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "BMSSL": ("bmssl", {"ways": 32, "support_views": 2, "query_views": 2}),
    "SimCLR": ("simclr", {"batch": 64, "views": 2, "temperature": 0.1}),
}
"""Both see 128 views in a step, so equal steps are equal budgets."""


def demo(out: Path, steps: int = STEPS, seed: int = 0, quiet: bool = False, command: str = "") -> dict[str, Any]:
    """Train BMSSL and, on as many views, SimCLR; compare on unseen classes; predict one picture.

    Gives the rows, the path of the report, the prediction and the seconds each part took.
    """
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out} is not empty: give another folder with --out, or remove it")
    began = time.monotonic()
    pictures = read_emoji(split="train")
    models: dict[str, Model] = {}
    for name, (method, options) in METHODS.items():
        models[name] = pretrain(
            pictures, out=out / method, method=method, options=options, size=32, views="flat", steps=steps,
            seed=seed, quiet=quiet, command=command,
        )  # fmt: skip
    trained = time.monotonic()
    unseen = read_emoji(split="test")
    rows = evaluate(models, unseen, ways=(5, 20), shots=(1,), episodes=1000)
    keep_rows(out / "bmssl", as_json(rows), command)
    report = write_run_report(out / "bmssl", unseen)
    prediction = _one_prediction(models["BMSSL"], unseen, out)
    return {
        "rows": rows,
        "report": report,
        "prediction": prediction,
        "seconds": {"training": trained - began, "everything": time.monotonic() - began},
    }


def _one_prediction(model: Model, unseen: Pictures, out: Path) -> Any:
    """Five unseen emoji, one drawing of each as support; another vendor's drawing of the first as query."""
    assert unseen.y is not None and unseen.groups is not None
    styles = sorted(set(unseen.groups))
    chosen = torch.linspace(0, len(unseen.classes) - 1, 5).long().tolist()
    where = {(int(c), g): i for i, (c, g) in enumerate(zip(unseen.y.tolist(), unseen.groups, strict=True))}
    support = {unseen.classes[c]: unseen.take(torch.tensor([where[c, styles[0]]])) for c in chosen}
    query = unseen.take(torch.tensor([where[chosen[0], styles[1]]]))
    picture = out / "new.png"
    Image.fromarray(query.x[0].permute(1, 2, 0).numpy()).resize((128, 128), Image.Resampling.NEAREST).save(picture)
    classifier = model.adapt(support)
    classifier.save(out / "classifier")
    return {"truth": unseen.classes[chosen[0]], "file": picture, "said": classifier.predict(picture)[0]}


def overlapping(rows: list[Row], name: str) -> list[str]:
    """Where the intervals of `name` and of a baseline touch, in words; empty when they never do."""
    mine = {(r.ways, r.shots): r for r in rows if r.name == name}
    baselines = [r for r in rows if r.name in ("raw pixels", "untrained encoder")]
    return [
        f"{r.name} at {r.ways}-way {r.shots}-shot"
        for r in baselines
        if (own := mine[r.ways, r.shots]).mean - own.half_width <= r.mean + r.half_width
    ]
