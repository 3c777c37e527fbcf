"""What mkdocs is told beside mkdocs.yml: a navigation that forgets no page, and two pages from above docs/.

In the navigation a pattern ("methods/*.md") stands for the pages that fit it, in the order of their paths, and
"..." for every page that is named nowhere else. So a page that was only written is in the navigation all the same.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REST = "..."
ROOT_PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security-policy.md",
}
"""Files beside docs/ that the site shows, and their names there."""
EXAMPLES = "examples"
"""A folder beside docs/ whose programs the site holds, for pages that link to them."""

_LINK = re.compile(r"(?<=\]\()([^)\s#]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Patterns of the navigation become pages."""
    folder = Path(config.docs_dir)
    pages = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*.md"))]
    config.nav = expanded(config.nav or [], [*pages, *ROOT_PAGES.values()])
    return config


def expanded(nav: Sequence[Any], pages: Sequence[str]) -> list[Any]:
    """`nav` with patterns and "..." replaced by those of `pages` they stand for; every page is in it once."""
    named = {p for p in _strings(nav) if p in pages}
    claimed = named | {p for entry in _strings(nav) for p in _fitting(entry, pages)}

    def one(entry: Any) -> list[Any]:
        if isinstance(entry, dict):
            return [{title: many([below] if isinstance(below, str) else below) if _is_open(below) else below}
                    for title, below in entry.items()]  # fmt: skip
        if entry == REST:
            return [p for p in pages if p not in claimed]
        return [p for p in _fitting(entry, pages) if p not in named] if "*" in entry else [entry]

    def many(entries: Sequence[Any]) -> list[Any]:
        return [out for entry in entries for out in one(entry)]

    return many(nav)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages and programs of the root join those of docs/."""
    root = Path(config.docs_dir).parent
    for name, place in ROOT_PAGES.items():
        files.append(File.generated(config, place, content=(root / name).read_text(encoding="utf-8")))
    for program in sorted((root / EXAMPLES).rglob("*.py")):
        files.append(File.generated(config, program.relative_to(root).as_posix(), abs_src_path=str(program)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between docs/ and the root lead to where the pages are on the site."""
    place = page.file.src_uri
    if place == "index.md":
        page.meta["hide"] = ["navigation"]  # nothing but itself would stand there
    up = "../" * place.count("/")
    if place in ROOT_PAGES.values():
        return _LINK.sub(lambda m: ROOT_PAGES.get(m[1], m[1].removeprefix("docs/")), markdown)
    there = {f"{up}../{name}": up + target for name, target in ROOT_PAGES.items()}
    return _LINK.sub(lambda m: there.get(m[1], m[1].replace(f"{up}../{EXAMPLES}/", f"{up}{EXAMPLES}/")), markdown)


def _strings(nav: Any) -> Iterator[str]:
    """Every page and pattern, at any depth."""
    if isinstance(nav, str):
        yield nav
    else:
        for below in nav.values() if isinstance(nav, dict) else nav:
            yield from _strings(below)


def _is_open(entry: Any) -> bool:
    """Whether there is something to expand: a lone page keeps the title it was given."""
    return not isinstance(entry, str) or entry == REST or "*" in entry


def _fitting(pattern: str, pages: Sequence[str]) -> list[str]:
    """Those of the same depth that the pattern fits."""
    if "*" not in pattern:
        return []
    return [p for p in pages if p.count("/") == pattern.count("/") and Path(p).match(pattern)]
