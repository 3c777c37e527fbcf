"""A page that shows scenes, what was to be written about them and what models wrote."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from PIL import Image
from torch import Tensor

from selftaught.artifacts.files import write_text
from selftaught.graphs.events import MOMENTS
from selftaught.graphs.world import Scene, render

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
img { image-rendering: pixelated; width: 8rem; height: 8rem; margin-right: .4rem; }
table { border-collapse: collapse; margin: .6rem 0 2rem; }
th, td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid #ccc; vertical-align: top; }
.wrong { color: #a31515; }
.wrong::before { content: "✗ "; }
.right::before { content: "✓ "; }
</style>
<h1>{{ title }}</h1>
<p>{{ note }}</p>
{% for s in scenes %}
<h2>{{ s.place }}: {{ s.sentence }}</h2>
<p>{% for p in s.pictures %}<img src="{{ p.address }}" alt="{{ p.moment }}">{% endfor %}</p>
<table>
<tr><th></th><th>true</th>{% for m in models %}<th>{{ m }}</th>{% endfor %}</tr>
{% for r in s.rows %}
<tr><th>{{ r.moment }}</th><td>{{ r.true }}</td>
{%- for t in r.written %}<td class="{{ 'right' if t == r.true else 'wrong' }}">{{ t }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endfor %}
</html>
"""


def write_page(
    path: str | Path,
    title: str,
    note: str,
    scenes: Sequence[Scene],
    true: Sequence[Sequence[str]],
    written: Mapping[str, Sequence[Sequence[str]]],
) -> None:
    """One HTML file without scripts or addresses; right and wrong are marked by a sign and a colour.

    `true` and each of `written` hold three texts a scene. Raises ValueError for other lengths, SaveError.
    """
    rows = [
        {
            "place": s.place,
            "sentence": s.sentence,
            "pictures": [{"moment": m, "address": _address(p)} for m, p in zip(MOMENTS, render(s), strict=True)],
            "rows": [
                {"moment": moment, "true": true[n][k], "written": [texts[n][k] for texts in written.values()]}
                for k, moment in enumerate(MOMENTS)
            ],
        }
        for n, s in enumerate(scenes)
    ]
    if any(len(texts) != len(scenes) for texts in (true, *written.values())):
        raise ValueError(f"{len(scenes)} scenes need as many true and written texts")
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    write_text(path, page.render(title=title, note=note, scenes=rows, models=list(written)))


def _address(picture: Tensor) -> str:
    """A picture [3 H W] as a data URI."""
    held = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
