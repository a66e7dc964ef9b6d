"""Figures as inline SVG: colour-blind safe, readable on light and dark pages, each with its numbers as CSV."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmemb_cli.reporting.spreadsheet import csv_table

# Okabe and Ito's palette: distinguishable with every common kind of colour blindness. Grey is its black, to be seen
# on a dark page; what is yellow has an edge, to be seen on a white one.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442", "#888888")
MARKERS = "osD^vPXh"
ORDERED = ("#999999", "#D55E00", "#E69F00", "#CC79A7", "#56B4E9", "#0072B2")  # warm is rare, cool is popular
INK = "#8a8f98"  # readable on white and on near-black; the page's style sheet sets text darker or lighter
PRINTED = "#222222"  # ink of figures that are files of their own, on white
SMALL = (4.4, 2.9)
WIDE = (8.6, 3.1)
NARROW_SERIES = 3  # with more, bars need a wide drawing


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        name: of the file that its numbers download as.
        title: what it shows.
        panels: SVG, one each; they stand side by side where there is room.
        columns: its numbers, columns of equal length by name.
        note: how to read it.
        wide: one panel that is scrolled on a phone rather than shrunk.
    """

    name: str
    title: str
    panels: list[str]
    columns: Mapping[str, Sequence[Any]]
    note: str = ""
    wide: bool = False
    rows: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        lengths = {len(column) for column in self.columns.values()}
        if len(lengths) > 1:
            raise ValueError(f"columns of {self.name} have different lengths: {lengths}")
        object.__setattr__(self, "rows", max(lengths, default=0))

    @property
    def csv(self) -> str:
        """The numbers as CSV."""
        return csv_table(self.columns, zip(*self.columns.values(), strict=True))

    @property
    def link(self) -> str:
        """The CSV as a link that needs no server."""
        return "data:text/csv;charset=utf-8;base64," + base64.b64encode(self.csv.encode()).decode()


def _axis(size: tuple[float, float], ink: str = INK) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "llmemb",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink),
        }
    )
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    return figure, axis


def _svg(figure: Any) -> str:
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None}, dpi=200)
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Names such as axes_1 would stand many times in one page; only those that something refers to are kept.
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    return re.sub(r' id="([^"]+)"', lambda found: found.group() if found.group(1) in used else "", text)


def save(figure: Any, path: Path, kind: str) -> None:
    """Write a drawing as a picture of its own: `kind` is png, svg or pdf."""
    import matplotlib.pyplot as plt

    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(path, format=kind, dpi=200, facecolor="white", metadata=dates.get(kind))
    plt.close(figure)


def label(text: str) -> str:
    """A name as matplotlib shows it literally: no formulas, no hidden legend entries."""
    plain = text.replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


def _legend(axis: Any, count: int, columns: int = 4) -> None:
    if count > 1:
        # Above the drawing and from the left: on a phone the right side is scrolled out of sight.
        axis.legend(
            frameon=False,
            fontsize=9,
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=columns,
            handlelength=1.2,
            columnspacing=1.2,
            borderaxespad=0.2,
        )


def _colour(name: str, number: int, places: Mapping[str, int] | None) -> str:
    return COLOURS[(places or {}).get(name, number) % len(COLOURS)]


def bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    y: str,
    x: str = "",
    places: Mapping[str, int] | None = None,
) -> str:
    """Grouped bars: one cluster a group, one colour a series.

    Args:
        places: of series in the palette, so that a name has one colour on the whole page; default: their order.
    """
    figure, axis = _axis(WIDE if len(series) > NARROW_SERIES else SMALL)
    width = 0.8 / max(len(series), 1)
    for number, (name, values) in enumerate(series.items()):
        left = np.arange(len(groups)) + (number - (len(series) - 1) / 2) * width
        heights = [value or 0.0 for value in values]
        colour = _colour(name, number, places)
        axis.bar(left, heights, width * 0.92, label=label(name), color=colour, edgecolor=INK, linewidth=0.4)
    axis.set_xticks(range(len(groups)), [label(group) for group in groups])
    axis.tick_params(axis="x", length=0)
    axis.set_ylabel(y)
    axis.set_xlabel(x)
    _legend(axis, len(series))
    return _svg(figure)


def popularity(bins: Sequence[Mapping[str, Any]], run: str, metric: str) -> str:
    """`draw_popularity` for the page."""
    return _svg(draw_popularity(bins, run, metric, INK))


