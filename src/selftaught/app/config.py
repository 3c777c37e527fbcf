"""What a run was asked to do, as one JSON object: enough to build its network and to repeat it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import nn

from selftaught.app.choices import TasksFrom
from selftaught.app.task_sources import source_of
from selftaught.core.errors import ConfigError, RunError
from selftaught.core.types import Method, TaskSource
from selftaught.data.pictures import Pictures
from selftaught.data.views import RECIPES, Views
from selftaught.methods import METHODS
from selftaught.nets import build_encoder
from selftaught.tasks.split import Split


@dataclass(frozen=True)
class Config:
    """Everything that decides the numbers of a run, and the command that started it.

    `views` is the recipe itself, `views_name` what it was called. `options` are constructor options of the
    encoder. `data` describes the pictures: where they came from, how many, their fingerprint. `split` says whether
    both loops see all of a task (`SplitTasks`), `tasks` and `tasks_options` who makes them (`task_sources`).
    `trunk_rate` is the encoder's own learning rate (None: `rate`).
    """

    method: str
    method_options: dict[str, Any]
    encoder: str
    options: dict[str, Any]
    size: int
    channels: int
    views_name: str
    views: dict[str, Any]
    steps: int
    rate: float
    warmup: int
    weight_decay: float
    seed: int
    data: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    init_from: str | None = None
    split: Split = "tr-val"
    tasks: TasksFrom = "own"
    tasks_options: dict[str, Any] = field(default_factory=dict)
    trunk_rate: float | None = None

    def as_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` is its inverse."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str) -> "Config":
        """Raises RunError naming `where` when fields are missing or unknown."""
        names = {f.name for f in dataclasses.fields(cls)}
        if set(content) - names or {"method", "encoder", "size", "channels"} - set(content):
            raise RunError(
                f"{where} is not a configuration of this version: fields {sorted(set(content) ^ names)}"
            )
        for name, kind in get_type_hints(cls).items():
            if name in content and not _is_a(content[name], kind):
                raise RunError(f"{where} is broken: {name} is {content[name]!r:.100}. Restore it from a copy.")
        try:
            return cls(**content)
        except TypeError as error:
            raise RunError(f"{where} is not a complete configuration: {error}") from error

    def build_method(self) -> Method:
        """The method with its options; raises ConfigError for unknown ones."""
        return build_method(self.method, self.method_options)

    def build_views(self) -> Views:
        """The view recipe."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self.views.items()}
        try:
            return Views(**fields)
        except TypeError as error:
            raise ConfigError(f"views: {error}") from error

    def build_source(self, pictures: Pictures) -> TaskSource:
        """The run's tasks under the split; raises what their source raises, and ConfigError."""
        method, views = self.build_method(), self.build_views()
        return source_of(self.method, method, pictures, views, self.tasks, self.tasks_options, self.split)

    def build_network(self) -> nn.Module:
        """A freshly initialised network: encoder and the method's heads, from the run's seed.

        Raises ConfigError for options of a wrong kind or size, wherever torch stumbles over them.
        """
        try:
            return self._built()
        except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, MemoryError) as error:
            raise ConfigError(
                f"{self.encoder} with {self.options} cannot be built for {self.channels} x {self.size} px "
                f"pictures and {self.method} ({error}): change its options, or restore config.json from a copy"
            ) from error

    def _built(self) -> nn.Module:
        encoder = build_encoder(self.encoder, self.channels, self.size, self.seed, **self.options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)
            return self.build_method().network(encoder)


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value out of JSON is what a field of `Config` says it is."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    generic = get_origin(kind) not in (None, UnionType)
    plain = (int, float) if kind is float else get_origin(kind) if generic else kind
    return isinstance(value, plain) and (kind is bool or not isinstance(value, bool))


def build_method(name: str, options: Mapping[str, Any]) -> Method:
    """A method of the table with some fields changed; raises ConfigError naming what exists."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    kind: Any = METHODS[name]
    known = {f.name: f for f in dataclasses.fields(kind)}
    unknown = set(options) - set(known)
    if unknown:
        raise ConfigError(f"{name} has no option {', '.join(sorted(unknown))}; it has {', '.join(known)}")
    method: Method = kind(**options)
    return method


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """`["inner_steps=3", "matching=l2"]` -> values read as JSON where they are JSON, else as text."""
    out: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign:
            raise ConfigError(f"{pair!r} is not of the form name=value")
        try:
            out[name.replace("-", "_")] = json.loads(text)
        except json.JSONDecodeError:
            out[name.replace("-", "_")] = text
    return out


def recipe(name: str) -> Views:
    """A named view recipe; raises ConfigError naming what exists."""
    if name not in RECIPES:
        raise ConfigError(f"unknown view recipe {name!r}; known: auto, {', '.join(RECIPES)}")
    return RECIPES[name]
