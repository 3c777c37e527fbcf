"""Draw the packaged emoji pictures anew from npm packages, or prove that the packaged ones are those.

    python scripts/build_emoji.py           # writes src/selftaught/data/packaged/
    python scripts/build_emoji.py --check   # writes nothing; exit code 1 when a pixel or a word differs

Needs npm and `pip install selftaught[rebuild]`. An emoji is kept when all three drawing styles have it, so
that every class has one picture of each style; that leaves out skin tones (not in the list of names) and
national flags (one style lacks them). Sheets are compared by pixel, because the bytes of a WebP file depend
on the version of the encoder.
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

PACKAGES = {
    "twemoji": "@discordapp/twemoji@16.0.1",
    "noto": "@iconify-json/noto@1.2.9",
    "fluent_flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "names": "unicode-emoji-json@0.9.0",
    "keywords": "emojilib@4.0.3",
    "licences": "spdx-license-list@6.12.0",
}
STYLES = ("twemoji", "noto", "fluent_flat")
SIZE, COLUMNS = 32, 40
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
FOLDER = Path(__file__).parents[1] / "src" / "selftaught" / "data" / "packaged"

# Families: emoji so alike that two splits must not share them. The first rule that matches the name decides;
# otherwise the family is the name without words that only vary the person, the colour, the size or the side.
FAMILY_RULES = (
    (r"o[’']clock$|-thirty$", "clock face"),
    (r"^keycap", "keycap"),
    (r"\bmoon\b", "moon"),
    (r"\barrow\b|\barrows\b", "arrow"),
    (r"\bflags?\b", "flag"),
    (r"^japanese .*button$", "japanese button"),
    (r"\bbutton\b", "button"),
    (r"^family\b", "family"),
    (r"^kiss(?! mark)\b", "kiss"),
    (r"^couple with heart", "couple with heart"),
    (r"holding hands$", "holding hands"),
    (r"^globe showing", "globe"),
    (r"^(aries|taurus|gemini|cancer|leo|virgo|libra|scorpio|sagittarius|capricorn|aquarius|pisces|ophiuchus)$",
     "zodiac"),
    (r"place medal$", "place medal"),
    (r"\bmailbox\b", "mailbox"),
    (r"-no-evil monkey$", "no-evil monkey"),
    (r" suit$", "card suit"),
    (r"^(black|white|red|.*exclamation|.*question).*mark$", "punctuation mark"),
    (r"index pointing", "index pointing"),
    (r"(volume|muted speaker)$", "speaker"),
    (r"^(un)?locked", "lock"),
    (r"^hourglass", "hourglass"),
    (r"\bbattery$", "battery"),
    (r"^sun(rise|set)?\b.*\b(cloud|mountains|buildings|sunset|sunrise)$|^sun(rise|set)$", "sun scene"),
    (r"\bheart\b", "heart"),
    (r"\bbooks?\b|^books$", "book"),
    (r"(Santa|Mrs\. |Mx )Claus", "claus"),
    (r"^mer(maid|man|person)", "mermaid"),
    (r"^(prince|princess|person with crown)$", "crowned"),
)  # fmt: skip
VARIATIONS = re.compile(
    r"\b(man|woman|person|men|women|people|boy|girl|child|baby|adult|older|old|"
    r"red|orange|yellow|green|blue|purple|brown|black|white|pink|grey|"
    r"large|medium|small|left|right|facing|leftwards|rightwards|with slash|in|and|of|with|the)\b"
)


@dataclass(frozen=True)
class IconSet:
    """One icon collection: names by code points, bodies and mirrored aliases by name."""

    chars: dict[str, str]
    icons: dict[str, Any]

    def svg(self, emoji: str, name: str) -> str | None:
        """The drawing, found by code points, else by name; None when the collection has none."""
        found = self.chars.get(_code(emoji)) or self.chars.get(_code(emoji, bare=True)) or name
        aliases, mirrored = self.icons.get("aliases", {}), False
        while found in aliases:
            mirrored ^= bool(aliases[found].get("hFlip"))
            found = aliases[found]["parent"]
        if found not in self.icons["icons"]:
            return None
        icon = self.icons["icons"][found]
        width, height = (icon.get(k, self.icons[k]) for k in ("width", "height"))
        body = icon["body"]
        if mirrored:
            body = f'<g transform="translate({width} 0) scale(-1 1)">{body}</g>'
        head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f'<svg {head} viewBox="0 0 {width} {height}">{body}</svg>'


@dataclass(frozen=True)
class SvgFolder:
    """A folder of drawings named by code points."""

    folder: Path

    def svg(self, emoji: str, name: str) -> str | None:
        """The drawing, or None."""
        for code in (_code(emoji), _code(emoji, bare=True)):
            if (file := self.folder / f"{code}.svg").exists():
                return file.read_text(encoding="utf-8")
        return None


def _code(emoji: str, bare: bool = False) -> str:
    return "-".join(f"{ord(c):x}" for c in emoji if not (bare and c == "\ufe0f"))


def _download(into: Path) -> dict[str, Path]:
    """Every package unpacked to a folder of its own."""
    folders = {}
    for key, package in PACKAGES.items():
        done = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=into, check=True, capture_output=True, text=True
        )
        archive = into / done.stdout.strip().splitlines()[-1]
        with tarfile.open(archive) as tar:
            tar.extractall(into / key, filter="data")
        folders[key] = into / key / "package"
    return folders


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def family_of(name: str) -> str:
    """The family of near-duplicates a name belongs to; most families have one member."""
    for pattern, family in FAMILY_RULES:
        if re.search(pattern, name, re.IGNORECASE):
            return family
    words = VARIATIONS.sub(" ", re.sub("[-:,]", " ", name)).split()
    return " ".join(words) or "person"


def _order(family: str) -> str:
    return hashlib.sha256(family.encode()).hexdigest()


def assign_splits(emoji: list[dict[str, Any]]) -> None:
    """Give every family to one split so that each Unicode group keeps the shares; large families come first.

    A family counts for the group most of its members are in. The next family goes where most is missing, so
    the largest land in training; ties are settled by a hash of the family's name.
    """
    members: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in emoji:
        members[one["family"]].append(one)
    group = {f: Counter(o["group"] for o in these).most_common(1)[0][0] for f, these in members.items()}
    size = Counter(group[o["family"]] for o in emoji)
    taken: dict[str, Counter[str]] = defaultdict(Counter)
    for family in sorted(members, key=lambda f: (-len(members[f]), _order(f))):
        here = group[family]
        missing = {s: share * size[here] - taken[here][s] for s, share in SHARES.items()}
        split = max(missing, key=lambda s: missing[s])
        taken[here][split] += len(members[family])
        for one in members[family]:
            one["split"] = split


def _draw(svg: str) -> Image.Image:
    """SIZE x SIZE on white; drawings that are not square are fitted in and centred."""
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=SIZE, height=SIZE, background="#ffffff", skip_system_fonts=True
    )
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    if picture.size == (SIZE, SIZE):
        return picture
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    picture.thumbnail((SIZE, SIZE), Image.Resampling.BOX)
    canvas.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
    return canvas


def build(packages: dict[str, Path]) -> tuple[dict[str, Image.Image], dict[str, Any], dict[str, str]]:
    """The sheets by style, the metadata, and the licence texts by file name."""
    sources: dict[str, IconSet | SvgFolder] = {
        style: IconSet(_json(packages[style] / "chars.json"), _json(packages[style] / "icons.json"))
        for style in STYLES[1:]
    }
    sources["twemoji"] = SvgFolder(packages["twemoji"] / "dist" / "svg")
    listed = _json(packages["names"] / "data-by-emoji.json")
    keywords = _json(packages["keywords"] / "dist" / "emoji-en-US.json")
    emoji: list[dict[str, Any]] = []
    drawings: dict[str, list[str]] = {style: [] for style in STYLES}
    for char, about in listed.items():
        svgs = {s: sources[s].svg(char, about["slug"].replace("_", "-")) for s in STYLES}
        if any(svg is None for svg in svgs.values()):
            continue
        for style, svg in svgs.items():
            drawings[style].append(svg or "")
        words = [w for w in keywords.get(char, []) if w != about["slug"]]
        emoji.append({
            "emoji": char, "name": about["name"], "group": about["group"],
            "family": family_of(about["name"]), "keywords": words,
        })  # fmt: skip
    assign_splits(emoji)
    meta = {"size": SIZE, "columns": COLUMNS, "styles": list(STYLES), "packages": PACKAGES, "emoji": emoji}
    return {style: _sheet(drawings[style]) for style in STYLES}, meta, _licences(packages)


def _sheet(drawings: list[str]) -> Image.Image:
    rows = -(-len(drawings) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SIZE, rows * SIZE), "white")
    for n, svg in enumerate(drawings):
        sheet.paste(_draw(svg), (n % COLUMNS * SIZE, n // COLUMNS * SIZE))
    return sheet


def _licences(packages: dict[str, Path]) -> dict[str, str]:
    def text(spdx: str) -> str:
        return _json(packages["licences"] / "licenses" / f"{spdx}.json")["licenseText"].strip() + "\n"

    # The icon packages name their licence but do not carry its text; the standard texts stand in.
    mit = re.sub(r"Copyright \(c\) .*", "Copyright (c) Microsoft Corporation.", text("MIT"), count=1)
    return {
        "LICENSE-twemoji.txt": text("CC-BY-4.0"),
        "LICENSE-noto.txt": text("Apache-2.0"),
        "LICENSE-fluent-emoji.txt": mit,
        "LICENSE-unicode-emoji-json.txt": (packages["names"] / "LICENSE").read_text(encoding="utf-8"),
        "LICENSE-emojilib.txt": (packages["keywords"] / "LICENSE").read_text(encoding="utf-8"),
    }


def _words(meta: dict[str, Any]) -> str:
    """One emoji a line, so that changes can be read."""
    lines = ",\n".join(json.dumps(e, ensure_ascii=False, separators=(",", ":")) for e in meta["emoji"])
    head = json.dumps({k: v for k, v in meta.items() if k != "emoji"})
    return f'{head[:-1]}, "emoji": [\n{lines}\n]}}\n'


def write(sheets: dict[str, Image.Image], texts: dict[str, str]) -> None:
    """Put everything into the package."""
    for style, sheet in sheets.items():
        target = FOLDER / f"emoji_{style}.webp"
        partial = target.with_suffix(".partial")
        sheet.save(partial, format="WEBP", lossless=True, quality=100, method=6, exact=True)
        partial.replace(target)
    for name, text in texts.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def differences(sheets: dict[str, Image.Image], texts: dict[str, str]) -> list[str]:
    """The packaged files that are missing or not what was built."""
    wrong = []
    for style, sheet in sheets.items():
        path = FOLDER / f"emoji_{style}.webp"
        if not path.exists() or not np.array_equal(Image.open(path).convert("RGB"), sheet):
            wrong.append(path.name)
    for name, text in texts.items():
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            wrong.append(name)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the packaged files, write nothing")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        sheets, meta, licences = build(_download(Path(folder)))
    texts = {**licences, "emoji.json": _words(meta)}
    if not check:
        write(sheets, texts)
    wrong = differences(sheets, texts)
    print(f"{len(meta['emoji'])} emoji, {len(STYLES)} styles:", f"differ: {wrong}" if wrong else "equal")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
