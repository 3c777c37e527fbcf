"""From a folder of unlabelled pictures to a trained encoder in a run folder."""

import dataclasses
import logging
import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from selftaught.app.choices import TasksFrom
from selftaught.app.config import Config, build_method, recipe
from selftaught.app.encoders import TRUNK_SHARE, chosen_encoder, load_trunk
from selftaught.app.model import Model
from selftaught.app.pairs import completed, mark_of, pictures_for
from selftaught.app.progress import bar
from selftaught.app.task_sources import UNLABELLED, divided, takes_any_tasks
from selftaught.app.tracking import Track, check_tracker, told
from selftaught.artifacts.run import Restored, Run
from selftaught.core.distributed import Ranks, any_of, joined, of_the_first
from selftaught.core.errors import ConfigError, DataError, RunError, SelftaughtError, TooFewPicturesError
from selftaught.core.functional import in_batches, part
from selftaught.core.train import start, train
from selftaught.core.types import Method, State, TaskSource, merged
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views, choose_recipe
from selftaught.evaluate.geometry import effective_rank
from selftaught.methods import METHODS
from selftaught.optimizers.gradient import Gradient
from selftaught.tasks.split import Split

_log = logging.getLogger("selftaught")

CHECKPOINT_SECONDS = 60.0
LOG_EVERY = 10
TASK_SIZES = ("ways", "shots", "queries", "clusters")
"""Options that are named where pictures are too few for them."""
RANK_EVERY = 100
RANK_PICTURES = 256
"""Effective rank is logged every so many steps and at the last one, of so many pictures' features."""


class InterruptedRun(SelftaughtError):
    """Training was asked to stop; everything up to the last step is saved."""

    exit_code = 130


def pretrain(
    data: Any,
    *,
    out: str | Path = "run",
    method: str | Method = "bmssl",
    options: Mapping[str, Any] | None = None,
    encoder: str = "conv4",
    encoder_options: Mapping[str, Any] | None = None,
    size: int = 64,
    channels: int = 3,
    views: str | Views = "auto",
    steps: int = 1000,
    rate: float = 1e-3,
    warmup: int = 0,
    weight_decay: float = 0.0,
    labelled: bool = False,
    split: Split = "tr-val",
    tasks: TasksFrom = "own",
    seed: int = 0,
    init_from: str | Path | None = None,
    resume: bool = False,
    command: str = "",
    quiet: bool = False,
    track: Track | str | None = None,
    trunk_rate: float | None = None,
) -> Model:
    """Train an encoder on pictures, unlabelled for most methods, and keep everything in the run folder `out`.

    `data` is a folder (flat or nested), files, arrays or a `Pictures` set; `method` a name of `METHODS` with
    `options`, or a method object. With `labelled` a folder's subfolders are classes, which supervised methods
    (ProtoNet, MAML and others) need. `views` is a recipe (name or object); "auto" chooses and logs one.
    `split` "tr-tr" lets both loops of a meta-learner see all of a task (`tasks.split`). `tasks` names another
    source of few-shot tasks than the method's own (`task_sources`), whose options are given with the others.
    `init_from` starts a new run from another's weights; `resume` continues the run in `out` to the same bits,
    with the settings it was started with. Ctrl-C finishes the step, saves and raises InterruptedRun.
    `track` is handed (step, figures) of every logged step, or names a tracker of `app.tracking`; its failure never
    stops training, and a resumed run hands no step over twice.
    `encoder` may be one of another library or of a folder (`app.encoders`); its trunk learns at `trunk_rate`, by
    default a tenth of `rate` where it comes with weights. No `steps` leave it as it came.
    Several processes started by torchrun share the work, and the first of them writes (`core.sharing`).
    Raises DataError, ConfigError, RunError or SaveError, each naming what is wrong and the way out.
    """
    check_tracker(track)
    if resume:
        with joined() as ranks:
            return _resume(data, Path(out), quiet, ranks, track)
    trunk = chosen_encoder(encoder, encoder_options or {})
    init_from = trunk.init_from if init_from is None else init_from
    if trunk_rate is None and trunk.trained:
        trunk_rate = rate * TRUNK_SHARE
    kind = METHODS.get(method) if isinstance(method, str) else type(method)
    own, of_source = divided(kind, tasks, options) if kind and options else (options or {}, {})
    name, chosen = _named(method, own)
    pictures = pictures_for(name, data, size, channels, labelled=labelled)
    _enough(pictures, data)
    chosen = completed(name, chosen, pictures)
    views_name, view_recipe = _views(views, pictures)
    config = Config(
        method=name, method_options=chosen, encoder=trunk.encoder, options=trunk.options,
        size=size, channels=channels, views_name=views_name, views=dataclasses.asdict(view_recipe),
        steps=steps, rate=rate, warmup=warmup, weight_decay=weight_decay, seed=seed,
        data={"source": _source(data), "pictures": len(pictures), "skipped": len(pictures.skipped),
              "fingerprint": mark_of(name, pictures), "labelled": labelled},
        command=command, init_from=None if init_from is None else str(init_from), split=split,
        tasks=tasks, tasks_options=of_source, trunk_rate=None if trunk_rate is None else float(trunk_rate),
    )  # fmt: skip
    net = config.build_network()
    _first_numbers(net, config)
    source = _checked_source(config, pictures)
    with joined() as ranks:
        asked = config.as_json()
        run = Run.create(out, asked) if ranks is None or ranks.leads else Run(Path(out), asked)
        state = start(config.build_method(), net, _optimizer(config), config.seed)
        return _train(run, config, net, pictures, source, state, quiet, ranks, track)


