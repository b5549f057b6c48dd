"""One HTML page from metrics: plots of those that belong together, then all of them in tables. It
has no script and needs no other file."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from jinja2 import Environment
from matplotlib import pyplot

from fader.data.records import LEVELS
from fader.evaluation.metrics import Metric
from fader.files import write_whole

COLOURS = {"avoidance": "#b5523b", "generic": "#7a7f87", "expert": "#2f6f8f"}

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>fader: evaluation</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .2rem .7rem; border-bottom:
  1px solid #ddd; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } figure { margin: 1.5rem 0; }
  svg { max-width: 100%; height: auto; }
</style></head><body>
<h1>Evaluation</h1>
<p>Each value with its 95% interval over n items.</p>
{% for title, drawing in drawings %}
<figure><figcaption><b>{{ title }}</b></figcaption>{{ drawing }}</figure>{% endfor %}
{% for task, metrics in tables.items() %}<h2>{{ task }}</h2>
<table><tr><th>method</th><th>case</th><th>metric</th><th>value</th><th>low</th><th>high</th><th>n</th><th>seed</th></tr>
{% for f in metrics %}<tr><td>{{ f.method|e }}</td><td>{{ f.case|e }}</td><td>{{ f.metric|e }}</td>
<td class="number">{{ "%.3f"|format(f.value) }}</td>
<td class="number">{{ "%.3f"|format(f.low) }}</td>
<td class="number">{{ "%.3f"|format(f.high) }}</td><td class="number">{{ f.n }}</td>
<td class="number">{{ f.seed }}</td></tr>{% endfor %}</table>{% endfor %}
</body></html>
"""


def write_report(metrics: Sequence[Metric], file: Path) -> None:
    """The page, written beside its place and renamed."""
    drawings = [
        (title, drawn) for title, draw in DRAWINGS.items() if (drawn := draw(metrics)) is not None
    ]
    tables = {
        task: [one for one in metrics if one.task == task]
        for task in dict.fromkeys(one.task for one in metrics)
    }
    page = Environment(autoescape=False).from_string(PAGE).render(drawings=drawings, tables=tables)
    write_whole(file, page)


def effect_against_strength(metrics: Sequence[Metric]) -> str | None:
    """Accuracy of each level against the vector's strength, one plot per domain, with the intervals
    as bands."""
    found = [one for one in metrics if one.task == "curve" and one.metric.startswith("first_")]
    domains = list(dict.fromkeys(one.case for one in found))
    if not domains:
        return None
    canvas, panels = pyplot.subplots(
        1, len(domains), figsize=(4.2 * len(domains), 3.4), sharey=True, squeeze=False
    )
    for axes, domain in zip(panels[0], domains, strict=True):
        for level in LEVELS:
            line = sorted(
                (_strength(one), one.value, one.low, one.high)
                for one in found
                if (one.case, one.metric) == (domain, f"first_{level}")
            )
            x, y, low, high = zip(*line, strict=True)
            axes.plot(x, y, color=COLOURS[level], label=level)
            axes.fill_between(x, low, high, color=COLOURS[level], alpha=0.15)
        axes.set(title=domain, xlabel="strength", ylim=(-0.02, 1.02))
    panels[0][0].set_ylabel("ranked first")
    panels[0][-1].legend(frameon=False)
    return _svg(canvas)


def combination_map(metrics: Sequence[Metric]) -> str | None:
    """The least accuracy over the domains in each combination of levels: two of the domains across,
    the rest down."""
    found = {one.case: one.value for one in metrics if one.metric == "worst_case_accuracy"}
    if not found:
        return None
    cases = [tuple(part.split("=")[1] for part in case.split(",")) for case in found]
    values = dict(zip(cases, found.values(), strict=True))
    domains = [part.split("=")[0] for part in next(iter(found)).split(",")]
    down, across = (
        list(dict.fromkeys(case[part] for case in cases)) for part in (slice(1), slice(1, None))
    )
    canvas, axes = pyplot.subplots(figsize=(1.1 * len(across) + 2, 0.8 * len(down) + 2))
    grid = [[values[(*row, *column)] for column in across] for row in down]
    axes.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    for y, row in enumerate(grid):
        for x, value in enumerate(row):
            axes.text(x, y, f"{value:.2f}", ha="center", va="center")
    axes.set_xticks(range(len(across)), ["\n".join(column) for column in across])
    axes.set_yticks(range(len(down)), ["\n".join(row) for row in down])
    axes.set(xlabel=" / ".join(domains[1:]), ylabel=domains[0])
    return _svg(canvas)


