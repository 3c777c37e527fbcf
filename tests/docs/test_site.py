"""The site builds without a warning, forgets no page and fetches nothing; skipped where mkdocs is missing."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from benchmarks.pages import RESULTS

import selftaught
from selftaught.methods import METHODS

if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
    pytest.skip("mkdocs is not installed (extra docs)", allow_module_level=True)

_ROOT = Path(__file__).parents[2]


def built(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """`mkdocs build --strict` of the mkdocs.yml in `root`; with --quiet no warning would be counted."""
    run = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-f",
        str(root / "mkdocs.yml"),
        "-d",
        str(out),
    ]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(run, cwd=root, env=quiet, text=True, capture_output=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = built(_ROOT, out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_site", _ROOT / "scripts" / "docs_site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def navigation(site: Path) -> list[str]:
    """The pages in the navigation of the first one, in order."""
    return re.findall(r'<a href="([^"#:]+\.html)" class="md-nav__link', (site / "index.html").read_text("utf-8"))


def test_every_page_is_in_the_navigation_once(site: Path) -> None:
    docs = _ROOT / "docs"
    pages = {p.relative_to(docs).with_suffix(".html").as_posix() for p in docs.rglob("*.md")}
    shown = navigation(site)
    assert set(shown) >= pages | {"contributing.html", "changelog.html"}, sorted(pages - set(shown))
    assert all((site / page).is_file() for page in shown)


def test_every_method_and_every_claim_with_a_result_is_in_it(site: Path) -> None:
    shown = navigation(site)
    claims = {p.stem.removeprefix("claim_") for p in RESULTS.glob("claim_*.json")}
    assert {f"methods/{name}.html" for name in METHODS} <= set(shown)
    assert {f"claims/{name}.html" for name in claims} <= set(shown)


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text("utf-8"))
        assert [t for t in tags if re.search(r"(?:src|href)=\"?(?:https?:)?//", t)] == [], page.name


def test_links_between_the_pages_and_the_root_arrive(site: Path) -> None:
    index = (site / "index.html").read_text("utf-8")
    assert 'href="contributing.html#add-a-method-in-30-minutes"' in index and 'href="changelog.html"' in index
    contributing = (site / "contributing.html").read_text("utf-8")
    assert 'href="index.html#methods"' in contributing and 'id="add-a-method-in-30-minutes"' in contributing


def test_the_reference_names_what_can_be_called(site: Path) -> None:
    page = (site / "api.html").read_text("utf-8")
    public = {name for name in selftaught.__all__ if callable(getattr(selftaught, name))} - {"SelftaughtError"}
    for name in (*public, "Model.adapt", "data.folder.read_folder", "core.types.Method", "core.errors.DataError"):
        assert f'id="selftaught.{name}"' in page, name


def test_a_new_page_is_not_forgotten(hook: ModuleType) -> None:
    nav = ["index.md", {"Guides": "..."}, {"Methods": "methods/*.md"}, {"More": ["z.md", {"Old": ["old/*.md"]}]}]
    pages = ["a.md", "index.md", "methods/byol.md", "methods/new.md", "old/1.md", "other/b.md", "z.md"]
    assert hook.expanded(nav, pages) == [
        "index.md",
        {"Guides": ["a.md", "other/b.md"]},
        {"Methods": ["methods/byol.md", "methods/new.md"]},
        {"More": ["z.md", {"Old": ["old/1.md"]}]},
    ]
    assert hook.expanded([{"Title": "a.md"}, "..."], ["a.md", "b.md"]) == [{"Title": "a.md"}, "b.md"]


def test_what_is_broken_fails(tmp_path: Path) -> None:
    """Each of these is a warning, and a warning is an error; the same folder without them is fine."""
    page = tmp_path / "docs" / "index.md"
    page.parent.mkdir()
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/index.md"):
        (tmp_path / name).write_text("# Page\n\nFine.\n", "utf-8")
    config = (_ROOT / "mkdocs.yml").read_text("utf-8").replace("paths: [src]", f"paths: [{_ROOT / 'src'}]")
    alone = re.sub(r"^nav:\n(?:  .*\n)+", 'nav: ["..."]\n', config, flags=re.MULTILINE)
    (tmp_path / "mkdocs.yml").write_text(alone, "utf-8")
    shutil.copytree(_ROOT / "scripts", tmp_path / "scripts")
    fine = built(tmp_path, tmp_path / "out")
    assert fine.returncode == 0, fine.stderr
    page.write_text("# Page\n\n[x](gone.md) [y](#no-such-heading) [z][selftaught.no_such_name]\n", "utf-8")
    broken = built(tmp_path, tmp_path / "out")
    assert broken.returncode != 0
    for wrong in ("gone.md", "no-such-heading", "selftaught.no_such_name"):
        assert re.search(rf"WARNING.*{wrong}", broken.stderr), broken.stderr
