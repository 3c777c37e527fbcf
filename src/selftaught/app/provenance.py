"""Where figures come from: the commit of the code and the kind of machine, in words that name no place."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import selftaught

_ENDS_AT = 40
"""Characters of a commit's name."""


def commit() -> str:
    """The commit of the running code, with a note where its files were changed since; "unknown" outside git."""
    package = Path(selftaught.__file__).parent
    # An installed copy may lie inside another project's repository, whose commit would say nothing.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return "unknown"
    name = _git(package, "rev-parse", "HEAD")
    if not name:
        return "unknown"
    changed = _git(package, "status", "--porcelain", "--", ".")
    return name[:_ENDS_AT] + (" with changes" if changed else "")


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, torch's threads and version, Python, system, and how busy it is.

    `busy` is the number of programs that wanted a core in the last minute (null where the system does not say);
    above `cores`, seconds by the clock say little.
    """
    import torch

    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "busy": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def processor() -> str:
    """The processor's name as the system gives it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine() or "unknown"


def _git(folder: Path, *words: str) -> str | None:
    """What git prints there, or None where there is no git, no repository or an error."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
