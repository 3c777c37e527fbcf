"""Few-shot accuracy on Omniglot characters never trained on, against the number of unlabelled pictures.

Protocol. Training pictures: characters of the first 25 background alphabets (alphabetical order), without
labels, at 28x28, ink = 1; sizes 20, 100 and 500 are nested random subsets of the 2,720 pictures of the five
"small 1" alphabets, "all" is everything. Reported classes: the 151 characters of the last five background
alphabets. Conv4-64, batch normalisation, inductive (running statistics); nearest prototype by cosine on the
encoder's output; last checkpoint; 600 episodes of 15 queries a class, the same list for every run.
Hyper-parameters were chosen on alphabets 21-25, training on 1-20 (`--split tuning`); see `docs/results.md`.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from selftaught.artifacts.files import read_json, write_json
from selftaught.claims.outcome import estimate
from selftaught.core.functional import in_batches, part
from selftaught.core.train import outer_step, start, train
from selftaught.core.types import Method, merged
from selftaught.data.omniglot import read_omniglot
from selftaught.data.pictures import Pictures
from selftaught.data.splits import read_split
from selftaught.data.views import GLYPH
from selftaught.evaluate.baselines import raw_pixels, untrained_features
from selftaught.evaluate.fewshot import few_shot
from selftaught.methods import BMSSL, UMTRA, ProtoCLR, SimCLR
from selftaught.nets import build_encoder
from selftaught.optimizers.gradient import Gradient
from selftaught.tasks.episodes import EpisodePlan

Split = Literal["report", "tuning"]
SPLITS = {
    "report": ("omniglot_train_first25", "omniglot_validation_last5"),
    "tuning": ("omniglot_tuning_train20", "omniglot_tuning_5"),
}
TASKS = ((5, 1), (5, 5), (20, 1), (20, 5))

METHODS: dict[str, Method] = {
    "bmssl": BMSSL(ways=16),
    "simclr": SimCLR(batch=32, temperature=0.1),
    "protoclr": ProtoCLR(ways=16),
    "umtra": UMTRA(inner_rate=0.4),
}
"""Each with the settings chosen on the tuning alphabets at this budget; `RATES` are the outer rates."""

RATES = {"bmssl": 1e-3, "simclr": 1e-3, "protoclr": 3e-3, "umtra": 1e-3}

ABLATIONS: dict[str, Method] = {
    "bmssl": BMSSL(ways=16),
    "neither level 1 nor target (K=0, L=0)": BMSSL(ways=16, inner_steps=0, bootstrap_steps=0),
    "no target (L=0)": BMSSL(ways=16, bootstrap_steps=0),
    "no level 1 (K=0)": BMSSL(ways=16, inner_steps=0),
    "K=3": BMSSL(ways=16, inner_steps=3),
    "L=1": BMSSL(ways=16, bootstrap_steps=1),
    "target weight 1": BMSSL(ways=16, bootstrap=1.0),
    "KL(current || target)": BMSSL(ways=16, matching="kl-reverse"),
    "no contrastive term": BMSSL(ways=16, contrastive=0.0, bootstrap=1.0),
    "InfoNCE to prototypes": BMSSL(ways=16, outer="info-nce"),
    "temperature 0.2": BMSSL(ways=16, temperature=0.2),
    "2 + 1 views": BMSSL(ways=16, query_views=1),
    "32 ways": BMSSL(ways=32),
    "adapt last": BMSSL(ways=16, adapt="last"),
    "adapt all": BMSSL(ways=16, adapt="all"),
}
"""One change each; `--norm group` is another."""


@dataclass(frozen=True)
class Omniglot:
    """Train and measure; results already in --out are kept, so a stopped table goes on.

    `views` is the number of views each run feeds its encoder; with `seconds` > 0 every method instead trains
    for as many steps as fit into that time on one quiet core, by a calibration measured at the start of the
    table and stored with it.
    """

    data: Path
    """The zip or folder of the background set."""
    out: Path = Path("benchmarks/results/omniglot_views.json")
    which: Literal["methods", "ablations"] = "methods"
    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (20, 100, 500, 2720, 0)
    """Numbers of unlabelled pictures; 0 stands for all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    views: int = 12_800
    seconds: float = 0.0
    split: Split = "report"
    threads: int = 1
    norm: Literal["batch", "group"] = "batch"

    def run(self) -> None:
        """Train what is missing, then print the table."""
        torch.set_num_threads(self.threads)
        table = METHODS if self.which == "methods" else ABLATIONS
        chosen = {n: table[n] for n in self.names or tuple(table)}
        train_set, held_out = load(self.data, self.split)
        cost = self._costs(chosen, train_set) if self.seconds else {}
        self._baselines(train_set, held_out)
        for seed in self.seeds:
            for size in self.sizes:
                for name, method in chosen.items():
                    key = f"{name}|{size}|{seed}"
                    if key in self._kept():
                        continue
                    row = self._one(name, method, subset(train_set, size), held_out, seed, cost.get(name))
                    self._keep(key, row | {"name": name, "size": size, "seed": seed})
                    print(key, row, flush=True)
        print(as_table(self._kept(), tuple(chosen), self.sizes, self._kept("baselines")))
        print("\n".join(differences(self._kept(), tuple(chosen))))

    def _one(
        self, name: str, method: Method, pictures: Pictures, held_out: Pictures, seed: int, cost: float | None
    ) -> dict[str, Any]:
        per_step = views_per_step(method, len(pictures))
        steps = int(self.seconds / cost) if cost else max(1, round(self.views / per_step))
        began = time.process_time()
        encoder, weights = fit(method, pictures, steps, RATES.get(name, RATES["bmssl"]), seed, self.norm)
        spent = time.process_time() - began
        z = in_batches(encoder, weights, held_out.x)
        return {**measure(z, held_out), "steps": steps, "views": steps * per_step, "cpu_seconds": round(spent, 1)}

    def _costs(self, methods: dict[str, Method], pictures: Pictures) -> dict[str, float]:
        kept = self._kept("seconds_per_step")
        missing = {k: m for k, m in methods.items() if k not in kept}
        for name, value in seconds_per_step(missing, pictures).items():
            self._keep(name, value, "seconds_per_step")
        return self._kept("seconds_per_step")

    def _baselines(self, train_set: Pictures, held_out: Pictures) -> None:
        if "raw pixels" not in self._kept("baselines"):
            self._keep("raw pixels", measure(raw_pixels(held_out.x), held_out), "baselines")
            got = untrained_features(lambda: build_encoder("conv4", 1, 28, 0), train_set.x[:2048], held_out.x)
            self._keep("untrained encoder", measure(got.features, held_out), "baselines")

    def _kept(self, section: str = "runs") -> dict[str, Any]:
        return read_json(self.out).get(section, {}) if self.out.is_file() else {}

    def _keep(self, key: str, value: Any, section: str = "runs") -> None:
        content = read_json(self.out) if self.out.is_file() else {"protocol": protocol(self)}
        content.setdefault(section, {})[key] = value
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.out, content)


