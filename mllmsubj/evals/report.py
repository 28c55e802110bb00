"""Self-contained HTML page of results: no network, no scripts, embedded images."""

import base64
import io
import math
from collections.abc import Iterable
from html import escape

import numpy as np
from PIL import Image

from mllmsubj.evals.results import Results, lines

COLUMNS = ("reference", "drawn", "target")
"""Columns of a sample image, equally wide, from left to right."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5f666e; --line: #dfe2e6; --paper: #fff; --note: #fff6dc; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e9ec; --soft: #9aa2ab; --line: #343a41; --paper: #15181b; --note: #3a3216; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 56rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.1rem; }
p, .soft { color: var(--soft); }
p { margin: .25rem 0 1rem; }
code, pre, .number { font-family: ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
code, pre { font-size: .875rem; }
.note { padding: .6rem .9rem; border-radius: .4rem; background: var(--note); color: var(--ink); }
table { width: 100%; border-collapse: collapse; }
th, td { padding: .45rem 1rem .45rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: baseline; }
th { font-weight: 600; white-space: nowrap; }
thead th { color: var(--soft); font-size: .875rem; font-weight: 400; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
td:last-child { padding-right: 0; }
.example { display: grid; grid-template-columns: 14rem 1fr; gap: 1.5rem; padding: .75rem 0;
  border-bottom: 1px solid var(--line); }
.example img { display: block; width: 100%; border-radius: .25rem; }
.columns { display: grid; grid-template-columns: repeat(3, 1fr); text-align: center; font-size: .875rem; }
.heads { padding: .25rem 0; }
details { margin-top: 2.5rem; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; padding: 1rem; border: 1px solid var(--line); border-radius: .4rem; }
@media (max-width: 40rem) { .example { grid-template-columns: 1fr; gap: .5rem; } }
"""


def page(results: Results) -> str:
    """Returns the whole report as HTML."""
    title = f"{results.benchmark} · {results.checkpoint}"
    parts = [
        f"<h1>{escape(results.benchmark)}</h1>",
        f"<p>checkpoint <code>{escape(results.checkpoint)}</code>, fingerprint "
        f"<code>{escape(results.fingerprint)}</code></p>",
        f'<p class="note">{escape(results.warning)}</p>' if results.warning else "",
        *_numbers(results),
        *(part for name in results.images for part in _images(results, name)),
        *_settings(results),
        f"<details><summary>Config</summary><pre>{escape(results.config)}</pre></details>",
    ]
    return document(title, parts)


def document(title: str, parts: Iterable[str], style: str = "") -> str:
    """Returns an HTML page of these parts, without empty ones; `style`: CSS added to the default."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body>\n</html>\n"
    )


def _numbers(results: Results) -> Iterable[str]:
    found = list(lines(results.numbers))
    more = {"95 %": [line.interval for line in found], "beside": [line.reference_value for line in found]}
    more = {head: texts for head, texts in more.items() if any(texts)}
    heads = "".join(f"<th style='text-align: right'>{head}</th>" for head in ("value", *more))
    yield "<h2>Numbers</h2>"
    yield f"<table><thead><tr><th>name</th>{heads}<th>what it is</th></tr></thead>"
    for line, *texts in zip(found, *more.values(), strict=True):
        value = f"{line.value:.4g}" if math.isfinite(line.value) else "not finite"
        cells = "".join(f'<td class="number">{text}</td>' for text in (value, *texts))
        meaning = escape(results.meanings.get(line.name, ""))
        yield f"<tr><th><code>{escape(line.name)}</code></th>{cells}<td>{meaning}</td></tr>"
    yield "</table>"


def _images(results: Results, name: str) -> Iterable[str]:
    yield f"<h2>{escape(name.capitalize())}</h2>"
    yield f"<p>{escape(results.meanings.get(name, ''))}</p>"
    heads = "".join(f"<span>{column}</span>" for column in COLUMNS)
    yield f'<div class="example heads soft"><span></span><div class="columns">{heads}</div></div>'
    for picture, text in zip(results.images[name], results.texts[name], strict=True):
        alt = escape(f"{', '.join(COLUMNS)}: {text}", quote=True)
        yield f'<div class="example"><div>{escape(text)}</div><img src="{data_uri(picture)}" alt="{alt}"></div>'


def _settings(results: Results) -> Iterable[str]:
    yield "<h2>How it was made</h2>"
    yield "<table>"
    for name, value in ({"examples": results.examples, "seed": results.seed} | dict(results.settings)).items():
        yield f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
    yield "</table>"


def data_uri(picture: np.ndarray) -> str:
    """Returns an 8-bit image [height, width, 3] as a data URI for the `src` of an `img`."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
