"""The tables of `docs/results.md`, each from the stored results that its commands write."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import cifar as on_cifar
from benchmarks import omniglot_best as long_runs
from benchmarks.measure import ROOT
from benchmarks.omniglot import ABLATIONS, METHODS, TASKS, as_table, differences, summary
from benchmarks.stream import lines
from selftaught.artifacts.files import read_json

RESULTS = ROOT / "benchmarks/results"
SIZES = (20, 100, 500, 2720, 0)
SHORT = {"plain loop, one backward at the end": "plain loop", "SimCLR, as many views": "SimCLR"}
PEERS = {
    "learn2learn": "learn2learn 0.2.0",
    "higher": "higher 0.2.1",
    "torchopt": "torchopt 0.7.3",
    "parallel-metalearn": "parallel-metalearn 0.5.6",
    "selftaught": '**selftaught** (`graph="auto"`)',
    "fused-remat, threads": "selftaught, `fused-remat`",
    "adjoint, threads": "selftaught, `adjoint` (any network)",
}
"""What stands in the table for the name of a program; further programs of the file are left out."""
PIPELINES = {
    "selftaught augment": "selftaught",
    "selftaught augment, exact colour": "selftaught, exact colour",
    "kornia AugmentationSequential": "kornia 0.9",
    "torchvision v2, tensors": "torchvision v2 on tensors",
    "lightly, in process": "lightly 1.6, in process",
    "lightly, DataLoader, 2 workers": "lightly, DataLoader with 2 workers (by the clock)",
}


@cache
def stored(name: str) -> Mapping[str, Any]:
    """A file of `benchmarks/results/`; raises RunError when it is missing or broken."""
    return read_json(Path(RESULTS) / f"{name}.json")


def row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join([row(head), "|" + "---|" * len(head), *map(row, rows)])


def omniglot(name: str) -> str:
    """Accuracies of every method, size and baseline of a file."""
    kept = stored(name)
    return as_table(kept["runs"], _names(kept), SIZES, kept["baselines"])


def pairs(name: str) -> str:
    """The first method minus each other one, as an indented block."""
    kept = stored(name)
    return "\n".join(f"    {line}" for line in differences(kept["runs"], _names(kept)))


def omniglot_best(name: str) -> str:
    """Every way of measuring the runs of `benchmarks.omniglot_best`, and its baselines."""
    kept = stored(name)
    return "\n".join(long_runs.as_table(kept["runs"], kept["baselines"]))


def reached(name: str, method: str, column: str) -> str:
    """Means over seeds of the four tasks in one column of such a file."""
    rows = [r[column] for r in stored(name)["runs"].values() if r["name"] == method]
    return " / ".join(f"{summary([r[f'{w}w{k}s'][0] for r in rows])[0]:.1f}" for w, k in TASKS)


def neighbours_right(name: str, method: str) -> str:
    """Percent of the neighbours of a picture that are of its class, at each search, mean over seeds."""
    found = [[n["right"] for n in r["neighbours"]] for r in stored(name)["runs"].values() if r["name"] == method]
    return " and ".join(f"{100 * summary(rights)[0]:.0f}" for rights in zip(*found, strict=True))


def ahead(name: str, a: str, b: str, column: str) -> str:
    """Points of `a` minus `b` at 1 shot in 5 and 20 ways, paired by size and seed, with the 95 % t-interval."""
    runs = stored(name)["runs"].values()
    own = {(r["size"], r["seed"]): r[column] for r in runs if r["name"] == a}
    pairs = [(own[r["size"], r["seed"]], r[column]) for r in runs if r["name"] == b]
    gaps = [summary([x[f"{w}w1s"][0] - y[f"{w}w1s"][0] for x, y in pairs]) for w in (5, 20)]
    return " / ".join(f"{mean:+.1f} ± {half:.1f}" for mean, half in gaps)


def cifar(name: str) -> str:
    """Probes of every method of a file, then BMSSL minus each other one as an indented block."""
    runs = stored(name)["runs"]
    gaps = [f"    {line}" for line in on_cifar.differences(runs, "bmssl")]
    return "\n".join([*on_cifar.as_table(runs), "", *gaps])


def costs(name: str) -> str:
    """Processor seconds a step of each method, as measured in alternation."""
    found: Mapping[str, float] = stored(name)["seconds_per_step"]
    return ", ".join(f"{k} {v:.3f}" for k, v in found.items())


def cost_ratio(name: str, above: str, below: str) -> str:
    """How much dearer a step of one method is."""
    found = stored(name)["seconds_per_step"]
    return f"{found[above] / found[below]:.2f}"


def lead(name: str, a: str, b: str, task: str = "5w1s") -> str:
    """Points by which method `a` is ahead of `b`, mean over pairs of equal size and seed; behind is negative."""
    runs = stored(name)["runs"].values()
    own = {(r["size"], r["seed"]): r[task][0] for r in runs if r["name"] == a}
    gaps = [own[r["size"], r["seed"]] - r[task][0] for r in runs if r["name"] == b]
    return f"{sum(gaps) / len(gaps):.1f}"


def _names(kept: Mapping[str, Any]) -> tuple[str, ...]:
    """In the order of the benchmark's own table."""
    there = {r["name"] for r in kept["runs"].values()}
    known = [*METHODS, *(n for n in ABLATIONS if n not in METHODS)]
    return tuple(n for n in known if n in there)


