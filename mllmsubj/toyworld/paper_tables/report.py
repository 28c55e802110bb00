"""Report of the tables: a self-contained HTML page, CSV and plain text."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from mllmsubj.evals.report import data_uri, document
from mllmsubj.toyworld.benchmark.scores import MAX_PSNR, MEANINGS
from mllmsubj.toyworld.paper_tables.claims import ClaimCheck, Metrics, check_claims, half
from mllmsubj.toyworld.paper_tables.tables import Row, Table


@dataclass(frozen=True)
class Column:
    """A metric of every row."""

    metric: str
    head: str
    scale: float
    """Factor that a value is multiplied by for display."""
    most: float
    """Right end of the plot's axis, after scaling."""


COLUMNS = (
    Column("identity_accuracy", "identity, %", 100.0, 100.0),
    Column("prompt_accuracy", "prompt, %", 100.0, 100.0),
    Column("reasoning_accuracy", "reasoning, %", 100.0, 100.0),
    Column("pose_copy_rate", "pose copied, %", 100.0, 100.0),
    Column("copy_psnr", "near the reference, dB", 1.0, float(MAX_PSNR)),
)
PLOTTED = COLUMNS[:4]
CHANCE = "pose_copy_chance"
EXAMPLES = 4
"""Number of examples in a table's grid of images."""
METRIC_NAMES = {"identity_accuracy": "identity", "prompt_accuracy": "prompt", "pose_copy_rate": "pose copying"}
METRIC_NAMES |= {"copy_psnr": "nearness to the reference"}
SIGNS = {"holds": "✓", "does not hold": "✗", "open": "·"}

STYLE = """
body { max-width: 72rem; }
th { white-space: normal; }
th, td { padding-right: .8rem; }
th:last-child { padding-right: 0; }
td.number { white-space: nowrap; font-size: .875rem; }
table.grid { width: auto; margin-top: 1rem; }
table.grid th, table.grid td { border: 0; padding: .15rem .3rem .15rem 0; text-align: center; font-size: .8rem;
  vertical-align: bottom; max-width: 6.5rem; }
table.grid td:first-child { max-width: 15rem; text-align: left; vertical-align: middle; }
table.grid img { display: block; width: 6.2rem; border-radius: .25rem; }
svg { display: block; width: 100%; height: auto; margin-top: 1rem; }
svg text { fill: var(--ink); font: 12px system-ui, "DejaVu Sans", sans-serif; }
svg .soft { fill: var(--soft); }
svg line { stroke: var(--ink); stroke-width: 1.5; }
svg line.rule { stroke: var(--line); stroke-width: 1; }
svg line.chance { stroke: var(--soft); stroke-dasharray: 3 3; stroke-width: 1; }
svg circle { fill: var(--ink); }
svg .chosen { fill: #0b76d3; stroke: #0b76d3; }
svg text.chosen { stroke: none; }
.holds { color: #18864b; } .fails { color: #c4412f; }
"""


@dataclass(frozen=True)
class RowResult:
    """Result of one run."""

    metrics: Metrics
    samples: np.ndarray
    """[n, height, 3 width, 3] uint8: reference, generated image, target."""
    prompts: Sequence[str]
    """Prompt of each sample."""


@dataclass(frozen=True)
class TableResult:
    """A table with the results of its rows, in order; None: not finished."""

    table: Table
    found: tuple[RowResult | None, ...]

    @property
    def rows(self) -> Iterator[tuple[Row, RowResult]]:
        """Finished rows and their results."""
        return ((row, one) for row, one in zip(self.table.rows, self.found, strict=True) if one is not None)

    def check_claims(self, row: Row, found: RowResult) -> list[ClaimCheck]:
        """Returns the claim checks of a row against the paper's choice, none if that is not finished."""
        ours = self.found[self.table.rows.index(self.table.ours)]
        return check_claims(self.table, row, found.metrics, ours.metrics) if ours is not None else []


