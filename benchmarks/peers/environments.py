"""One environment for each peer with pinned versions, in a git-ignored folder: `python -m benchmarks peers`.

torch is installed once, as the tested CPU build, and every peer's environment sees that copy after its own
packages; peers do not see each other. pip may not change torch, so no peer can pull in another build of it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".peers"
TORCH, NUMPY = "torch==2.13.0", "numpy==2.4.6"
TORCHVISION = "torchvision==0.28.0"
MARK = ".installed.json"
"""Stands in a finished environment."""
SHIM = "import benchmarks.peers.torchvision_operators"
"""torchvision's wheel needs it on a torch without CUDA; see there."""


@final
@dataclass(frozen=True)
class Peer:
    """How `name` is installed: `pinned` with dependencies, `bare` without, `source` built from its source
    distribution after removing C files that Cython had generated for older Pythons. `proof` is Python that
    fails where the installation does not work; `why` says what is unusual about it."""

    name: str
    pinned: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    source: str | None = None
    proof: str = ""
    why: str = ""


@final
@dataclass(frozen=True)
class Environment:
    """An environment that works: its interpreter and the versions in it."""

    name: str
    python: Path
    versions: Mapping[str, str]


@final
@dataclass(frozen=True)
class Failure:
    """An installation that does not work; `error` is the last line of what the installer said."""

    name: str
    error: str


PEERS: Mapping[str, Peer] = {
    p.name: p
    for p in (
        Peer(
            "learn2learn",
            pinned=("Cython==0.29.37", "gym", "scipy", "requests", "tqdm", "pillow"),
            bare=(TORCHVISION,),
            source="learn2learn==0.2.0",
            proof=f"{SHIM}; import learn2learn",
            why="needs a C compiler: its C files are too old for Python 3.11",
        ),
        Peer("higher", pinned=("higher==0.2.1",), proof="import higher"),
        Peer("torchopt", pinned=("torchopt==0.7.3",), proof="import torchopt"),
        Peer("parallel-metalearn", pinned=("parallel-metalearn==0.5.6",), proof="import metalearn"),
        Peer(
            "easyfsl",
            pinned=("matplotlib", "pandas", "tqdm", "pillow"),
            bare=("easyfsl==1.5.0", TORCHVISION),
            proof=f"{SHIM}; import easyfsl.methods",
            why="its torchvision would replace torch by another build",
        ),
        Peer(
            "lightly",
            pinned=("hydra-core", "tqdm", "pytorch_lightning", "pillow"),
            bare=("lightly==1.6.0", TORCHVISION),
            proof=f"{SHIM}; import lightly.loss, lightly.transforms",
            why="its torchvision would replace torch by another build",
        ),
    )
}
"""Peers that can be timed."""

REFUSED: Mapping[str, str] = {
    "torchmeta": "torchmeta==1.8.0",
    "solo-learn": "solo-learn==1.0.2",
    "betty-ml": "betty-ml==0.2.1",
}
"""Peers that cannot be installed beside this torch and Python: asked for by name, they give pip's own error."""


def install(name: str, folder: Path = FOLDER) -> Environment | Failure:
    """The environment of `name`, made where it is missing or its pins have changed; takes a minute or two.

    A peer of `REFUSED` is only asked for, in an environment that is thrown away. Raises KeyError for a name in
    neither table.
    """
    if name in REFUSED:
        return _ask_for(name, folder)
    peer = PEERS[name]
    found = installed(name, folder)
    if found is not None:
        return found
    place = folder / name
    try:
        _make(place, _shared(folder))
        _pip(place, ["install", *_constraints(peer), *peer.pinned])
        if peer.bare:
            _pip(place, ["install", "--no-deps", *peer.bare])
        if peer.source is not None:
            _from_source(place, peer.source)
        _run([_python(place), "-c", peer.proof])
    except _Refusal as error:
        return Failure(name, str(error))
    found = Environment(name, _python(place), _versions(place))
    (place / MARK).write_text(json.dumps({"peer": _identity(peer), "versions": dict(found.versions)}))
    return found


def installed(name: str, folder: Path = FOLDER) -> Environment | None:
    """What `install` has made for the pins of now, without asking anything of the network; else None."""
    mark = folder / name / MARK
    if name not in PEERS or not mark.exists():
        return None
    content = json.loads(mark.read_text())
    if content["peer"] != _identity(PEERS[name]):
        return None
    return Environment(name, _python(folder / name), content["versions"])


class _Refusal(RuntimeError):
    """The last line of a command that failed, and all that it said."""

    def __init__(self, words: str) -> None:
        super().__init__(last_error(words))
        self.words = words