def _resume(data: Any, out: Path, quiet: bool, ranks: Ranks | None, track: Track | str | None) -> Model:
    run = Run.open(out)
    config = Config.from_json(run.config, f"{out / 'config.json'}")
    labelled = bool(config.data.get("labelled", False))
    pictures = pictures_for(config.method, data, config.size, config.channels, labelled=labelled)
    if mark_of(config.method, pictures) != config.data.get("fingerprint"):
        raise RunError(
            f"the pictures differ from those {out} was started with ({config.data.get('pictures')} then, "
            f"{len(pictures)} now): resuming would not be the same run. Restore them, or start a new run with "
            f"--init-from {out}."
        )
    net = config.build_network()
    restored = _restored(run, ranks)
    if restored is None:
        _first_numbers(net, config)
    if restored is not None and restored.warning:
        _log.warning(restored.warning)
    fresh = start(config.build_method(), net, _optimizer(config), config.seed)
    source = config.build_source(pictures)
    return _train(run, config, net, pictures, source, restored.state if restored else fresh, quiet, ranks, track)


def _restored(run: Run, ranks: Ranks | None) -> Restored | None:
    """The checkpoint, which all processes read after the first has put the folder in order."""
    restored = None
    if ranks is None or ranks.leads:
        with run.lock():
            restored = run.resume()
    any_of(ranks, False)
    if ranks is not None and not ranks.leads and run.has_checkpoint:
        restored = run.restore()
    return restored


def _train(
    run: Run, config: Config, net: nn.Module, pictures: Pictures, source: TaskSource, state: State, quiet: bool,
    ranks: Ranks | None, track: Track | str | None,
) -> Model:  # fmt: skip
    method = config.build_method()
    if ranks is not None:
        state = of_the_first(ranks, state)
        if not ranks.leads:
            steps = train(method, net, source, _optimizer(config), state, config.steps, ranks=ranks)
            return _followed(steps, config, net, state, ranks)
    began = time.monotonic()
    with run.lock(), run.logging(), _stop_on_signal() as stopped, bar(
        f"{config.method}", config.steps, state.step, quiet
    ) as tick, told(track, run.path) as tell:  # fmt: skip
        _nobody_went_on(run, state)
        _log.info("%s on %d pictures, views %s", config.method, len(pictures), config.views_name)
        if ranks is not None:
            _log.info("shared by %d processes", ranks.count)
        saved = time.monotonic()
        try:
            steps = train(method, net, source, _optimizer(config), state, config.steps, ranks=ranks)
            for state, metrics in steps:
                if state.step % LOG_EVERY == 0 or state.step == config.steps:
                    if state.step % RANK_EVERY == 0 or state.step == config.steps:
                        metrics = metrics | {"effective_rank": _rank(net, state, pictures)}
                    figures = metrics | {"seconds": time.monotonic() - began}
                    run.log(state.step, figures)
                    tell(state.step, figures)
                tick(state.step, f"loss {metrics['loss']:.3f}")
                if any_of(ranks, bool(stopped)):
                    break
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    run.save_checkpoint(state)
                    saved = time.monotonic()
        finally:
            # Also after an error: the last whole step is good, and nothing is lost.
            run.save_checkpoint(state)
        if state.step < config.steps:
            raise InterruptedRun(
                f"stopped at step {state.step} of {config.steps}; saved. Go on with: selftaught pretrain "
                f"{config.data.get('source')} --out {run.path} --resume"
            )
        model = Model(net, merged(state.params, state.slow), config)
        model.save(run.model_path)
        run.finish({"steps": state.step, "seconds": time.monotonic() - began})
        _log.info("finished %d steps", state.step)
    return model


