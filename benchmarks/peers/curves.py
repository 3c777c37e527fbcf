"""The cost of a meta-step against the number of tasks, the size of the pictures and the inner steps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.drawing import Curve, Panel, Row, draw
from benchmarks.peers.meta import Contest, run, table

BELOW = {
    "tasks": "tasks in a meta-batch",
    "size": "height and width in pixels",
    "steps": "inner steps",
    "shots": "support pictures a class",
}


def curves(contest: Contest, axes: Sequence[str], over: Mapping[str, Sequence[int]]) -> Iterator[dict[str, Any]]:
    """A contest for every value of each axis, all else as in `contest`; tables are printed on the way."""
    for axis in axes:
        found = []
        for value in over[axis]:
            found.append(run(at(contest, axis, value)))
            print("\n".join(table(found[-1])), flush=True)
        grown = growth(found)
        print("\n".join(growth_lines(axis, over[axis], grown)), flush=True)
        yield {"axis": axis, "values": list(over[axis]), "contests": found, "growth": grown}


def growth(contests: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """For each variant that lived through both: time and peak memory at the last value over those at the first."""
    first, last = ({r["variant"]: r for r in contests[i]["rows"]} for i in (0, -1))
    return {
        name: {key: round(last[name][key] / row[key], 3) for key in ("wall_s", "cpu_s", "peak_mib") if row[key]}
        for name, row in first.items()
        if name in last
    }


def growth_lines(axis: str, values: Sequence[int], grown: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lines of text, one for each variant."""
    out = [f"{BELOW[axis]}, {values[-1]} over {values[0]}:" + " " * 8 + "wall      cpu   memory"]
    for name, row in grown.items():
        cells = (f"{row[key]:9.2f}" if key in row else f"{'-':>9}" for key in ("wall_s", "cpu_s", "peak_mib"))
        out.append(f"{name:30}" + "".join(cells))
    return [*out, ""]


def at(contest: Contest, axis: str, value: int) -> Contest:
    """`contest` with another number of tasks, size or number of inner steps."""
    if axis == "steps":
        return replace(contest, steps=value)
    return replace(contest, shape=replace(contest.shape, **{axis: value}))


def figure_of(content: Mapping[str, Any]) -> str:
    """One row of panels for each axis: time left, peak memory right."""
    lines = [
        Row(f"{curve['contests'][0]['algorithm'].upper()} against {BELOW[curve['axis']]}", _panels(curve))
        for curve in content["curves"]
    ]
    note = (
        f"One meta-step, CPU threads: {content['environment']['threads']}, "
        f"torch {content['environment']['torch']}; {content['command']}"
    )
    return draw(lines, "see the title of the row", note)


def _panels(curve: Mapping[str, Any]) -> tuple[Panel, ...]:
    names = list(dict.fromkeys(r["variant"] for c in curve["contests"] for r in c["rows"]))
    out = []
    for key, unit in (("wall_s", "seconds of one step"), ("peak_mib", "peak memory, MiB")):
        lines = []
        for name in names:
            spots = [
                (float(value), float(r[key]))
                for value, c in zip(curve["values"], curve["contests"], strict=True)
                for r in c["rows"]
                if r["variant"] == name
            ]
            lines.append(Curve(name, tuple(x for x, _ in spots), tuple(y for _, y in spots)))
        out.append(Panel(unit, tuple(lines)))
    return tuple(out)
