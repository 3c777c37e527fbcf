"""Do corrected meta-updates need fewer rounds, and fewer models on the wire, until the personal models are good?

Paper: Acar, Zhao, Zhu, Matas, Mattina, Whatmough, Saligrama, "Debiasing Model Updates for Improving Personalized
Federated Training", ICML 2021, on CIFAR-10, CIFAR-100 and miniImageNet with 100 devices; its tables were not read.

    FedAvg + fine-tuning, Per-FedAvg (MAML without correction), PFLDyn, PFLScaf on ALID: own labels on every device
    the same under ACID (common labels) and with class means (Proto), where there is less or nothing to correct
    quadratic clients, where the bias of plain averaging can be read off (`claims.pfl_quadratics`)

The paper's: the partitions, the rules, models transmitted as the axis, curves smoothed with weight 0.8 (its
authors' code). Our choice: scikit-learn's digits on 20 devices, network and sizes, rates chosen for each row among
as many on other seeds (which share out the pictures in other ways). All seeds of a row train side by side.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits
from torch import Tensor

from selftaught.claims.outcome import Estimate, Line, Outcome, estimate
from selftaught.claims.pfl_quadratics import left_over
from selftaught.federated import (
    ClientData,
    Correction,
    Dyn,
    Federation,
    FineTuneModel,
    LocalSteps,
    MAMLModel,
    MetaModel,
    NoCorrection,
    ProtoModel,
    Scaf,
    acid,
    alid,
    mean_accuracy,
    mlp_classifier,
    personal_accuracies,
    rounds_together,
)

PLAIN, PER, DYN, SCAF = "FedAvg + fine-tuning", "Per-FedAvg", "PFLDyn", "PFLScaf"
_SMOOTHING = 0.8


@dataclass(frozen=True)
class Setting:
    """`devices` of `classes_each` classes, a `fraction` active, K = `steps`; rounds to accuracy `target`."""

    devices: int = 20
    classes_each: int = 4
    fraction: float = 0.2
    steps: int = 20
    target: float = 0.8
    rounds: int = 80
    tuning_rounds: int = 50
    easy_target: float = 0.9
    easy_rounds: int = 40
    quadratic_rounds: int = 60
    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    tuning_seeds: tuple[int, ...] = (100, 101)


@dataclass(frozen=True)
class Choice:
    """One setting of one row: what is trained, and `personal` (steps, rate) at the end (None: class means)."""

    correction: Correction
    rate: float
    personal: tuple[int, float] | None

    def __str__(self) -> str:
        words = [f"rate {self.rate:g}"]
        if isinstance(self.correction, Dyn):
            words.append(f"alpha {self.correction.alpha:g}")
        if self.personal:
            words.append(f"{self.personal[0]} x {self.personal[1]:g}")
        return ", ".join(words)


Training = tuple[Correction, float]
_RATES = (0.05, 0.1, 0.2, 0.4)
TRIED: Mapping[str, Sequence[Training]] = {
    PLAIN: [(NoCorrection(), r) for r in _RATES],
    PER: [(NoCorrection(), r) for r in _RATES],
    DYN: [(Dyn(a), r) for a in (0.03, 0.1) for r in (0.1, 0.2)],
    SCAF: [(Scaf(), r) for r in _RATES],
}
"""Four trainings a row. Each is looked at with every entry of `PERSONAL`, which costs no training."""
PERSONAL = ((1, 0.1), (5, 0.1), (1, 0.5), (5, 0.5))
_INNER = 0.1


def digits() -> tuple[Tensor, Tensor]:
    """x [1797 64] in 0..1, y [1797]."""
    found = load_digits()
    return torch.tensor(found.data, dtype=torch.float32) / 16, torch.tensor(found.target)


Partition = Callable[[Tensor, Tensor, int, int, int], dict[str, ClientData]]


def objective(row: str, classes: int) -> MetaModel:
    """40 pictures a local step in every row."""
    return FineTuneModel(classes, 40) if row == PLAIN else MAMLModel(classes, 20, 20, _INNER, 1)


def federations(
    s: Setting, partition: Partition, model: MetaModel, classes: int, training: Training, seeds: Sequence[int]
) -> list[Federation]:
    """One for each seed, with its own partition, start and order of clients."""
    x, y = digits()
    local = LocalSteps(s.steps, training[1])
    made = []
    for seed in seeds:
        net = mlp_classifier(64, 64, 32, classes, seed)
        clients = partition(x, y, s.devices, s.classes_each, seed)
        made.append(Federation(net, clients, model, training[0], local, s.fraction, seed))
    return made


def curves(runs: Sequence[Federation], models: Sequence[MetaModel], rounds: int, until: float) -> Tensor:
    """Mean personal accuracy [models seeds rounds], smoothed; stops early where all have reached `until`."""
    states = [f.start() for f in runs]
    found: list[Tensor] = []
    for _ in range(rounds):
        states = [state for state, _ in rounds_together(runs, states)]
        now = torch.tensor(
            [
                [
                    mean_accuracy(personal_accuracies(f.net, m, t.server.average, f.clients))
                    for f, t in zip(runs, states, strict=True)
                ]
                for m in models
            ]
        )
        found.append(now if not found else _SMOOTHING * found[-1] + (1 - _SMOOTHING) * now)
        if bool((found[-1] >= until).all()):
            break
    return torch.stack(found, -1)


def rounds_to(curve: Tensor, target: float, limit: int) -> list[float]:
    """For each seed of [seeds rounds] the first round at `target`, or `limit` where it is never reached."""
    reached = curve >= target
    return [float(r.float().argmax() + 1) if bool(r.any()) else float(limit) for r in reached]


def personal(model: MetaModel, option: tuple[int, float] | None) -> MetaModel:
    """`model` as it is made personal under `option`; its training stays."""
    if option is None or isinstance(model, ProtoModel):
        return model
    classes = model.classes if isinstance(model, FineTuneModel | MAMLModel) else 0
    return FineTuneModel(classes, rate=option[1], steps=option[0])


def tuned(s: Setting, row: str) -> Choice:
    """The choice with the highest last accuracy on the tuning seeds; at a tie the fewest rounds to the target.

    A first run, on seeds 0-4, chose by rounds: that prefers steps at the end that need no training before them.
    """
    model = objective(row, s.classes_each)
    best: tuple[tuple[float, float], Choice] | None = None
    for training in track(TRIED[row], f"choosing for {row}", console=Console(stderr=True), transient=True):
        runs = federations(s, alid, model, s.classes_each, training, s.tuning_seeds)
        asked = [personal(model, option) for option in PERSONAL]
        found = curves(runs, asked, s.tuning_rounds, until=2.0)
        for option, curve in zip(PERSONAL, found, strict=True):
            needed = rounds_to(curve, s.target, s.tuning_rounds + 1)
            score = (-float(curve[:, -1].mean()), sum(needed))
            if best is None or score < best[0]:
                best = (score, Choice(*training, option))
    assert best is not None
    return best[1]


@dataclass(frozen=True)
class Found:
    """One row on the reported seeds: smoothed curves [seeds rounds], rounds to the target, models per round."""

    choice: Choice
    curve: Tensor
    target: float
    rounds: list[float]
    reached: int
    models_a_round: int

    @property
    def models(self) -> list[float]:
        return [r * self.models_a_round for r in self.rounds]

    @property
    def last(self) -> list[float]:
        return self.curve[:, -1].tolist()


def measured(s: Setting, partition: Partition, model: MetaModel, classes: int, choice: Choice) -> Found:
    """All reported seeds; on the easy cases (ACID, Proto) fewer rounds to a higher accuracy."""
    easy = partition is acid or isinstance(model, ProtoModel)
    rounds, target = (s.easy_rounds, s.easy_target) if easy else (s.rounds, s.target)
    runs = federations(s, partition, model, classes, (choice.correction, choice.rate), s.seeds)
    (curve,) = curves(runs, [personal(model, choice.personal)], rounds, until=2.0)
    active = round(s.devices * s.fraction)
    reached = int((curve >= target).any(1).sum())
    models = active * (choice.correction.models_down + 1)
    return Found(choice, curve, target, rounds_to(curve, target, rounds), reached, models)


def table(case: str, found: Mapping[str, Found]) -> list[Mapping[str, Estimate | str]]:
    """A row for each; where a seed never arrives, its rounds are counted as all of them, and the row says so."""
    rows: list[Mapping[str, Estimate | str]] = []
    for name, f in found.items():
        never = len(f.rounds) - f.reached
        note = f" ({never} of {len(f.rounds)} seeds never)"
        rows.append(
            {
                "case": f"{case}, to {f.target:g}",
                "rule": name,
                "chosen": str(f.choice),
                "rounds": f"at least {estimate(f.rounds)}{note}" if never else estimate(f.rounds),
                "models sent": f"at least {estimate(f.models)}" if never else estimate(f.models),
                "last accuracy": estimate(f.last),
            }
        )
    return rows


def saved(one: Sequence[float], other: Sequence[float]) -> Estimate:
    """Paired over seeds: how much less `one` needs than `other`, as a share of the latter."""
    return estimate([1 - a / b for a, b in zip(one, other, strict=True)])


def clear(difference: Estimate) -> bool:
    """Whether all of the interval lies above zero (never for a single seed)."""
    return difference.mean - difference.half_width > 0


def verdict(found: Mapping[str, Found]) -> str:
    """Shown where both corrections save rounds, and PFLDyn models too, against both baselines."""
    baselines = (PER, PLAIN)
    rounds = {(c, b): saved(found[c].rounds, found[b].rounds) for c in (DYN, SCAF) for b in baselines}
    models = {b: saved(found[DYN].models, found[b].models) for b in baselines}
    word = "Shown" if all(map(clear, (*rounds.values(), *models.values()))) else "Not shown"
    against = ", ".join(f"{c} {d} against {b}" for (c, b), d in rounds.items())
    return f"{word}: share of rounds saved: {against}; PFLDyn saves the same share of the models sent."


def losing(found: Mapping[str, Found], easy: Mapping[str, Mapping[str, Found]]) -> str:
    """What Scaf's second model costs, and what corrections do where averaging is not biased much."""
    wire = saved(found[SCAF].models, found[PER].models)
    twice = saved([4 / 3 * m for m in found[SCAF].models], found[PER].models)
    parts = [
        f"PFLScaf receives two models and sends one: it saves {wire} of the models of Per-FedAvg, and {twice} "
        "where it is charged twice of everything, as in the paper's plots."
    ]
    for case, each in easy.items():
        dyn = saved(each[DYN].rounds, each[PER].rounds if PER in each else each["Proto"].rounds)
        word = "saves" if clear(dyn) else "does not clearly save"
        parts.append(f"{case}: PFLDyn {word} rounds ({dyn}).")
    return " ".join(parts)


