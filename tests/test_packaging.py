"""What is built is what the source holds: all of the package, nothing beside it; and what a release needs."""

import email
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import selftaught

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "selftaught"
BUILD = "from setuptools import build_meta as b; b.build_wheel('wheel'); b.build_sdist('sdist')"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built from, with the folders `wheel` and `sdist`; nothing is fetched."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip("pyproject.toml asks for setuptools 77")
    copy = tmp_path_factory.mktemp("build") / "tree"
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")
    shutil.copytree(ROOT / "src", copy / "src", ignore=unwanted)
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return copy


def source_files(tree: Path) -> set[str]:
    """The package's files, below `src`."""
    src = tree / "src"
    return {p.relative_to(src).as_posix() for p in (src / "selftaught").rglob("*") if p.is_file()}


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = (built / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packed = {n for n in names if not n.startswith(f"selftaught-{selftaught.__version__}.dist-info/")}
    assert packed == source_files(built)
    for one in ("py.typed", "app/report.html.jinja", "data/packaged/NOTICE.md", "data/packaged/emoji_noto.webp"):
        assert f"selftaught/{one}" in packed
    assert any(n.endswith(".txt") and "splits" in n for n in packed)
    assert {n.rpartition("/")[2] for n in names - packed} >= {"METADATA", "LICENSE", "entry_points.txt"}


def test_the_wheel_asks_for_the_core_only(built: Path) -> None:
    (wheel,) = (built / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (place,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        metadata = email.message_from_bytes(archive.read(place))
    needed = metadata.get_all("Requires-Dist") or []
    core = {line.partition(">=")[0] for line in needed if "extra ==" not in line}
    assert "torch" in core and not core & {"onnx", "flwr", "gymnasium", "cma", "huggingface_hub", "torchvision"}
    assert {"export", "hub", "dev"} <= set(metadata.get_all("Provides-Extra") or [])
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_source_archive_builds_the_same(built: Path) -> None:
    (sdist,) = (built / "sdist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    assert {f"src/{n}" for n in source_files(built)} <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


def release_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_release", ROOT / "scripts" / "check_release.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_file_states_one_version() -> None:
    assert set(release_check().versions(ROOT).values()) == {selftaught.__version__}


def test_a_release_needs_tag_versions_and_changelog(tmp_path: Path) -> None:
    check = release_check()
    (tmp_path / "src" / "selftaught").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "src" / "selftaught" / "__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.2\n")
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n")
    assert [line.partition(" ")[0] for line in check.problems("v1.2.3", tmp_path)] == [
        "CITATION.cff",
        "CHANGELOG.md",
    ]
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.3\n")
    (tmp_path / "CHANGELOG.md").write_text("## [1.2.3] - 2030-01-31\n")
    assert check.problems("v1.2.3", tmp_path) == []
    assert len(check.problems("v1.2.4", tmp_path)) == 4
    assert "no version tag" in check.problems("1.2.3", tmp_path)[0]