def meta_steps() -> str:
    """Time and memory against inner steps, as ratios to each group's baseline."""
    groups = stored("meta_step")["groups"]
    titles, cells = [], {}
    for group, label in zip(groups, ("MAML", "BMSSL"), strict=True):
        for r in group["rows"]:
            if r["variant"] == group["baseline"]:
                continue
            title = f"{label} {r['variant']}"
            if title not in titles:
                titles.append(title)
            cells[r["steps"], title] = f"{r['cpu_ratio']:.2f} / {r['peak_ratio']:.2f}"
    head = [f"{t}, time / memory" if n == 0 else t for n, t in enumerate(titles)]
    steps = sorted({k for k, _ in cells})
    return grid(["K", *head], [[str(k), *(cells[k, t] for t in titles)] for k in steps])


def libraries() -> str:
    """Second-order MAML against every library."""
    found = stored("maml_28px")["contests"][0]
    rows = [[PEERS[r["variant"]], *_against(r)] for r in _in_order(found["rows"], PEERS)]
    shape = found["shape"]
    name = (
        f"second-order MAML, {shape['size']}x{shape['size']}, {shape['shots']} shot, T = {shape['tasks']}, "
        f"K = {found['steps']}, {_threads(found['threads'])}"
    )
    return grid([name, "seconds", "ratio", "of peak", "memory", "error"], rows)


def _against(r: Mapping[str, Any]) -> list[str]:
    baseline = r["wall_ratio_interval"] == [1.0, 1.0]
    ratio = "1" if baseline else f"{r['wall_ratio']:.2f} {_span(r['wall_ratio_interval'])}"
    memory = f"{r['peak_mib']:.0f} MiB" if baseline else f"{r['peak_ratio']:.2f}"
    error = r["relative_error"]
    return [
        f"{r['wall_s']:.2f}",
        ratio,
        f"{100 * r['of_convolution_peak']:.0f} %",
        memory,
        f"{error:.0e}" if error else "0",
    ]


def contests() -> str:
    """Other sizes and algorithms against one library."""
    rows = []
    for file, variant, note in (
        ("maml_84px", "selftaught", ""),
        ("maml_84px_5shot", "selftaught", ""),
        ("anil", "selftaught", ""),
        ("maml_memory_steps", "fused-remat, loop", ", `fused-remat`"),
        ("maml_memory_steps", "fused, loop", ", `fused`"),
        ("maml_generic", "adjoint, threads", ", by autograd (`adjoint`)"),
    ):
        for found in stored(file)["contests"]:
            by = {r["variant"]: r for r in found["rows"]}
            rows.append([_work(found) + note, *_duel(by["learn2learn"], by[variant])])
    return grid(["work", "learn2learn", "selftaught", "ratio of time", "ratio of memory"], rows)