def easy_cases(s: Setting, chosen: Mapping[str, Choice]) -> dict[str, dict[str, Found]]:
    """ACID with the same choices, and Proto on ALID with the corrections of those choices."""
    common = {row: measured(s, acid, objective(row, 10), 10, choice) for row, choice in chosen.items()}
    rules = {"Proto": chosen[PER], DYN: chosen[DYN], SCAF: chosen[SCAF]}
    model = ProtoModel(s.classes_each, 20, 20)
    means = {
        name: measured(s, alid, model, s.classes_each, replace(choice, personal=None))
        for name, choice in rules.items()
    }
    return {"ACID": common, "ALID, class means": means}


def quadratics(s: Setting) -> list[Mapping[str, Estimate | str]]:
    """|sum of meta-gradients| where the rounds come to rest, all clients active and two of five."""
    rules: Mapping[str, Correction] = {PER: NoCorrection(), DYN: Dyn(1.0), SCAF: Scaf()}
    rows: list[Mapping[str, Estimate | str]] = []
    for name, correction in rules.items():
        for case, fraction in (("all active", 1.0), ("2 of 5 active", 0.4)):
            left = [left_over(correction, s.quadratic_rounds, fraction, seed) for seed in s.seeds[:3]]
            rows.append({"case": f"quadratics, {case}", "rule": name, "sum of meta-gradients": estimate(left)})
    return rows