def spill_matrix(metrics: Sequence[Metric]) -> str | None:
    """Share of questions whose first-ranked answer moves, for each end of each vector on each
    subject."""
    moved = [one for one in metrics if (one.task, one.metric) == ("spillover", "moved")]
    found = {(one.method, one.case.split(" on ")[1]): one.value for one in moved}
    if not found:
        return None
    rows, columns = (list(dict.fromkeys(case[side] for case in found)) for side in (0, 1))
    canvas, axes = pyplot.subplots(figsize=(1.2 * len(columns) + 3, 0.5 * len(rows) + 1.5))
    axes.imshow(
        [[found[row, column] for column in columns] for row in rows],
        vmin=0,
        vmax=1,
        cmap="Blues",
        aspect="auto",
    )
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            axes.text(x, y, f"{found[row, column]:.2f}", ha="center", va="center")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    return _svg(canvas)


def cost_and_quality(metrics: Sequence[Metric]) -> str | None:
    """Tokens read and written per answer against the share of answers at the level asked for, a
    point per method, domain and level."""
    cost: dict[tuple[str, str], float] = {}
    for one in metrics:
        if one.task == "generation" and one.metric in ("prompt_tokens", "answer_tokens"):
            cost[one.method, one.case] = cost.get((one.method, one.case), 0.0) + one.value
    points: dict[str, list[tuple[float, float]]] = {}
    for one in metrics:
        level = one.metric.removeprefix("generated_")
        if one.task == "generation" and level in LEVELS:
            points.setdefault(one.method, []).append(
                (cost[one.method, f"{one.case} {level}"], one.value)
            )
    if not points:
        return None
    canvas, axes = pyplot.subplots(figsize=(6, 4))
    for method, at in points.items():
        axes.scatter(*zip(*at, strict=True), label=method, alpha=0.8)
    axes.set(
        xlabel="tokens read and written per answer",
        ylabel="at the level asked for",
        ylim=(-0.02, 1.02),
    )
    axes.legend(frameon=False)
    return _svg(canvas)


def pairs_against_strength(metrics: Sequence[Metric]) -> str | None:
    """Accuracy and margin of held-out pairs against the vector's strength, a line per split, with
    the intervals as bands."""
    found = [one for one in metrics if one.task == "pairs"]
    if not found:
        return None
    canvas, panels = pyplot.subplots(1, 2, figsize=(8.4, 3.4))
    for panel, metric in zip(panels, ("accuracy", "margin"), strict=True):
        for name in dict.fromkeys(_vector_and_case(one) for one in found):
            line = sorted(
                (_strength(one), one.value, one.low, one.high)
                for one in found
                if (_vector_and_case(one), one.metric) == (name, metric)
            )
            x, y, low, high = zip(*line, strict=True)
            panel.plot(x, y, marker="o", markersize=3, label=name)
            panel.fill_between(x, low, high, alpha=0.15)
        panel.set(xlabel="strength", ylabel=metric)
    panels[0].set_ylim(-0.02, 1.02)
    panels[1].axhline(0, color="#ccc", zorder=0)
    panels[1].legend(frameon=False)
    return _svg(canvas)


DRAWINGS: Mapping[str, Callable[[Sequence[Metric]], str | None]] = {
    "Effect against strength": effect_against_strength,
    "Combinations of levels: least accuracy over the domains": combination_map,
    "Spill-over: share of questions whose first answer moves": spill_matrix,
    "Cost against quality of generated answers": cost_and_quality,
    "Pairs: the chosen answer is the likelier one": pairs_against_strength,
}


def _vector_and_case(one: Metric) -> str:
    return f"{one.method.rpartition('=')[0]}, {one.case}"


def _strength(one: Metric) -> float:
    return 0.0 if one.method == "base" else float(one.method.rpartition("=")[2])


def _svg(canvas: Any) -> str:
    stream = io.StringIO()
    canvas.tight_layout()
    canvas.savefig(stream, format="svg")
    pyplot.close(canvas)
    return stream.getvalue()[stream.getvalue().index("<svg") :]