def draw_popularity(bins: Sequence[Mapping[str, Any]], run: str, metric: str, ink: str = PRINTED) -> Any:
    """Items by training interactions as bars, and over them a run's metric for the test users whose item is there.

    Args:
        bins: entries with `bin`, `items`, `test_users` and, under `metric`, a figure or None.
        run: what the line is, for the legend; "": no line is drawn.
        metric: name of the figure.
    """
    figure, axis = _axis((max(6.4, 0.74 * len(bins)), 3.4), ink)
    places = range(len(bins))
    items = axis.bar(places, [entry["items"] for entry in bins], 0.84, color="#B9CCDA", label="items")
    axis.bar_label(items, [f"{entry['items']:,}" for entry in bins], fontsize=7, padding=1, color=ink)
    # Bins follow each other: of wide ones the start is enough, and there is no room for more.
    names = [entry["bin"] if entry["low"] < 640 else f"{entry['low']:,}+" for entry in bins]
    ticks = [f"{name}\nn={entry['test_users']:,}" if run else name for name, entry in zip(names, bins, strict=True)]
    axis.set_xticks(places, ticks, fontsize=8 if len(bins) < 10 else 7)
    axis.tick_params(axis="x", length=0)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set_ylabel("items")
    axis.set_xlabel("training interactions" + (" (n: test users whose item has as many)" if run else ""))
    handles = [items]
    if run:
        rates = [np.nan if entry[metric] is None else entry[metric] for entry in bins]
        right = axis.twinx()
        handles += right.plot(places, rates, color=COLOURS[5], marker="o", markersize=4.5, label=label(run))
        right.set_ylabel(metric)
        right.set_ylim(bottom=0)
        right.spines["right"].set_visible(True)
        axis.legend(handles=handles, frameon=False, fontsize=8.5, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def lines(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    *,
    logarithmic: str = "",
    ticks: Sequence[str] = (),
    wide: bool = False,
    places: Mapping[str, int] | None = None,
    title: str = "",
) -> str:
    """One line a curve.

    Args:
        places: as of `bars`.
        logarithmic: axes with a logarithmic scale: "", "x", "y" or "xy".
        ticks: names of the places 0, 1, ... on the x axis.
    """
    figure, axis = _axis(WIDE if wide else SMALL)
    for number, (name, (xs, ys)) in enumerate(curves.items()):
        several = len(curves) > 1 or len(xs) < 15
        marker = MARKERS[(places or {}).get(name, number) % len(MARKERS)] if several else None
        every = max(1, len(xs) // 12)  # markers tell curves apart where colours do not
        colour = _colour(name, number, places)
        axis.plot(
            xs,
            ys,
            label=label(name),
            color=colour,
            marker=marker,
            markersize=4.5,
            markevery=every,
            markeredgecolor=INK,
            markeredgewidth=0.5,
        )
    if ticks:
        axis.set_xticks(range(len(ticks)), [label(tick) for tick in ticks])
    elif "x" not in logarithmic:
        axis.xaxis.get_major_locator().set_params(integer=True)
    if "x" in logarithmic:
        axis.set_xscale("log")
    if "y" in logarithmic:
        axis.set_yscale("log")
    axis.set_xlabel(label(x))
    axis.set_ylabel(label(y))
    if wide or len(curves) > NARROW_SERIES:
        _legend(axis, len(curves), 4 if wide else 3)
    elif len(curves) > 1:
        axis.legend(frameon=False, fontsize=9)
    if title:
        figure.suptitle(label(title), fontsize=10)
    return _svg(figure)


def histogram(values: Mapping[str, np.ndarray], x: str, edges: np.ndarray) -> str:
    """Overlaid outlines of distributions: share of values a bin."""
    figure, axis = _axis(SMALL)
    for number, (name, numbers) in enumerate(values.items()):
        counts = np.histogram(numbers, edges)[0] / max(len(numbers), 1)
        axis.stairs(counts, edges, label=label(name), color=COLOURS[number % len(COLOURS)], fill=True, alpha=0.35)
        axis.stairs(counts, edges, color=COLOURS[number % len(COLOURS)])
    axis.set_xlabel(x)
    axis.set_ylabel("share of pairs")
    axis.legend(frameon=False, fontsize=9)
    return _svg(figure)


def scatter(title: str, xy: np.ndarray, group: np.ndarray, names: Sequence[str]) -> str:
    """(n, 2) points coloured by their group (n,) int; the points are an image inside the drawing."""
    figure, axis = _axis((4.4, 4.0))
    for number, name in enumerate(names):
        chosen = group == number
        if chosen.any():
            colour = ORDERED[number % len(ORDERED)]
            axis.scatter(*xy[chosen].T, s=6, color=colour, label=label(name), linewidths=0, rasterized=True)
    axis.set_title(label(title), fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    axis.legend(
        frameon=False,
        fontsize=9,
        markerscale=2.5,
        ncols=6,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        handletextpad=0.1,
        columnspacing=0.8,
    )
    return _svg(figure)