def growth() -> str:
    """Time and peak memory of a meta-step with many tasks over those with few."""
    (curve,) = stored("maml_tasks")["curves"]
    names = {"learn2learn": PEERS["learn2learn"], "selftaught": PEERS["selftaught"]}
    names["fused-remat, threads"] = PEERS["fused-remat, threads"]
    rows = [
        [names[k], f"{v['wall_s']:.1f}", f"{v['peak_mib']:.2f}"] for k, v in curve["growth"].items() if k in names
    ]
    few, many = curve["values"]
    return grid([f"T = {many} over T = {few}", "time", "peak memory"], rows)


def first_steps() -> str:
    """Processor seconds from the start of Python, medians over processes."""
    rows = stored("first_step")["rows"]
    return grid(
        ["method", *rows[0]["cpu"]], [[r["method"], *(f"{v:.2f}" for v in r["cpu"].values())] for r in rows]
    )


def prefetched() -> str:
    """Training with batches drawn beside the steps against without, by the clock."""
    rows = stored("prefetch")["rows"]
    cells = (
        [r["variant"], f"{r['wall_s']:.2f}", f"{r['wall_ratio']:.2f} {_span(r['wall_ratio_interval'])}"]
        for r in rows
    )
    return grid(["batches ahead", "seconds", "ratio"], list(cells))


def _work(found: Mapping[str, Any]) -> str:
    s = found["shape"]
    size = f"{s['size']}x{s['size']}" + ("" if s["channels"] == 1 else f"x{s['channels']}")
    shots = "" if s["shots"] == 1 else f", {s['shots']} shots"
    name = str(found["algorithm"]).upper()
    return f"{name}, {size}{shots}, T = {s['tasks']}, K = {found['steps']}, {_threads(found['threads'])}"


