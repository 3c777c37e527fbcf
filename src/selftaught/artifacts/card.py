"""The model card: what a model was made of, how it was measured, where it stops being good."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from selftaught.core.errors import ConfigError

_COLUMNS = (
    "ways",
    "shots",
    "what",
    "accuracy, %",
    "95 % interval, %",
    "chance, %",
    "head",
    "norm",
    "episodes",
)

_LIMITS = """\
- The numbers hold for the pictures and the protocol named above. Other pictures can give other orders.
- The intervals cover the choice of test tasks, not the choice of random seed or of training pictures.
- Compare the rows of one ways and shots only, and prefer the plain baseline where the intervals overlap.
- Pictures unlike those in training were not tested, nor was the model's treatment of groups of people.
  Do not decide about people with it."""


def model_card(
    config: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    data_counts: Mapping[str, int],
    command: str,
) -> str:
    """The card as Markdown.

    `rows` are the model and its baselines, each with `name`, `ways`, `shots`, `mean` and `half_width` (of the
    95 % interval, both as fractions of 1), `head`, `norm`, `episodes`. `data_counts` says how many pictures,
    classes and so on were used; `command` is what a reader types to train the model again.
    Raises ConfigError when a row lacks a field or its mean is no fraction.
    """
    method = str(config.get("method", "unknown"))
    parts = [
        _front(method),
        f"# {_cell(method)} on {data_counts.get('pictures', 'an unknown number of')} pictures",
        "An encoder of pictures, trained by selftaught, that learns new classes from a few labels each.",
        "## Data",
        _table(("what", "count"), list(data_counts.items())),
        "## Method",
        _table(("option", "value"), list(config.items())),
        "Trained by:",
        _code(command),
        "## Protocol",
        _protocol(rows),
        "## Numbers",
        _numbers(rows),
        "## Limits",
        _LIMITS,
        "## How to load",
        _code(
            "from selftaught.artifacts.model import load_model\n\n"
            'weights, config = load_model("path/to/this/folder")',
            "python",
        ),
        "The weights are safetensors: loading them runs no code from the file.",
    ]
    return "\n\n".join(parts) + "\n"


def _front(method: str) -> str:
    tag = "".join(c if c.isalnum() else "-" for c in method.lower()) or "unknown"
    return f"---\nlibrary_name: selftaught\ntags: [few-shot, self-supervised, {tag}]\n---"


def _protocol(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "The model was not evaluated."
    return (
        "In each episode, classes and labelled pictures are drawn anew; the model learns the task from "
        "`shots` labels for each of `ways` classes and names the remaining pictures. Accuracy is the mean "
        "over episodes. `head` is what is fitted to the labels; `norm` says which statistics normalise the "
        "test pictures (`running`: those of training, so that no test picture helps another)."
    )


def _numbers(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "None."
    # Sorting keeps the given order inside one setting: the model first, then its baselines.
    measured = sorted(map(_checked, rows), key=lambda row: (row["ways"], row["shots"]))
    return _table(_COLUMNS, [_figures(row) for row in measured])


def _checked(row: Mapping[str, Any]) -> Mapping[str, Any]:
    fields = ("name", "ways", "shots", "mean", "half_width", "head", "norm", "episodes")
    missing = [field for field in fields if field not in row]
    if missing:
        raise ConfigError(f"The row {row.get('name', '?')!r} lacks {', '.join(missing)}; add what was measured.")
    if not 0 <= row["mean"] <= 1:
        raise ConfigError(f"The row {row['name']!r} has mean {row['mean']}; give a fraction between 0 and 1.")
    return row


def _figures(row: Mapping[str, Any]) -> tuple[object, ...]:
    mean, half = 100 * row["mean"], 100 * row["half_width"]
    interval = f"{max(mean - half, 0):.1f} to {min(mean + half, 100):.1f}" if math.isfinite(half) else "unknown"
    chance = f"{100 / row['ways']:.1f}"
    shown = (row["ways"], row["shots"], row["name"], f"{mean:.1f}", interval, chance)
    return (*shown, row["head"], row["norm"], row["episodes"])


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    """One line of text that cannot break a table or smuggle in HTML."""
    text = " ".join(str(value).split())
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _code(text: str, language: str = "sh") -> str:
    """A fenced block whose fence is longer than any in `text`."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
