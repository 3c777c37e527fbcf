"""Installs every peer and says which version works and which error the others end in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from benchmarks.measure import environment
from benchmarks.peers.environments import PEERS, REFUSED, Failure, install
from selftaught.artifacts.files import write_json


@final
@dataclass(frozen=True)
class Peers:
    """Make an environment for each library that the others are compared with, from pinned versions."""

    only: tuple[str, ...] = ()
    """Names; all where not given."""
    out: Path = Path("benchmarks/results/peers.json")
    """Where versions and errors go."""

    def run(self) -> None:
        """Install, print, write."""
        rows = []
        for name in self.only or (*PEERS, *REFUSED):
            rows.append(row_of(name))
            print(line_of(rows[-1]), flush=True)
        write_json(
            self.out, {"command": "python -m benchmarks peers", "environment": environment(), "peers": rows}
        )
        print(f"written to {self.out}")


def row_of(name: str) -> dict[str, Any]:
    """Version or error of one peer, and all that stands in its environment."""
    found = install(name)
    if isinstance(found, Failure):
        return {"name": name, "version": None, "error": found.error, "why": "", "environment": {}}
    version = next(v for k, v in found.versions.items() if k.lower().replace("_", "-") == name)
    return {
        "name": name,
        "version": version,
        "error": None,
        "why": PEERS[name].why,
        "environment": dict(found.versions),
    }


def line_of(row: Mapping[str, Any]) -> str:
    """`name version (what is unusual about it)`, or the error."""
    if row["error"] is not None:
        return f"{row['name']:20} cannot be installed: {row['error']}"
    return f"{row['name']:20} {row['version']:8} {row['why']}".rstrip()
