"""Time and peak memory of one meta-step against the number of inner steps."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

from benchmarks.drawing import Curve, Panel, Row, draw
from benchmarks.measure import Seconds, environment, in_fresh_process, summary
from benchmarks.variants import GROUPS, Group, Shape
from selftaught.artifacts.files import write_json, write_text


@final
@dataclass(frozen=True)
class MetaStep:
    """One step of MAML (unrolled, adjoint, first order) and of BMSSL (head, last, all), each against a named
    baseline: a hand-written loop with one backward pass at the end, and SimCLR on as many views."""

    steps: tuple[int, ...] = (1, 5, 10, 20)
    """Numbers of inner steps."""
    rounds: int = 3
    """Times that each variant runs, in turns."""
    shape: Shape = field(default_factory=Shape)
    """Sizes of the work."""
    out: Path = Path("benchmarks/results/meta_step.json")
    """Where the numbers go."""
    figure: Path = Path("docs/figures/meta_step.svg")
    """Where the drawing goes."""

    def run(self) -> None:
        """Measure every group in fresh processes, print, write the numbers and draw them."""
        groups = []
        for group in GROUPS.values():
            rows = list(self._rows(group))
            groups.append({"name": group.name, "baseline": group.baseline.name, "rows": rows})
            print("\n".join(table(group, rows)), flush=True)
        content = {
            "command": " ".join(["python -m benchmarks meta_step", *self._options(), *self._shape_options()]),
            "environment": environment(),
            "shape": asdict(self.shape),
            "groups": groups,
        }
        write_json(self.out, content)
        write_text(self.figure, figure(content))
        print(f"written to {self.out} and {self.figure}")

    def _rows(self, group: Group) -> Iterator[dict[str, Any]]:
        """One row for each number of steps and variant, ratios to the baseline at as many steps."""
        shape = self._shape_options()
        found = in_fresh_process(["time", "--group", group.name, *self._options(), *shape])
        peaks = in_fresh_process(["memory", "--group", group.name, *self._options()[:-2], *shape])
        for steps in map(str, self.steps):
            rounds = {name: [Seconds(**s) for s in each] for name, each in found[steps].items()}
            base = peaks[steps][group.baseline.name]
            for name, each in rounds.items():
                row = {"variant": name, "steps": int(steps)} | summary(each, rounds[group.baseline.name])
                peak = peaks[steps][name]
                yield row | {"peak_mib": peak, "peak_ratio": round(peak / base, 4) if base else None}

    def _options(self) -> list[str]:
        return ["--steps", *map(str, self.steps), "--rounds", str(self.rounds)]

    def _shape_options(self) -> list[str]:
        plain = asdict(Shape())
        return [s for k, v in asdict(self.shape).items() if v != plain[k] for s in (f"--shape.{k}", str(v))]


def table(group: Group, rows: list[dict[str, Any]]) -> list[str]:
    """Lines of text, one for each row; ratios in the columns marked x."""
    out = [f"{group.title}: x = ratio to '{group.baseline.name}' at as many inner steps, 1 thread"]
    out.append(f"{'steps':>5}  {'variant':36}{'cpu s':>8}{'x':>7}{'wall s':>8}{'x':>7}{'MiB':>8}{'x':>7}")
    for r in rows:
        times = f"{r['cpu_s']:8.2f}{r['cpu_ratio']:7.2f}{r['wall_s']:8.2f}{r['wall_ratio']:7.2f}"
        share = f"{r['peak_ratio']:7.2f}" if r["peak_ratio"] is not None else f"{'-':>7}"
        out.append(f"{r['steps']:5}  {r['variant']:36}{times}{r['peak_mib']:8.0f}{share}")
    return [*out, ""]


def figure(content: dict[str, Any]) -> str:
    """A drawing with one row for each group: processor time left, peak memory right."""
    lines = []
    for g in content["groups"]:
        names = list(dict.fromkeys(r["variant"] for r in g["rows"]))
        panels = []
        for key, unit in (("cpu_s", "processor time of one step, seconds"), ("peak_mib", "peak memory, MiB")):
            mine = {name: [r for r in g["rows"] if r["variant"] == name] for name in names}
            curves = [Curve(k, tuple(r["steps"] for r in v), tuple(r[key] for r in v)) for k, v in mine.items()]
            panels.append(Panel(unit, tuple(curves)))
        lines.append(Row(GROUPS[g["name"]].title, tuple(panels)))
    shape = Shape(**content["shape"])
    note = (
        f"{shape.tasks} tasks, Conv4-{shape.width}, {shape.size}x{shape.size}x1 pictures, one CPU thread, "
        f"torch {content['environment']['torch']}; {content['command']}"
    )
    return draw(lines, "inner steps", note)