def protocol(asked: Omniglot) -> dict[str, Any]:
    """What must be known to compare the figures."""
    return {
        "split": SPLITS[asked.split], "views": asked.views, "seconds": asked.seconds, "encoder": "conv4-64 28x28",
        "norm": f"{asked.norm}, running statistics (inductive)", "head": "nearest prototype, cosine",
        "episodes": 600, "queries": 15, "torch": torch.__version__, "threads": asked.threads,
    }  # fmt: skip


def load(data: Path, split: Split) -> tuple[Pictures, Pictures]:
    """Training and held-out pictures, classes disjoint."""
    both = [read_omniglot(data, size=28, classes=read_split(name)) for name in SPLITS[split]]
    return both[0], both[1]


def subset(pictures: Pictures, size: int) -> Pictures:
    """Nested random subsets of the small-1 alphabets up to 2,720 pictures; 0 is the whole set."""
    if size == 0:
        return pictures
    small = pictures.only(set(read_split("omniglot_background_small1")))
    order = torch.randperm(len(small), generator=torch.Generator().manual_seed(10))
    return small.take(order[:size])


def fit(
    method: Method, pictures: Pictures, steps: int, rate: float, seed: int, norm: str = "batch"
) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """An encoder and its weights after `steps` outer steps of Adam with a cosine schedule."""
    net = network(method, seed, norm)
    optimizer = Gradient(rate, steps)
    state = start(method, net, optimizer, seed)
    for state, _ in train(method, net, method.source(pictures, GLYPH), optimizer, state, steps):  # noqa: B007, B020
        pass
    return net.get_submodule("encoder"), part(merged(state.params, state.slow), "encoder")