def filled(rows: Sequence[Mapping[str, Estimate | str]]) -> list[Mapping[str, Estimate | str]]:
    """The same rows, each with every column of any."""
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column, "") for column in columns} for row in rows]


def show(quick: bool = False) -> Outcome:
    """Choices on the tuning seeds, then ALID, ACID, Proto and the quadratics on the reported ones."""
    s = Setting()
    if quick:
        s = Setting(6, 2, 0.34, 2, 0.55, 3, 1, 0.6, 2, 3, (0, 1), (100,))
    chosen = {row: Choice(*TRIED[row][1], PERSONAL[0]) if quick else tuned(s, row) for row in TRIED}
    classes = s.classes_each
    found = {row: measured(s, alid, objective(row, classes), classes, c) for row, c in chosen.items()}
    easy = easy_cases(s, chosen)
    rows = table("ALID", found) + [r for case, each in easy.items() for r in table(case, each)]
    return Outcome(
        "pfl",
        "Acar et al., ICML 2021 (Debiasing Model Updates for Improving Personalized Federated Training)",
        "Corrected meta-updates reach good personal models with fewer rounds and fewer models transmitted.",
        f"{s}; scikit-learn's digits, three quarters of each device's pictures for training, mean over devices of "
        "the accuracy on its own test pictures after fine-tuning the averaged model (steps x rate as chosen), "
        "smoothed with weight 0.8; 64-64-32 ReLU network; MAML with one inner step of 0.1; models are counted "
        "both ways: two a device and round, three for PFLScaf. Four trainings and four fine-tunings are looked at "
        f"for every row on the tuning seeds, and the highest last accuracy there is taken. "
        f"{len(s.seeds)} seeds, 95 % intervals by Student's t, savings paired "
        "by seed.",
        filled([*rows, *quadratics(s)]),
        verdict(found),
        losing(found, easy),
        lines=[
            Line(
                "personal accuracy against models sent (ALID)",
                row,
                [float(f.models_a_round * (t + 1)) for t in range(f.curve.shape[1])][:: max(1, s.rounds // 25)],
                [estimate(v.tolist()) for v in f.curve.T][:: max(1, s.rounds // 25)],
            )
            for row, f in found.items()
        ],
    )
