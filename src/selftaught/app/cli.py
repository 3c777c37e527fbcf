"""The command line: `selftaught COMMAND`, each command a function whose arguments are its options."""

import json
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from selftaught.app.choices import EvaluationHead, Head, TasksFrom, TrackerName
from selftaught.app.claiming import claim
from selftaught.app.commands import compare, doctor, embed, methods, opened, place, report, say_skipped, search
from selftaught.app.exporting import export
from selftaught.app.playing import play
from selftaught.core.errors import ConfigError, SelftaughtError
from selftaught.core.launch import leads
from selftaught.core.memory import keep_freed_memory
from selftaught.learners.norms import LearnerNorm

# What a command works with is imported when it runs: `selftaught --help` must not wait for torch.
if TYPE_CHECKING:
    from selftaught.app.classifier import Prediction
    from selftaught.evaluate.table import Row

_out = Console(soft_wrap=True, highlight=False, markup=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def pretrain(
    data: Positional[str],
    out: Path = Path("run"),
    method: str = "bmssl",
    set: tuple[str, ...] = (),
    encoder: str = "conv4",
    size: int = 64,
    channels: int = 3,
    views: Literal["auto", "photo", "glyph", "flat"] = "auto",
    steps: int = 1000,
    rate: float = 1e-3,
    trunk_rate: float | None = None,
    labelled: bool = False,
    split: Literal["tr-val", "tr-tr"] = "tr-val",
    tasks: TasksFrom = "own",
    seed: int = 0,
    resume: bool = False,
    init_from: Path | None = None,
    track: TrackerName | None = None,
    report: bool = True,
) -> None:
    """Learn an encoder from pictures; most methods need no labels.

    Args:
        data: A folder of pictures, flat or nested, or of WebDataset shards; the word "emoji" stands for packaged
            pictures.
        out: The run folder to make (or, with --resume, to go on with).
        method: A name from `selftaught methods`.
        set: Options of the method as name=value, for example inner_steps=3 temperature=0.1.
        encoder: conv4, resnet12, resnet18 or vit; timm:NAME, openclip:NAME or hf:NAME, with =FILE.safetensors,
            =download or =random after it; path:FOLDER_OR_FILE. "+lora8" at the end trains low-rank adapters only.
        size: Pictures are scaled and cropped to this many pixels square.
        channels: 3 for colour, 1 for grey.
        views: How pictures are changed to make views; auto looks at them and says what it chose.
        steps: Outer steps.
        rate: Learning rate of the outer loop (Adam, cosine schedule).
        trunk_rate: That of the encoder, where it comes with weights (by default a tenth of --rate).
        labelled: Subfolders are classes; for methods that learn from labels.
        split: Whether the two loops of a meta-learner see different pictures of a task, or all of them (tr-tr).
        tasks: Who makes few-shot tasks: the method itself (own), labels, views, clusters, neighbours, latent.
        seed: Everything random follows from it.
        resume: Continue the run in --out exactly where it stopped.
        init_from: Start a new run from the encoder of this one.
        track: Where figures go beside metrics.jsonl in the run folder; that library has to be installed.
        report: Write report.html at the end.
    """
    from selftaught.app.config import parse_options
    from selftaught.app.pairs import pictures_for, reads_captions
    from selftaught.app.pretrain import pretrain as run_pretrain

    model = run_pretrain(
        place(data), out=out, method=method, options=parse_options(set), encoder=encoder, size=size,
        channels=channels, views=views, steps=steps, rate=rate, labelled=labelled, split=split, tasks=tasks,
        seed=seed, resume=resume, init_from=init_from, track=track, trunk_rate=trunk_rate,
        command=_command(),
    )  # fmt: skip
    if not leads():  # of several processes, as torchrun starts them, the first writes and speaks
        return
    _out.print(f"model: {out / 'model'} ({model.width} features, {model.config.data['pictures']} pictures)")
    if report:
        from selftaught.app.reporting import write_run_report

        config = model.config
        pictures = pictures_for(config.method, place(data), config.size, config.channels)
        say_skipped(pictures.skipped)
        _out.print(f"report: {write_run_report(out, pictures)}")
    named = reads_captions(model.config.method)
    after = "predict {} PICTURE --classes NAME NAME" if named else "adapt {} LABELLED_FOLDER --out clf"
    _out.print("next: selftaught " + after.format(shlex.quote(str(out))))


def adapt(
    run: Positional[Path], labelled: Positional[Path], out: Path = Path("clf"), head: Head = "prototype"
) -> None:
    """Make a classifier from 1-5 labelled pictures a class.

    Args:
        run: A run or model folder.
        labelled: One subfolder per class, 1-5 pictures each (or more; counts may differ).
        out: The classifier folder to make.
        head: What is fitted on the embeddings; own: as the method itself meets a new task, so
            for MAML and its kind weights after inner steps.
    """
    classifier = opened(run).adapt(labelled, head)
    classifier.save(out)
    y = classifier.support.y
    assert y is not None
    counts = ", ".join(f"{name} {int((y == i).sum())}" for i, name in enumerate(classifier.classes))
    _out.print(f"classifier: {out} ({counts})")
    say_skipped(classifier.skipped)
    _out.print(f"next: selftaught predict {shlex.quote(str(out))} PICTURE")


def predict(
    classifier: Positional[Path],
    pictures: Positional[tuple[str, ...]],
    json: bool = False,
    neighbours: int = 3,
    classes: tuple[str, ...] = (),
    templates: tuple[str, ...] = ("{}",),
    examples: Path | None = None,
) -> None:
    """Name pictures: label, probability, the nearest labelled pictures.

    Args:
        classifier: A folder made by `selftaught adapt` or, with --classes, a run trained with captions.
        pictures: Files and folders.
        json: One JSON object a picture and line, instead of a table.
        neighbours: How many of the nearest labelled pictures to show.
        classes: Names to choose from, in words of the captions; no labelled picture is needed.
        templates: With --classes, sentences with {} for the name, whose mean is taken.
        examples: With --classes, a folder with a few pictures of some of them, a subfolder for each.
    """
    from selftaught.app.classifier import Classifier
    from selftaught.app.naming import NameClassifier

    loaded: Classifier | NameClassifier
    if classes:
        loaded = NameClassifier.of(opened(classifier), classes, templates, examples)
    else:
        loaded = Classifier.load(classifier)
    if not pictures:
        raise ConfigError("no pictures given: selftaught predict CLASSIFIER PICTURE [PICTURE ...]")
    read = [loaded.model.read(p) for p in pictures]
    found = [p for pictures in read for p in loaded.predict_pictures(pictures, neighbours)]
    say_skipped([s for pictures in read for s in pictures.skipped])
    if json:
        for one in found:
            print(_json(one.as_json()))
    else:
        _predictions(found)


def evaluate(
    run: Positional[Path],
    labelled: Positional[str],
    ways: tuple[int, ...] = (5,),
    shots: tuple[int, ...] = (1, 5),
    queries: int | None = None,
    episodes: int = 600,
    seed: int = 0,
    head: EvaluationHead = "prototype",
    norm: LearnerNorm | None = None,
    probes: bool = False,
    json: bool = False,
) -> None:
    """Few-shot accuracy on labelled pictures, beside raw pixels and an untrained encoder.

    Args:
        run: A run or model folder.
        labelled: One subfolder per class; "emoji:test" stands for the packaged classes never trained on.
        ways: Classes in a task.
        shots: Labelled pictures per class.
        queries: Pictures per class to name (15, or as many as the smallest class leaves).
        episodes: Random tasks; the same list for every row.
        seed: Of the task list.
        head: prototype, ridge, logistic on fixed features; steps: a few inner steps of the whole network; own: as
            the method itself meets a new task.
        norm: Which batch statistics: of training (running, the default), of the support set (the default with
            --head steps), or of the query batch (transductive).
        probes: Also a linear probe, nearest neighbours, geometry and the collision rate of pseudo-tasks.
        json: Rows as JSON.
    """
    from selftaught.app.evaluation import as_json
    from selftaught.app.evaluation import evaluate as measure

    model = opened(run)
    pictures = model.read(place(labelled), labelled=True)
    rows = measure(
        {model.config.method: model}, pictures, ways=ways, shots=shots, queries=queries, episodes=episodes,
        seed=seed, head=head, norm=norm,
    )  # fmt: skip
    if (run / "config.json").is_file() and (run / "model").is_dir():
        from selftaught.app.reporting import keep_rows, refresh_card

        keep_rows(run, as_json(rows), _command())
        refresh_card(run, model)
    print(_json(as_json(rows))) if json else _accuracies(rows)
    if probes:
        from selftaught.app.inspection import inspect

        for line in inspect(model, pictures, seed):
            _err.print(line)
    say_skipped(pictures.skipped)


def demo(out: Path | None = None, steps: int = 0, seed: int = 0, json: Path | None = None) -> None:
    """Train on packaged drawings without labels and name drawings of things never seen (under 3 minutes).

    Args:
        out: A new folder for the runs and the report (by default demo-run, or demo-run-2 and so on).
        steps: Outer steps of each method; 0 takes the demonstration's own number.
        seed: Everything random follows from it.
        json: Also write rows and seconds to this file, with command, commit and machine.
    """
    from selftaught.app import provenance
    from selftaught.app.demo import STEPS, overlapping
    from selftaught.app.demo import demo as run_demo
    from selftaught.app.evaluation import as_json

    at = provenance.commit()
    done = run_demo(out or _free("demo-run"), steps or STEPS, seed, command=_command())
    _accuracies(done["rows"])
    touching = overlapping(done["rows"], "BMSSL")
    _out.print(
        "BMSSL's interval touches that of " + ", ".join(touching)
        if touching
        else "BMSSL's intervals do not overlap with raw pixels or the untrained encoder."
    )
    said: Prediction = done["prediction"]["said"]
    _out.print(
        f"{done['prediction']['file']} (in truth {done['prediction']['truth']!r}): {said.label!r}, "
        f"probability {said.probability:.2f}, from one drawing each of {len(said.probabilities)} unseen classes"
    )
    seconds = done["seconds"]
    _out.print(f"{seconds['everything']:.0f} s in all, {seconds['training']:.0f} s of it training")
    _out.print(f"report: {done['report']}")
    if json is not None:
        from selftaught.artifacts.files import write_json

        stamp = {"command": _command(), "commit": at, "machine": provenance.machine()}
        write_json(json, {"rows": as_json(done["rows"]), "seconds": seconds, **stamp})


COMMANDS: dict[str, Callable[..., Any]] = {
    "pretrain": pretrain,
    "adapt": adapt,
    "predict": predict,
    "embed": embed,
    "evaluate": evaluate,
    "compare": compare,
    "export": export,
    "report": report,
    "methods": methods,
    "doctor": doctor,
    "demo": demo,
    "claim": claim,
    "search": search,
    "play": play,
}


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; errors a user can mend are one line on stderr and an exit code of their own."""
    logging.basicConfig(level=logging.INFO if leads() else logging.ERROR, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="selftaught", description="Learn from few unlabelled pictures; adapt from 1-5 labels.",
            args=None if args is None else list(args),
        )  # fmt: skip
    except SelftaughtError as error:
        _err.print(f"error: {error}", style="red")
        return error.exit_code
    except KeyboardInterrupt:
        _err.print("interrupted")
        return 130
    except BrokenPipeError:
        return 141
    return 0


def _free(name: str) -> Path:
    """The first of NAME, NAME-2, NAME-3 ... that does not exist."""
    return next(p for i in range(1, 10_000) if not (p := Path(name if i == 1 else f"{name}-{i}")).exists())


def _command() -> str:
    return shlex.join(["selftaught", *sys.argv[1:]])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _accuracies(rows: "Sequence[Row]") -> None:
    table = Table("features", "task", "accuracy % (95 % interval)", "head", "norm", "episodes", "queries")
    for r in rows:
        figures = f"{r.mean:.1f} ± {r.half_width:.1f}"
        table.add_row(
            r.name, f"{r.ways}-way {r.shots}-shot", figures, r.head, r.norm, str(r.episodes), str(r.queries)
        )
    Console(width=None if _out.is_terminal else 120).print(table)


def _predictions(found: "Sequence[Prediction]") -> None:
    for one in found:
        near = "; ".join(f"{n.name} ({n.label}, {n.similarity:.2f})" for n in one.neighbours)
        _out.print(f"{one.name}: {one.label} ({one.probability:.2f})" + (f" - nearest: {near}" if near else ""))


def run() -> None:
    """The installed script."""
    keep_freed_memory()
    raise SystemExit(main())


if __name__ == "__main__":
    run()