def network(method: Method, seed: int, norm: str = "batch") -> torch.nn.Module:
    """Conv4-64 for 28x28 ink, with the method's heads, all from `seed`."""
    encoder = build_encoder("conv4", 1, 28, 1000 + seed, norm=norm)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2000 + seed)
        return method.network(encoder)


def views_per_step(method: Method, pictures: int) -> int:
    """Encoder inputs of one outer step: tasks x ways x (support + query views)."""
    field_of: Any = method
    if isinstance(method, SimCLR):
        return min(method.batch, pictures) * method.views
    ways = min(field_of.ways, pictures)
    if isinstance(method, BMSSL):
        return method.tasks * ways * (method.support_views + method.query_views)
    return field_of.tasks * ways * (1 + field_of.queries)


def seconds_per_step(methods: dict[str, Method], pictures: Pictures, rounds: int = 7) -> dict[str, float]:
    """Median CPU seconds of one outer step, methods in alternation so that a busy machine hits all alike."""
    nets = {name: network(method, 0) for name, method in methods.items()}
    states = {name: start(method, nets[name], Gradient(), 0) for name, method in methods.items()}
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds + 2):
        for name, method in methods.items():
            source, state = method.source(pictures, GLYPH), states[name]
            began = time.process_time()
            tasks = source(state.generator)
            states[name], _aux = outer_step(method, nets[name], Gradient(), state, tasks)
            times[name].append(time.process_time() - began)
    return {name: sorted(spent[2:])[rounds // 2] for name, spent in times.items()}


def measure(z: torch.Tensor, held_out: Pictures) -> dict[str, Any]:
    """Percent and 95 % half width over episodes for each task."""
    assert held_out.y is not None
    out = {}
    for ways, shots in TASKS:
        got = few_shot(z, held_out.y, EpisodePlan(ways, shots, 15, 600, 0))
        out[f"{ways}w{shots}s"] = [round(got.mean, 2), round(got.half_width_95, 2)]
    return out


def summary(values: Sequence[float]) -> tuple[float, float]:
    """Mean and the half width of the 95 % t-interval over training seeds."""
    found = estimate(values)
    return found.mean, found.half_width


def differences(runs: dict[str, Any], names: Sequence[str]) -> list[str]:
    """The first method minus each other one, run by run of equal pictures and seed, with the 95 % t-interval."""
    lines = []
    own = {(r["size"], r["seed"]): r for r in runs.values() if r["name"] == names[0]}
    for other in names[1:]:
        pairs = [
            (own[r["size"], r["seed"]], r)
            for r in runs.values()
            if r["name"] == other and (r["size"], r["seed"]) in own
        ]
        if len(pairs) < 2:
            continue
        found = []
        for ways, shots in ((5, 1), (20, 1)):
            mean, half = summary([a[f"{ways}w{shots}s"][0] - b[f"{ways}w{shots}s"][0] for a, b in pairs])
            found.append(f"{ways}-way {shots}-shot {mean:+.1f} ± {half:.1f}")
        lines.append(f"{names[0]} minus {other}: {', '.join(found)} ({len(pairs)} pairs)")
    return lines


def as_table(runs: dict[str, Any], names: Sequence[str], sizes: Sequence[int], baselines: dict[str, Any]) -> str:
    """Markdown: one row per size and method, mean over seeds and its 95 % t-interval; then the baselines, whose
    interval is over episodes."""
    head = (
        "| pictures | method | " + " | ".join(f"{w}-way {k}-shot" for w, k in TASKS) + " | steps | CPU s | seeds |"
    )
    lines = [head, "|---" * (len(TASKS) + 5) + "|"]
    for size in sizes:
        for name in names:
            rows = [r for r in runs.values() if r["name"] == name and r["size"] == size]
            if not rows:
                continue
            cells = [summary([r[f"{w}w{k}s"][0] for r in rows]) for w, k in TASKS]
            figures = " | ".join(f"{m:.1f}" + (f" ± {h:.1f}" if math.isfinite(h) else "") for m, h in cells)
            cpu = sum(r["cpu_seconds"] for r in rows) / len(rows)
            shown = name.replace("|", "\\|")  # a bar would end the cell
            lines.append(
                f"| {size or 'all'} | {shown} | {figures} | {rows[0]['steps']} | {cpu:.0f} | {len(rows)} |"
            )
    for name, row in baselines.items():
        figures = " | ".join("{:.1f} ± {:.1f}".format(*row[f"{w}w{k}s"]) for w, k in TASKS)
        lines.append(f"| none | {name} | {figures} | - | - | - |")
    return "\n".join(lines)