def _duel(peer: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    cost = [f"{r['wall_s']:.2f} s, {r['peak_mib']:.0f} MiB" for r in (peer, own)]
    return [*cost, f"{own['wall_ratio']:.2f} {_span(own['wall_ratio_interval'])}", f"{own['peak_ratio']:.2f}"]


def episodes() -> str:
    """ProtoNet's step, evaluation from embeddings and implicit MAML, by processor time."""
    step, plain, cosine = (
        {r["variant"]: r for r in group["rows"]} for group in stored("episodes")["groups"]
    )  # as the benchmark lists them
    s, ours = step["selftaught"], stored("implicit")["rows"][-1]
    loop = stored("implicit")["rows"][0]
    rows = [
        [
            "ProtoNet step, T = 8, 5-way 1-shot 15 queries",
            f"easyfsl 1.5.0: {_cost(step['easyfsl'])}",
            _cost(s),
            _ratio(s),
        ]
    ]
    for name, group in (("2,000 episodes from embeddings, squared distance", plain), ("the same, cosine", cosine)):
        own = group["selftaught"]
        rows.append([name, f"easyfsl: {group['easyfsl']['cpu_s']:.2f} s", f"{own['cpu_s']:.2f} s", _ratio(own)])
    for head in ("ridge", "logistic"):
        note = " (scikit-learn, one at a time)" if head == "logistic" else ""
        rows.append([f"the same, {head}{note}", "-", f"{cosine[f'selftaught, {head}']['cpu_s']:.2f} s", "-"])
    rows.append(
        [
            "implicit MAML, T = 4, 16 steps, 5 products, one thread",
            f"hand-written loop: {_cost(loop)}",
            _cost(ours),
            _ratio(ours),
        ]
    )
    return grid(["work", "peer", "selftaught", "ratio of processor time"], rows)


def pipelines() -> str:
    """Views a second, and time as a ratio to ours with its range."""
    rows = []
    for r in _in_order(stored("pipeline")["rows"], PIPELINES):
        kind = "cpu" if "cpu_s" in r else "wall"
        low, high = r[f"{kind}_ratio_range"]
        ratio = "1" if low == high == 1 else f"{r[f'{kind}_ratio']:.3g} ({low:.3g} to {high:.3g})"
        rows.append([PIPELINES[r["variant"]], f"{r[f'{kind}_views_per_s']:,}", ratio])
    return grid(["pipeline", "views a second", "time, ours = 1 (range)"], rows)


def demonstration() -> str:
    """Accuracies of the demonstration with their intervals over episodes."""
    rows = stored("demo")["rows"]
    names = list(dict.fromkeys(r["name"] for r in rows))
    tasks = list(dict.fromkeys((r["ways"], r["shots"]) for r in rows))
    by = {(r["name"], (r["ways"], r["shots"])): f"{r['mean']:.1f} ± {r['half_width']:.1f}" for r in rows}
    shown = {"SimCLR": "SimCLR, as many views"}
    return grid(
        ["features", *(f"{w}-way {k}-shot" for w, k in tasks)],
        [[shown.get(n, n), *(by[n, t] for t in tasks)] for n in names],
    )


def demonstration_time() -> str:
    """How long the demonstration took, and among how many others."""
    kept = stored("demo")
    m, s = kept["machine"], kept["seconds"]
    if m["busy"] > m["cores"]:
        return f"The seconds of this run say nothing: {m['busy']:.0f} programs wanted its {m['cores']} cores"
    return (
        f"{s['everything']:.0f} seconds by the clock, {s['training']:.0f} of them training both methods, on "
        f"{m['cores']} cores"
    )


def streams() -> str:
    """Own memory of training from mapped sets of different size."""
    return "\n".join(lines(stored("stream")["rows"]))


def streamed_shards() -> str:
    """Own memory while WebDataset shards are decoded and trained from, and how fast that went."""
    return "\n".join(lines(stored("stream")["shards"]["rows"]))


def compiled() -> str:
    """Steps under bfloat16 and under torch.compile against the same as they are."""
    head = ["encoder", "bfloat16", "torch.compile", "its first step, processor s"]
    return grid(head, [[net, *_compiled(found)] for net, found in stored("compile")["nets"].items()])


def _compiled(found: Mapping[str, Any]) -> list[str]:
    """Ratios with their range over the rounds, and a dash for what was not measured."""
    ratios = [
        f"{r['cpu_ratio']:.2f} ({r['cpu_ratio_range'][0]:.2f} to {r['cpu_ratio_range'][1]:.2f})" if r else "-"
        for r in (found["bfloat16"], found.get("torch.compile"))
    ]
    first = found.get("first compiled step, s")
    return [*ratios, "-" if first is None else f"{first:.0f}"]


def claims() -> str:
    """The verdict of every stored claim."""
    found = [read_json(f) for f in sorted(Path(RESULTS).glob("claim_*.json"))]
    return grid(
        ["claim", "paper", "verdict"],
        [
            [f"[{c['name']}](claims/{c['name']}.md)", c["paper"], str(c["verdict"]).replace("|", "\\|")]
            for c in found
        ],
    )


def command(name: str) -> str:
    """The command line kept in a file, with the file it writes."""
    kept = str(stored(name)["command"])
    usual = name in ("episodes", "implicit", "meta_step", "pipeline", "ssl_step")
    return kept if usual or "--out" in kept else f"{kept} --out benchmarks/results/{name}.json"


def _in_order(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[Mapping[str, Any]]:
    by = {r["variant"]: r for r in rows}
    return [by[n] for n in names]


def _cost(r: Mapping[str, Any]) -> str:
    return f"{r['cpu_s']:.2f} s, {r['peak_mib']:.0f} MiB"


def _ratio(r: Mapping[str, Any]) -> str:
    low, high = r["cpu_ratio_interval"]
    return f"{r['cpu_ratio']:.2f} {_span((low, high))}"


def _span(ends: Sequence[float]) -> str:
    return f"[{ends[0]:.2f}, {ends[1]:.2f}]"


def _threads(count: int) -> str:
    return {1: "one thread", 2: "two threads"}.get(count, f"{count} threads")
