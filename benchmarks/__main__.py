"""One command for every benchmark: `python -m benchmarks meta_step --rounds 5`."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import tyro

from benchmarks.bad_days import BadDays
from benchmarks.cifar import Cifar
from benchmarks.compile import Compile
from benchmarks.encoders import Encoders
from benchmarks.episodes import Episodes
from benchmarks.first_step import FirstStep
from benchmarks.fuzz import Fuzz
from benchmarks.implicit import Implicit
from benchmarks.meta_step import MetaStep
from benchmarks.omniglot import Omniglot
from benchmarks.omniglot_best import OmniglotBest
from benchmarks.pages import Pages
from benchmarks.peers.listing import Peers
from benchmarks.pipeline import Pipeline
from benchmarks.prefetch import Prefetch
from benchmarks.ssl_step import SslStep
from benchmarks.stream import Stream


class Benchmark(Protocol):
    """A frozen dataclass whose fields are the options."""

    def run(self) -> None: ...


BENCHMARKS: Mapping[str, type[Benchmark]] = {
    "bad_days": BadDays,
    "cifar": Cifar,
    "compile": Compile,
    "encoders": Encoders,
    "episodes": Episodes,
    "first_step": FirstStep,
    "fuzz": Fuzz,
    "implicit": Implicit,
    "meta_step": MetaStep,
    "omniglot": Omniglot,
    "omniglot_best": OmniglotBest,
    "pages": Pages,
    "peers": Peers,
    "pipeline": Pipeline,
    "prefetch": Prefetch,
    "ssl_step": SslStep,
    "stream": Stream,
}
"""Every benchmark there is; a new one is a line here."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options of the named benchmark and run it."""
    table = cast("dict[str, Any]", dict(BENCHMARKS))
    chosen: Benchmark = tyro.extras.subcommand_cli_from_dict(
        table,
        prog="python -m benchmarks",
        description=__doc__,
        args=arguments if arguments is not None else sys.argv[1:],
    )
    chosen.run()


if __name__ == "__main__":
    main()
