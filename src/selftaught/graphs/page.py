"""A page that shows scenes, what was to be written about them and what models wrote."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image
from torch import Tensor

from selftaught.artifacts.files import write_text
from selftaught.graphs.events import MOMENTS
from selftaught.graphs.world import SIDE, Scene, render

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h2 { font-size: 1.2rem; }
figure { display: inline-block; margin: 0 .4rem 0 0; position: relative; text-align: center; }
img { image-rendering: pixelated; width: 11rem; height: 11rem; display: block; }
figure b { position: absolute; transform: translate(-50%, -50%); font-size: 14px; color: #fff;
  pointer-events: none; text-shadow: 0 0 2px #000, 0 0 2px #000, 0 0 3px #000; }
.picture { position: relative; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0 2rem; table-layout: fixed; width: 100%; min-width: 46rem; }
th, td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid #ccc; vertical-align: top; }
th:first-child { width: 5rem; padding-left: 0; }
.wrong { color: #a31515; }
.wrong::before { content: "✗ "; }
.right::before { content: "✓ "; }
</style>
<h1>{{ title }}</h1>
<p>{{ note }} The numbers on the pictures are the tags in the sentences.</p>
<p>Texts that are right in every word, of {{ texts }}: {% for m, right in totals %}
{{- m }} {{ right }}{{ "." if loop.last else ", " }}{% endfor %}</p>
{% for s in scenes %}
<h2>On {{ s.place }}: {{ s.sentence }}</h2>
<div>{% for p in s.pictures %}<figure><div class="picture"><img src="{{ p.address }}" alt="{{ p.moment }}">
{%- for t in p.tags %}<b style="left: {{ t.x }}%; top: {{ t.y }}%">{{ t.tag }}</b>{% endfor -%}
</div><figcaption>{{ p.moment }}</figcaption></figure>{% endfor %}</div>
<div class="scroll"><table>
<tr><th></th><th>true</th>{% for m in models %}<th>{{ m }}</th>{% endfor %}</tr>
{% for r in s.rows %}
<tr><th>{{ r.moment }}</th><td>{{ r.true }}</td>
{%- for t in r.written %}<td class="{{ 'right' if t == r.true else 'wrong' }}">{{ t }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
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
    if any(len(texts) != len(scenes) for texts in (true, *written.values())):
        raise ValueError(f"{len(scenes)} scenes need as many true and written texts")
    rows = [
        {
            "place": s.place,
            "sentence": s.sentence,
            "pictures": _pictures(s),
            "rows": [
                {"moment": moment, "true": true[n][k], "written": [texts[n][k] for texts in written.values()]}
                for k, moment in enumerate(MOMENTS)
            ],
        }
        for n, s in enumerate(scenes)
    ]
    totals = [(m, _right(true, texts)) for m, texts in written.items()]
    shown = {"scenes": rows, "models": list(written), "texts": len(scenes) * len(MOMENTS), "totals": totals}
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    write_text(path, page.render(title=title, note=note, **shown))


def _right(true: Sequence[Sequence[str]], texts: Sequence[Sequence[str]]) -> int:
    return sum(a == b for told, wrote in zip(true, texts, strict=True) for a, b in zip(told, wrote, strict=True))


def _pictures(scene: Scene) -> list[dict[str, Any]]:
    """For each moment the picture and where each actor's tag goes, in percent of the sides."""
    return [
        {
            "moment": moment,
            "address": _address(picture),
            "tags": [
                {"tag": n + 1, "x": round(100 * x / SIDE, 1), "y": round(100 * y / SIDE, 1)}
                for n, (x, y) in enumerate(at)
            ],
        }
        for moment, picture, at in zip(MOMENTS, render(scene), scene.positions.tolist(), strict=True)
    ]


def _address(picture: Tensor) -> str:
    """A picture [3 H W] as a data URI."""
    held = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