def _identity(peer: Peer) -> str:
    """Everything an environment depends on, so that a change of pins makes it anew."""
    file = _pins(peer.name)
    return json.dumps([asdict(peer), file.read_text() if file.exists() else "", TORCH, NUMPY, sys.version])


def _pins(name: str) -> Path:
    """The file with the versions of all that a peer brings along."""
    return Path(__file__).parent / f"{name}.txt"


def _constraints(peer: Peer) -> list[str]:
    file = _pins(peer.name)
    return ["-c", str(file)] if file.exists() else []


def _shared(folder: Path) -> Path:
    """The one environment that holds torch; made once."""
    place, mark = folder / "torch", f"{TORCH} {NUMPY} {sys.version}"
    if not (place / MARK).exists() or (place / MARK).read_text() != mark:
        _make(place, None)
        _pip(place, ["install", TORCH, NUMPY])
        (place / MARK).write_text(mark)
    return place


def _make(place: Path, shared: Path | None) -> None:
    """A new environment; packages of `shared` are found after its own."""
    _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(place)])
    if shared is not None:
        (_packages(place) / "shared_torch.pth").write_text(f"{_packages(shared)}\n")


def _from_source(place: Path, requirement: str) -> None:
    """Build a source distribution whose C files are too old from its Cython files."""
    with tempfile.TemporaryDirectory(dir=place) as name:
        there = Path(name)
        _pip(
            place,
            ["download", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "-d", name, requirement],
        )
        with tarfile.open(next(there.glob("*.tar.gz"))) as archive:
            archive.extractall(there, filter="data")
        source = next(p for p in there.iterdir() if p.is_dir())
        shutil.rmtree(source / ".eggs", ignore_errors=True)
        for file in source.rglob("*.pyx"):
            file.with_suffix(".c").unlink(missing_ok=True)
            _run([_python(place), "-m", "cython", "-3", str(file)])
        _pip(place, ["install", "--no-deps", "--no-build-isolation", str(source)])


def _ask_for(name: str, folder: Path) -> Failure:
    """pip's answer to a peer that cannot stand beside this torch; nothing is installed."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        try:
            _make(Path(place), _shared(folder))
            # In words: the reason for a conflict is not among what pip says when it is quiet.
            _pip(Path(place), ["install", "--dry-run", REFUSED[name]], quiet=False)
        except _Refusal as error:
            return Failure(name, f"{error} {reason(error.words)}".strip())
    return Failure(name, f"pip finds versions for {REFUSED[name]} after all: move it to the table of peers")


def _pip(place: Path, arguments: Sequence[str], quiet: bool = True) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt", dir=place) as pins:
        pins.write(f"{TORCH}\n{NUMPY}\n")
        pins.flush()
        before = ["--python", str(_python(place)), "--disable-pip-version-check"]
        first, *rest = arguments
        keep = ["-c", pins.name] if first == "install" else []
        _run([sys.executable, "-m", "pip", *before, first, *["-q"] * quiet, *keep, *rest])


def _run(command: Sequence[str | Path]) -> str:
    """Standard output of a command; raises _Refusal with the last line it said when it fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONNOUSERSITE": "1"}
    done = subprocess.run(
        [str(c) for c in command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise _Refusal(
            f"{done.stdout}\n{done.stderr}" if done.stderr or done.stdout else f"status {done.returncode}"
        )
    return done.stdout


def last_error(words: str) -> str:
    """The last line that starts with ERROR and is more than a pointer to pip's pages, else the last line that is
    no hint or notice of pip's."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    errors = [s for s in lines if s.startswith("ERROR") and "ResolutionImpossible" not in s]
    others = [s for s in lines if not s.startswith(("hint:", "note:", "[notice]", "WARNING"))]
    return (errors or others or lines or [""])[-1]


def reason(words: str) -> str:
    """What of pip's answer says which torch or Python a package wants, in brackets; empty where nothing does."""
    for line in words.splitlines():
        wanted = re.search(r"\S+ \S+ depends on torch\b[^;]*|Requires-Python [^;]*", line)
        if wanted and wanted[0].split()[-1] != "torch":
            return f"({wanted[0].strip()})"
    return ""


def _versions(place: Path) -> dict[str, str]:
    """Packages of the environment itself and those that it shares."""
    code = (
        "import json, importlib.metadata as m; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    )
    found: dict[str, str] = json.loads(_run([_python(place), "-c", code]))
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _python(place: Path) -> Path:
    return place / "bin" / "python"


def _packages(place: Path) -> Path:
    return next((place / "lib").glob("python3*")) / "site-packages"