def _followed(
    steps: Iterator[tuple[State, dict[str, float]]], config: Config, net: nn.Module, state: State, ranks: Ranks
) -> Model:
    """The same steps in a process that writes nothing."""
    with _stop_on_signal() as stopped:
        for state, _ in steps:
            if any_of(ranks, bool(stopped)):
                raise InterruptedRun(f"stopped at step {state.step} of {config.steps}")
    return Model(net, merged(state.params, state.slow), config)


def _nobody_went_on(run: Run, state: State) -> None:
    """RunError where another process trained this run since its checkpoint was read, before the lock was ours."""
    there = run.restore().state.step if run.has_checkpoint else 0
    if there != state.step:
        raise RunError(
            f"{run.path} went on meanwhile, from step {state.step} to {there} (another process). Resume it again."
        )


def _rank(net: nn.Module, state: State, pictures: Pictures) -> float:
    """Effective rank of the encoder's features as it would be used now; NaN where they are not finite."""
    weights = part(merged(state.params, state.slow), "encoder")
    some = pictures.x[:: max(1, len(pictures) // RANK_PICTURES)][:RANK_PICTURES]
    z = in_batches(net.get_submodule("encoder"), weights, some)
    return effective_rank(z) if bool(z.isfinite().all()) else math.nan


@contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """A list that is filled when Ctrl-C or a polite kill arrives; the second Ctrl-C is the ordinary one."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        before = {n: signal.signal(n, note) for n in numbers}
    except ValueError:  # not the main thread: the caller's handling stands
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _named(method: str | Method, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(method, str):
        built: Any = build_method(method, options)
        name = method
    else:
        known = {kind: name for name, kind in METHODS.items()}
        if type(method) not in known:
            raise ConfigError(
                f"{type(method).__name__} is not in METHODS: add its line there so that runs can load"
            )
        if options:
            raise ConfigError("give either a method object or a name with options")
        name, built = known[type(method)], method
    return name, dataclasses.asdict(built)


def _views(views: str | Views, pictures: Pictures) -> tuple[str, Views]:
    if isinstance(views, Views):
        return "own", views
    if views != "auto":
        return views, recipe(views)
    name, reason = choose_recipe(pictures)
    _log.info("views: %s, because %s (change with --views)", name, reason)
    return name, recipe(name)


def _enough(pictures: Pictures, data: Any) -> None:
    if len(pictures) < 2:
        raise TooFewPicturesError(
            f"{_source(data)} holds {len(pictures)} readable picture(s): learning to tell pictures apart needs at "
            "least 2, and a few dozen to be of use"
        )


def _checked_source(config: Config, pictures: Pictures) -> TaskSource:
    """The run's tasks, after what their source has to say about the pictures, before a folder is made.

    Under another split the first task too: only there it shows whether support and query can change parts.
    """
    try:
        source = config.build_source(pictures)
        if config.split != "tr-val":
            source(torch.Generator().manual_seed(config.seed))
        return source
    except TooFewPicturesError as error:
        sizes = [f"{k}={v}" for k, v in config.method_options.items() if k in TASK_SIZES]
        now = f" (now {' '.join(sizes)}; --set or options= change them)" if sizes else ""
        raise TooFewPicturesError(f"{config.method}: {error}{now}") from error
    except DataError as error:
        if pictures.y is not None or config.data.get("labelled"):
            raise
        views = ", or --set episodes=views (options=)" if config.method_options.get("episodes") == "labels" else ""
        if takes_any_tasks(METHODS[config.method]):
            views += f", or take tasks without labels: --tasks {', '.join(UNLABELLED)} (tasks=)"
        raise DataError(f"{config.method}: {error}, and say --labelled (labelled=True){views}") from error


def _source(data: Any) -> str:
    return str(data) if isinstance(data, str | Path) else type(data).__name__


def _optimizer(config: Config) -> Gradient:
    own = () if config.trunk_rate is None else (("encoder.", config.trunk_rate),)
    return Gradient(
        config.rate, config.steps, warmup=config.warmup, weight_decay=config.weight_decay, rates=own
    )  # fmt: skip


def _first_numbers(net: nn.Module, config: Config) -> None:
    """The encoder's numbers where they come from elsewhere: another run, or another library's file."""
    if config.init_from is not None:
        _take_weights(net, Model.load(config.init_from), config.init_from)
    else:
        load_trunk(net, config.options)


def _take_weights(net: nn.Module, model: Model, where: str | Path) -> None:
    """Copy the encoder's numbers of another run; heads start anew."""
    theirs = model.encoder.state_dict()
    mine = net.get_submodule("encoder")
    expected = {k: v.shape for k, v in mine.state_dict().items()}
    if expected != {k: v.shape for k, v in theirs.items()}:
        raise RunError(
            f"{where} has another encoder ({model.config.encoder}, {model.config.size} px, "
            f"{model.config.channels} channels): use the same encoder, size and channels"
        )
    mine.load_state_dict(theirs)
