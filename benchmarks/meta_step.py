"""Time and peak memory of one meta-step: against the number of inner steps, and against other libraries."""

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, final

from benchmarks.drawing import Curve, Panel, Row, draw
from benchmarks.measure import Seconds, environment, in_fresh_process, summary
from benchmarks.variants import GROUPS, Group, Shape
from selftaught.artifacts.files import write_json, write_text

RESULTS, FIGURES = Path("benchmarks/results"), Path("docs/figures")
Curved = Literal["tasks", "size", "steps", "shots"]


@final
@dataclass(frozen=True)
class MetaStep:
    """One step of MAML (unrolled, adjoint, first order) and of BMSSL (head, last, all), each against a named
    baseline: a hand-written loop with one backward pass at the end, and SimCLR on as many views. With `peers`,
    MAML or ANIL against those libraries, each in an environment of its own (see `benchmarks.peers`)."""

    steps: tuple[int, ...] = ()
    """Numbers of inner steps; where not given 1, 5, 10 and 20, with peers 5."""
    rounds: int = 3
    """Times that each variant runs, in turns."""
    limit: float = 30.0
    """Processor seconds for each number of inner steps of a group (with peers, seconds by the clock for each
    comparison); later rounds are left out."""
    shape: Shape = field(default_factory=Shape)
    """Sizes of the work."""
    peers: tuple[str, ...] = ()
    """Libraries to compare with; the first one that works is the baseline."""
    algorithm: Literal["maml", "anil", "first-order"] = "maml"
    """With peers: what is compared."""
    threads: int = 1
    """With peers: threads of every program."""
    curves: tuple[Curved, ...] = ()
    """With peers: also the cost against the number of tasks, the size of the pictures, the inner steps, the shots;
    the last value over the first is printed for time and memory."""
    tasks: tuple[int, ...] = (4, 16, 64)
    """Numbers of tasks of that curve."""
    sizes: tuple[int, ...] = (28, 42, 84)
    """Sizes of that curve in pixels."""
    shots: tuple[int, ...] = (1, 5)
    """Support pictures a class of that curve."""
    only: tuple[str, ...] = ()
    """With peers: some of our own implementations, by their names in the table; all where not given."""
    out: Path | None = None
    """Where the numbers go: benchmarks/results/meta_step.json, with peers meta_step_peers.json."""
    figure: Path | None = None
    """Where the drawing goes: docs/figures/meta_step.svg, with peers and curves meta_step_peers.svg."""

    def run(self) -> None:
        """Measure, print, write the numbers and draw them."""
        if self.peers:
            self._against_peers()
        else:
            self._alone()

    def _against_peers(self) -> None:
        # The peers' machinery is of no use to the other mode.
        from benchmarks.peers.curves import curves, figure_of
        from benchmarks.peers.meta import Contest, run, table

        found, drawn = [], []
        for k in self.steps or (5,):
            contest = Contest(
                self.algorithm, self.peers, self.shape, k, self.rounds, self.limit, self.threads, self.only
            )
            found.append(run(contest))
            print("\n".join(table(found[-1])), flush=True)
            if self.curves:
                values = {"tasks": self.tasks, "size": self.sizes, "steps": (1, 5, 10, 20), "shots": self.shots}
                drawn = list(curves(contest, self.curves, values))
        content = {
            "command": "python -m benchmarks meta_step " + shlex.join(self._options()),
            "environment": environment(self.threads),
            "contests": found,
            "curves": drawn,
        }
        out = self.out or RESULTS / "meta_step_peers.json"
        write_json(out, content)
        print(f"written to {out}")
        if drawn:
            figure = self.figure or FIGURES / "meta_step_peers.svg"
            write_text(figure, figure_of(content))
            print(f"drawn to {figure}")

    def _alone(self) -> None:
        options = self._options()
        found = in_fresh_process(options)
        groups = []
        for group in GROUPS.values():
            rows = list(rows_of(group, found["times"][group.name], found["peaks"][group.name]))
            groups.append({"name": group.name, "baseline": group.baseline.name, "rows": rows})
            print("\n".join(table(group, rows)))
        content = {
            "command": "python -m benchmarks meta_step " + shlex.join(options),
            "environment": environment(),
            "shape": asdict(self.shape),
            "groups": groups,
        }
        out, drawing = self.out or RESULTS / "meta_step.json", self.figure or FIGURES / "meta_step.svg"
        write_json(out, content)
        write_text(drawing, figure(content))
        print(f"written to {out} and {drawing}")

    def _options(self) -> list[str]:
        """As for the command line; sizes only where they are not the usual ones."""
        usual = asdict(Shape())
        sizes = [s for k, v in asdict(self.shape).items() if v != usual[k] for s in (f"--shape.{k}", str(v))]
        rounds = ["--rounds", str(self.rounds), "--limit", f"{self.limit:g}"]
        steps = self.steps or ((5,) if self.peers else (1, 5, 10, 20))
        return ["--steps", *map(str, steps), *rounds, *self._peer_options(), *sizes]

    def _peer_options(self) -> list[str]:
        if not self.peers:
            return []
        out = ["--peers", *self.peers, "--algorithm", self.algorithm, "--threads", str(self.threads)]
        if self.curves:
            out += ["--curves", *self.curves]
            out += ["--tasks", *map(str, self.tasks), "--sizes", *map(str, self.sizes)]
            out += ["--shots", *map(str, self.shots)]
        return [*out, "--only", *self.only] if self.only else out


def rows_of(group: Group, times: dict[str, Any], peaks: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row for each number of steps and variant, ratios to the baseline at as many steps."""
    for steps, found in times.items():
        rounds = {name: [Seconds(**s) for s in each] for name, each in found.items()}
        base = peaks[steps][group.baseline.name]
        for name, each in rounds.items():
            row = {"variant": name, "steps": int(steps)} | summary(each, rounds[group.baseline.name])
            peak = peaks[steps][name]
            yield row | {"peak_mib": peak, "peak_ratio": round(peak / base, 4) if base else None}


def table(group: Group, rows: list[dict[str, Any]]) -> list[str]:
    """Lines of text, one for each row; ratios in the columns marked x."""
    out = [f"{group.title}: x = ratio to '{group.baseline.name}' at as many inner steps, 1 thread"]
    out.append(f"{'steps':>5}  {'variant':36}{'cpu s':>8}{'x':>7}{'wall s':>8}{'x':>7}{'MiB':>8}{'x':>7}  rounds")
    for r in rows:
        times = f"{r['cpu_s']:8.2f}{r['cpu_ratio']:7.2f}{r['wall_s']:8.2f}{r['wall_ratio']:7.2f}"
        share = f"{r['peak_ratio']:7.2f}" if r["peak_ratio"] is not None else f"{'-':>7}"
        out.append(f"{r['steps']:5}  {r['variant']:36}{times}{r['peak_mib']:8.0f}{share}{r['rounds']:8}")
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