def page(title: str, lead: str, tables: Sequence[TableResult], facts: Mapping[str, str], config: str) -> str:
    """Returns the whole report.

    `lead`: a sentence below the title; `facts`: how the report was made; `config`: the config as text.
    """
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(lead)}</p>"]
    for table in tables:
        parts += [f"<h2>{escape(table.table.title)}</h2>", f"<p>{escape(table.table.asks)}</p>"]
        parts += [*_table(table), _plot(table), *_grid(table)]
    parts += ["<h2>What the columns are</h2>", *_meanings()]
    parts += ["<h2>How it was made</h2>", "<table>"]
    parts += [f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items()]
    parts += ["</table>", f"<details><summary>Config</summary><pre>{escape(config)}</pre></details>"]
    return document(title, parts, STYLE)


def as_csv(tables: Sequence[TableResult]) -> str:
    """Returns the results as CSV, one line per finished row, with all digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [name for c in COLUMNS for name in (c.metric, f"{c.metric}/low", f"{c.metric}/high")] + [CHANCE]
    writer.writerow(["table", "row", *names, "paper DINO-I", "paper CLIP-I", "paper CLIP-T", "orders"])
    for filled in tables:
        for row, found in filled.rows:
            paper = (row.paper.dino_i, row.paper.clip_i, row.paper.clip_t) if row.paper else ("", "", "")
            orders = "; ".join(_said(verdict) for verdict in filled.check_claims(row, found))
            values = [found.metrics.get(name, "") for name in names]
            writer.writerow([filled.table.title, row.label, *values, *paper, orders])
    return text.getvalue()


def as_text(tables: Sequence[TableResult]) -> str:
    """Returns the results as aligned text for a terminal."""
    lines = []
    for filled in tables:
        lines += ["", filled.table.title]
        cells = [["", *(column.head for column in COLUMNS), ""]]
        for row, found in filled.rows:
            orders = "; ".join(_said(verdict) for verdict in filled.check_claims(row, found))
            cells.append([row.label, *(_value(found.metrics, column) for column in COLUMNS), orders])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    return "\n".join(lines[1:]) + "\n"


def _table(filled: TableResult) -> Iterator[str]:
    compared = any(row.paper or row.claims for row in filled.table.rows)
    heads = "".join(f"<th style='text-align: right'>{escape(column.head)}</th>" for column in COLUMNS)
    heads += "<th>paper: DINO-I, CLIP-I, CLIP-T</th><th>the paper's order</th>" if compared else ""
    yield f"<table><thead><tr><th></th>{heads}</tr></thead>"
    for row, found in zip(filled.table.rows, filled.found, strict=True):
        if found is None:
            across = len(COLUMNS) + 2
            yield f"<tr><th>{escape(row.label)}</th><td colspan='{across}' class='soft'>not finished</td></tr>"
            continue
        cells = "".join(f'<td class="number">{_value(found.metrics, column)}</td>' for column in COLUMNS)
        paper = f"{row.paper.dino_i:.3f} {row.paper.clip_i:.3f} {row.paper.clip_t:.3f}" if row.paper else ""
        orders = "<br>".join(_marked(verdict) for verdict in filled.check_claims(row, found))
        orders = orders or ("ours" if row is filled.table.ours else "the paper has none")
        cells += f"<td>{paper}</td><td>{orders}</td>" if compared else ""
        yield f"<tr><th>{escape(row.label)}</th>{cells}</tr>"
    yield "</table>"


def _marked(verdict: ClaimCheck) -> str:
    kind = {"holds": "holds", "does not hold": "fails", "open": "soft"}[verdict.outcome]
    return f'<span class="{kind}">{SIGNS[verdict.outcome]}</span> {escape(_said(verdict))}'


def _said(verdict: ClaimCheck) -> str:
    """Returns a text such as "identity lower: holds (−12.0 ± 3.1)"."""
    scale = next(column.scale for column in COLUMNS if column.metric == verdict.claim.metric)
    by, noise = verdict.by * scale, verdict.noise * scale
    name = METRIC_NAMES[verdict.claim.metric]
    return f"{name} {verdict.claim.side}: {verdict.outcome} ({by:+.1f} ± {noise:.1f})".replace("-", "−")


def _value(metrics: Metrics, column: Column) -> str:
    value = metrics.get(column.metric)
    if value is None:
        return "–"
    noise = half(metrics, column.metric) * column.scale
    return f"{value * column.scale:.1f}" + (f" ± {noise:.1f}" if math.isfinite(noise) else "")


def _meanings() -> Iterator[str]:
    yield "<table>"
    for column in COLUMNS:
        yield f"<tr><th>{escape(column.head)}</th><td>{escape(MEANINGS[column.metric])}</td></tr>"
    yield "</table>"
    yield (
        "<p>± is half of the 95 % bootstrap interval over pictures. Orders compare a row with the paper's choice: "
        "DINO-I stands for identity, CLIP-T for the prompt. “Open”: the difference is within the noise, both numbers "
        "taken as independent. The dotted line is how often two independent pictures share a pose.</p>"
    )


LABELS, PANEL, GAP, LINE, HEAD, FOOT = 210, 180, 40, 24, 24, 20
"""Dimensions of the plot, in units of its viewBox."""


def _plot(filled: TableResult) -> str:
    """Returns an SVG of dots with intervals, a panel for each metric and a line for each row."""
    rows = list(filled.rows)
    width, bottom = LABELS + len(PLOTTED) * (PANEL + GAP), HEAD + LINE * len(rows)
    parts = [f'<svg viewBox="0 0 {width} {bottom + FOOT}" role="img" aria-label="{escape(filled.table.title)}">']
    for i, (row, _) in enumerate(rows):
        y, chosen = HEAD + (i + 0.5) * LINE, ' class="chosen"' if row is filled.table.ours else ""
        parts.append(f'<text x="{LABELS - 12}" y="{y + 4}" text-anchor="end"{chosen}>{escape(row.label)}</text>')
    for number, column in enumerate(PLOTTED):
        parts += _panel(filled, column, LABELS + number * (PANEL + GAP), bottom)
    return "".join(parts) + "</svg>"


def _panel(filled: TableResult, column: Column, left: int, bottom: int) -> Iterator[str]:
    def x(value: float) -> str:
        return f"{left + PANEL * min(max(value * column.scale / column.most, 0.0), 1.0):.1f}"

    def upright(at: str, kind: str) -> str:
        return f'<line class="{kind}" x1="{at}" x2="{at}" y1="{HEAD}" y2="{bottom}"/>'

    yield f'<text x="{left}" y="14" class="soft">{escape(column.head)}</text>'
    for tick in (0.0, column.most / 2, column.most):
        at = x(tick / column.scale)
        yield upright(at, "rule")
        yield f'<text x="{at}" y="{bottom + 15}" text-anchor="middle" class="soft">{tick:.0f}</text>'
    chances = [found.metrics[CHANCE] for _, found in filled.rows if CHANCE in found.metrics]
    if column.metric == "pose_copy_rate" and chances:
        yield upright(x(chances[0]), "chance")
    for i, (row, found) in enumerate(filled.rows):
        y, chosen = HEAD + (i + 0.5) * LINE, ' class="chosen"' if row is filled.table.ours else ""
        value, noise = found.metrics.get(column.metric), half(found.metrics, column.metric)
        if value is None:
            continue
        if math.isfinite(noise):
            low, high = (x(found.metrics[f"{column.metric}/{side}"]) for side in ("low", "high"))
            yield f'<line x1="{low}" x2="{high}" y1="{y}" y2="{y}"{chosen}/>'
        yield f'<circle cx="{x(value)}" cy="{y}" r="4"{chosen}/>'


def _grid(filled: TableResult) -> Iterator[str]:
    """Yields a table of the first examples: reference, the image of each row, and the target."""
    rows = list(filled.rows)
    if not rows:
        return
    first = rows[0][1]
    heads = ("prompt", "reference", *(row.label for row, _ in rows), "one right picture")
    yield "<table class='grid'><tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"
    for i in range(min(EXAMPLES, *(len(found.samples) for _, found in rows))):
        reference, _, target = _parts(first.samples[i])
        pictures = [reference, *(_parts(found.samples[i])[1] for _, found in rows), target]
        alts = (f"{head}: {first.prompts[i]}" for head in heads[1:])
        images = (
            f'<td><img src="{data_uri(picture)}" alt="{escape(alt, quote=True)}"></td>'
            for picture, alt in zip(pictures, alts, strict=True)
        )
        yield f"<tr><td>{escape(first.prompts[i])}</td>{''.join(images)}</tr>"
    yield "</table>"


def _parts(sample: np.ndarray) -> list[np.ndarray]:
    return np.split(sample, 3, axis=1)
