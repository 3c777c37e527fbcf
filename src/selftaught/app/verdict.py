"""What the accuracy rows of a report allow to be said, in words: above, level with or below each baseline."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from selftaught.core.errors import ConfigError

RAW_PIXELS = "raw pixels"
UNTRAINED = "untrained encoder"
BASELINES = (RAW_PIXELS, UNTRAINED)
"""The two baselines every verdict asks for: no network at all, and the same network before training."""

Outcome = Literal["above", "level", "below"]
Status = Literal["clear", "incomplete", "mixed", "unclear", "behind", "unknown"]


@final
@dataclass(frozen=True)
class AccuracyRow:
    """One measured accuracy: `mean` and `half_width` of its 95 % interval are fractions (0.612, not 61.2).

    `head` is the classifier on the features, `norm` the normalisation mode, `queries` the query pictures of a
    class in each of the `episodes`. Raises `ConfigError` for numbers outside 0..1 or without an interval.
    """

    name: str
    ways: int
    shots: int
    mean: float
    half_width: float
    head: str = ""
    norm: str = ""
    episodes: int = 0
    queries: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        where = f"accuracy row {self.name!r}, {self.ways}-way {self.shots}-shot"
        if not 0 <= self.mean <= 1:
            raise ConfigError(f"{where}: mean {self.mean} is outside 0..1; give a fraction, not a percentage")
        if not 0 <= self.half_width < math.inf:
            raise ConfigError(f"{where}: no 95 % interval ({self.half_width}); evaluate at least 2 episodes")
        if self.ways < 1 or self.shots < 1:
            raise ConfigError(f"{where}: ways and shots count from 1")

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half_width

    @property
    def setting(self) -> str:
        """Ways and shots in words."""
        return f"{self.ways}-way {self.shots}-shot"

    @property
    def percent(self) -> str:
        """Mean and half-width in per cent, one decimal."""
        text = f"{100 * self.mean:.1f} ± {100 * self.half_width:.1f} %"
        return text.replace(" ", "\N{NO-BREAK SPACE}")


@final
@dataclass(frozen=True)
class Comparison:
    """The model beside one rival in one setting."""

    model: AccuracyRow
    rival: AccuracyRow

    @property
    def outcome(self) -> Outcome:
        """`above` or `below` when the two intervals do not touch, else `level`."""
        if self.model.low > self.rival.high:
            return "above"
        return "below" if self.model.high < self.rival.low else "level"

    @property
    def points(self) -> float:
        """Difference of the means in percentage points, model minus rival."""
        return 100 * (self.model.mean - self.rival.mean)


@final
@dataclass(frozen=True)
class Verdict:
    """`headline` is one sentence; `details` are further sentences in order of worth."""

    status: Status
    headline: str
    details: tuple[str, ...] = ()


def is_named(name: str, wanted: str) -> bool:
    """Whether two names are the same but for case and outer blanks."""
    return name.strip().casefold() == wanted


def is_baseline(name: str) -> bool:
    """Whether a row of this name is one of `BASELINES`."""
    return any(is_named(name, b) for b in BASELINES)


def model_name(rows: Sequence[AccuracyRow], wanted: str = "") -> str:
    """The name the report is about: `wanted`, else the first row that is no baseline, else ''.

    Raises `ConfigError` when `wanted` has no row among rows that exist.
    """
    names = list(dict.fromkeys(row.name for row in rows))
    if wanted and names and wanted not in names:
        raise ConfigError(f"no accuracy row is named {wanted!r}; the rows are {', '.join(map(repr, names))}")
    return wanted or next((n for n in names if not is_baseline(n)), "")


def rivals_of(rows: Sequence[AccuracyRow], model: str) -> tuple[str, ...]:
    """Every other name: baselines first, in the order of `BASELINES`, then the rest as they come."""
    others = [n for n in dict.fromkeys(row.name for row in rows) if n != model]
    known = [n for b in BASELINES for n in others if is_named(n, b)]
    return (*known, *(n for n in others if n not in known))


def counterpart(row: AccuracyRow, rows: Sequence[AccuracyRow], rival: str) -> AccuracyRow | None:
    """The row of `rival` in the setting of `row`: of several, the most alike, then the best.

    Alike means the same head, then the same normalisation, then the same seed.
    """
    same = [r for r in rows if r.name == rival and (r.ways, r.shots) == (row.ways, row.shots)]
    if not same:
        return None
    return max(same, key=lambda r: (r.head == row.head, r.norm == row.norm, r.seed == row.seed, r.mean))


def compare(rows: Sequence[AccuracyRow], model: str, rival: str) -> tuple[Comparison, ...]:
    """The model beside one rival in every setting where both were measured, by ways, then shots."""
    mine = sorted((r for r in rows if r.name == model), key=lambda r: (r.ways, r.shots))
    found = ((row, counterpart(row, rows, rival)) for row in mine)
    return tuple(Comparison(row, other) for row, other in found if other is not None)


def verdict(rows: Sequence[AccuracyRow], model: str = "") -> Verdict:
    """What can be said about `model` (default: the first row that is no baseline).

    A gain is claimed only where the two 95 % intervals do not touch, which is stricter than a test of the
    difference at the same level.
    """
    model = model_name(rows, model)
    if not rows or not model:
        return Verdict("unknown", "No accuracy was measured, so whether the training helped cannot be said.")
    against = {n: c for n in rivals_of(rows, model) if (c := compare(rows, model, n))}
    tests = {n: c for n, c in against.items() if is_baseline(n)}
    details = (*_figures(tests), *_training_gain(tests), *_missing(tests), *_others(against, tests))
    if not tests:
        text = f"Whether the training helped cannot be said: no baseline was measured beside {model}."
        return Verdict("unknown", text, details)
    status = _status(tests)
    return Verdict(status, _headline(status, model, tests), details)


Against = dict[str, tuple[Comparison, ...]]


def _status(tests: Against) -> Status:
    seen = {c.outcome for pairs in tests.values() for c in pairs}
    if seen == {"above"}:
        return "clear" if len(tests) == len(BASELINES) else "incomplete"
    if "above" in seen:
        return "mixed"
    return "behind" if "below" in seen else "unclear"


def _headline(status: Status, model: str, tests: Against) -> str:
    if status in ("clear", "incomplete"):
        most = max(len(c) for c in tests.values())
        return f"{model} clears {_names(tests)} in {_all(most)} measured: the 95 % intervals do not touch."
    if status == "unclear":
        names = _names(tests)
        return f"No gain can be claimed: the 95 % interval of {model} overlaps that of {names} throughout."
    lead = f"Mixed result: {model} is" if status == "mixed" else f"{model} falls short: it is"
    return f"{lead} {', and '.join(_tally(n, c) for n, c in tests.items())}."


def _tally(rival: str, pairs: Sequence[Comparison]) -> str:
    """For example: above raw pixels in 3 and level in 1 of 4 settings."""
    outcomes: tuple[Outcome, ...] = ("above", "level", "below")
    counts = {o: n for o in outcomes if (n := sum(c.outcome == o for c in pairs))}
    words = {"above": "above", "level": "level with", "below": "below"}
    first = next(iter(counts))
    if len(counts) == 1:
        return f"{words[first]} {_the(rival)} in {_all(len(pairs))}"
    rest = ", ".join(f"{o} in {n}" for o, n in list(counts.items())[1:])
    return f"{words[first]} {_the(rival)} in {counts[first]}, {rest} of {len(pairs)} settings"


def _figures(tests: Against) -> tuple[str, ...]:
    """The numbers of the smallest setting in which all measured baselines stand."""
    shared = [c for c in next(iter(tests.values()), ()) if all(_at(p, c.model) for p in tests.values())]
    if not shared:
        return ()
    row = shared[0].model
    others = [f"{c.rival.percent} for {_the(n)}" for n, p in tests.items() if (c := _at(p, row))]
    return (f"{row.setting}: {row.percent} for {row.name}, {' and '.join(others)}.",)


def _at(pairs: Sequence[Comparison], row: AccuracyRow) -> Comparison | None:
    return next((c for c in pairs if c.model == row), None)


def _training_gain(tests: Against) -> tuple[str, ...]:
    own = next((c for n, c in tests.items() if is_named(n, UNTRAINED)), ())
    if not own or any(c.outcome == "above" for c in own):
        return ()
    return ("In no setting is there a clear gain over the untrained encoder: the training did not help here.",)


def _missing(tests: Against) -> tuple[str, ...]:
    why = {
        RAW_PIXELS: "Raw pixels were not measured, so it is open whether a network is needed at all.",
        UNTRAINED: "The untrained encoder was not measured, so it is open whether the training helped.",
    }
    return tuple(why[b] for b in BASELINES if not any(is_named(n, b) for n in tests))


def _others(against: Against, tests: Against) -> tuple[str, ...]:
    rest = {n: c for n, c in against.items() if n not in tests}
    return tuple(f"{c[0].model.name} is {_tally(n, c)}." for n, c in rest.items())


def _the(name: str) -> str:
    return f"the {name.strip().lower()}" if is_named(name, UNTRAINED) else name


def _names(tests: Against) -> str:
    return " and ".join(_the(n) for n in tests)


def _all(n: int) -> str:
    return "the one setting" if n == 1 else f"{'both' if n == 2 else f'all {n}'} settings"
