"""The pages keep up with the code: one a method, true defaults, links that lead somewhere, examples that run."""

import re
import shlex
import unicodedata
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from selftaught.app import cli
from selftaught.app import pretrain as training
from selftaught.methods import METHODS

_ROOT = Path(__file__).parents[2]
_PAGES = sorted([*_ROOT.glob("*.md"), *(_ROOT / "docs").rglob("*.md")])
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_ELSEWHERE = ("tutorial.md", "CONTRIBUTING.md")
"""Pages whose code has a test file of its own."""
_NAMED = ("tom.jpg", "rex.jpg", "ida.jpg")
_EXTERNAL = ("http://", "https://", "mailto:")


def _blocks(page: Path) -> list[str]:
    """Python that is to run: not after a comment that says why not, nor of pages with a test file of their own."""
    if page.name in _ELSEWHERE:
        return []
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"(<!-- not run: \S.*? -->\s*)?^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for left_out, block in found if not left_out]


def _prose(page: Path) -> str:
    """The page without its code."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text(encoding="utf-8")))


def _anchors(page: Path) -> set[str]:
    """The fragments that headings give, as GitHub forms them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#{1,6} +(.+?) *#*$", text, flags=re.MULTILINE)
    named = re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text)
    kept = ("".join(c for c in t.lower() if c in " -_" or unicodedata.category(c)[0] in "LN") for t in titles)
    return {t.replace(" ", "-") for t in kept} | set(named)


def _broken(page: Path) -> list[str]:
    wrong = []
    for link in _LINK.findall(_prose(page)):
        if link.startswith(_EXTERNAL):
            continue
        place, _, fragment = unquote(link).partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or not target.is_relative_to(_ROOT):
            wrong.append(f"{link} (no such file)")
        elif fragment and target.suffix == ".md" and fragment not in _anchors(target):
            wrong.append(f"{link} (no such heading)")
    return wrong


@pytest.mark.parametrize("page", _PAGES, ids=lambda p: p.relative_to(_ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    assert not _broken(page), f"{page.name}: {_broken(page)}"


def test_a_broken_link_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}._ROOT", tmp_path)
    (tmp_path / "there.md").write_text("# A `b` heading, here!\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md#a-b-heading-here) [b](gone.md) [c](there.md#not) `[d](code.md)`", encoding="utf-8"
    )
    assert _broken(page) == ["gone.md (no such file)", "there.md#not (no such heading)"]


def test_every_page_can_be_reached_from_the_index() -> None:
    index = _ROOT / "docs" / "index.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in _LINK.findall(_prose(index))}
    lost = [p.relative_to(_ROOT).as_posix() for p in _PAGES if p.is_relative_to(index.parent) and p not in linked]
    assert lost == ["docs/index.md"]


def test_every_method_has_a_page_and_every_page_a_method() -> None:
    assert {p.stem for p in (_ROOT / "docs" / "methods").glob("*.md")} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_page_says_what_the_method_is(name: str) -> None:
    text = (_ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    wanted = ["Formula", "When", "When not", "The paper's and ours", "Options"]
    assert [h for h in headings if h in wanted] == wanted
    identifiers = set(re.findall(r"arXiv (\d{4}\.\d{5})", _docstring(name)))
    assert identifiers and identifiers <= set(re.findall(r"arXiv (\d{4}\.\d{5})", " ".join(text.split())))


@pytest.mark.parametrize("name", METHODS)
def test_the_table_of_options_is_the_dataclass(name: str) -> None:
    text = (_ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8").partition("## Options")[2]
    written = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", text, flags=re.MULTILINE))
    kind: Any = METHODS[name]
    assert written == {f.name: repr(f.default) for f in fields(kind)}, f"docs/methods/{name}.md"


@pytest.mark.parametrize("page", [p for p in _PAGES if _blocks(p)], ids=lambda p: p.stem)
def test_its_python_runs_as_written(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with a few pictures, under the names that the pages use; training is cut to two steps."""
    rng = np.random.default_rng(0)
    places = [f"photos/deep/{n}.png" for n in range(40)]
    for place in (*places, "photos/b.jpg", "new.jpg", "animals/cat/c.png", "animals/dog/d.png", *_NAMED):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / place)
    monkeypatch.chdir(tmp_path)
    pretrain, short = training.pretrain, {"steps": 2, "size": 16, "quiet": True}
    monkeypatch.setattr(training, "pretrain", lambda data, **options: pretrain(data, **options | short))
    names: dict[str, Any] = {"__name__": "page"}
    for block in _blocks(page):
        exec(compile(block, page.name, "exec"), names)


def test_a_block_left_out_says_why(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: needs a server -->\n```python\na\n```\n\n```python\nb\n```\n", encoding="utf-8")
    assert _blocks(page) == ["b\n"]
    page.write_text("<!-- not run: -->\n```python\na\n```\n", encoding="utf-8")
    assert _blocks(page) == ["a\n"]


@pytest.mark.parametrize("page", _PAGES, ids=lambda p: p.relative_to(_ROOT).as_posix())
def test_its_commands_exist_with_these_options(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `selftaught ...` line of a shell block is read by the command line, which then does nothing."""
    text = page.read_text(encoding="utf-8")
    shell = "\n".join(re.findall(r"^```(?:sh|bash|console)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    for line in shell.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words[:1] != ["selftaught"] or "NAME" in words:
            continue
        cut = next((n for n, w in enumerate(words) if w in ("|", ">", "&&", "&", "&>", ";")), len(words))
        called: list[str] = []
        commands = {name: _idle(run, called) for name, run in cli.COMMANDS.items()}
        monkeypatch.setattr(cli, "COMMANDS", commands)
        assert cli.main(words[1:cut]) == 0, line
        assert called == [words[1].replace("-", "_")] or called, line


def _idle(run: Callable[..., Any], called: list[str]) -> Callable[..., Any]:
    """`run` to the eye of the command line, doing nothing."""

    @wraps(run)
    def nothing(*args: Any, **options: Any) -> None:
        called.append(run.__name__)

    return nothing


def _docstring(name: str) -> str:
    return import_module(METHODS[name].__module__).__doc__ or ""
