"""The package imports without its heavy or fragile neighbours, and help without the heavy ones."""

import os
import subprocess
import sys

import pytest

BLOCKED = ("torchvision", "timm", "gradio", "faiss", "open_clip", "flwr", "gymnasium", "starlette", "uvicorn")
HEAVY = (
    "torch", "numpy", "scipy", "sklearn", "kornia", "PIL", "safetensors", "jaxtyping", "einops", "jinja2",
    "starlette", "uvicorn",
)  # fmt: skip

IMPORT_ALL = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None  # any import of it now raises
import importlib, pkgutil
import selftaught
found = [m.name for m in pkgutil.walk_packages(selftaught.__path__, "selftaught.")]
for name in found:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(found))
for name in {BLOCKED!r}:
    assert sys.modules[name] is None, name
try:
    import torchvision
except ImportError:
    pass
else:
    raise SystemExit("the block does not block")
"""


def python(code: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_without_optional_packages() -> None:
    assert int(python(IMPORT_ALL)) > 50


def test_the_package_alone_loads_nothing_heavy() -> None:
    """So that `selftaught --help` and reading the version do not wait for torch."""
    heavy = (*HEAVY, "tyro", "rich")
    code = f"import sys, selftaught; print([m for m in {heavy!r} if m in sys.modules], selftaught.__version__)"
    assert python(code).startswith("[] ")


@pytest.mark.parametrize(
    "args", [["--help"], *([c, "--help"] for c in ("pretrain", "export", "claim", "play", "doctor"))]
)
def test_help_does_not_wait_for_torch(args: list[str]) -> None:
    code = f"""
import sys
from selftaught.app.cli import main
try:
    main({args!r})
except SystemExit as end:
    assert not end.code, end.code
print([m for m in {HEAVY!r} if m in sys.modules])
"""
    out = python(code)
    assert "usage: selftaught" in out
    assert out.splitlines()[-1] == "[]"


def test_only_play_loads_a_server() -> None:
    """Any other command, to its end; that `play` does is seen by the last line."""
    code = """
import sys
from selftaught.app.cli import main
main(["methods"])
print([m for m in ("starlette", "uvicorn") if m in sys.modules])
main(["play", "no such folder"])
print([m for m in ("starlette", "uvicorn") if m in sys.modules])
"""
    lines = [line for line in python(code).splitlines() if line.startswith("[")]
    assert lines == ["[]", "['starlette', 'uvicorn']"]
