"""Whether the tree is what a tag says: python scripts/check_release.py v1.2.3; prints what is wrong, and fails."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def versions(root: Path) -> dict[str, str]:
    """The version as each file that states it has it; an empty text where it states none."""
    code = (root / "src" / "selftaught" / "__init__.py").read_text(encoding="utf-8")
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    return {
        "pyproject.toml": tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "version"
        ],
        "src/selftaught/__init__.py": _first(r'^__version__ = "([^"]+)"', code),
        "CITATION.cff": _first(r"^version: (\S+)", citation),
    }


def problems(tag: str, root: Path = ROOT) -> list[str]:
    """One line for each thing that keeps `tag` from being released; none where all is well."""
    version = tag.removeprefix("v")
    if not re.fullmatch(r"v\d+\.\d+\.\d+((a|b|rc)\d+)?", tag):
        return [f"{tag!r} is no version tag: v1.2.3 or v1.2.3rc1"]
    found = [
        f"{file} says {said!r}, the tag {version!r}" for file, said in versions(root).items() if said != version
    ]
    log = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", log, re.MULTILINE):
        found.append(f"CHANGELOG.md has no heading '## [{version}] - YYYY-MM-DD': name [Unreleased] so")
    return found


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    return match.group(1) if match else ""


if __name__ == "__main__":
    wrong = problems(*sys.argv[1:2] or [""])
    print("\n".join(wrong) or "ready")
    sys.exit(bool(wrong))
