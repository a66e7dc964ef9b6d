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
NARROW = (4.4, 3.5)  # of what is drawn a second time for a phone
NARROW_SERIES = 3  # with more, bars need a wide drawing
LEAST_SPREAD = 0.02  # of a vertical axis, as a share of its figures


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        name: of the file that its numbers download as.
        title: what it shows.
        panels: SVG, one each; they stand side by side where there is room.
        columns: its numbers, columns of equal length by name.
        note: how to read it.
        wide: one panel as wide as the page.
        narrow: of a wide figure: the same drawn for a phone, where the wide one would be too small to read.
    """

    name: str
    title: str
    panels: list[str]
    columns: Mapping[str, Sequence[Any]]
    note: str = ""
    wide: bool = False
    narrow: str = ""
    rows: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        lengths = {len(column) for column in self.columns.values()}
        if len(lengths) > 1:
            raise ValueError(f"columns of {self.name} have different lengths: {lengths}")
        if self.wide != bool(self.narrow):
            raise ValueError(f"{self.name}: a wide figure is drawn a second time for phones, others are not")
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
        # Above the drawing, where it hides nothing, and from the left, where reading starts.
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
    narrow: bool = False,
) -> str:
    """Grouped bars: one cluster a group, one colour a series.

    Args:
        places: of series in the palette, so that a name has one colour on the whole page; default: their order.
        narrow: many series on a phone.
    """
    size = NARROW if narrow else WIDE if len(series) > NARROW_SERIES else SMALL
    # Names of many groups would run into each other in a narrow drawing.
    tight = size != WIDE and len(groups) > 5
    figure, axis = _axis(size)
    width = 0.8 / max(len(series), 1)
    for number, (name, values) in enumerate(series.items()):
        left = np.arange(len(groups)) + (number - (len(series) - 1) / 2) * width
        heights = [value or 0.0 for value in values]
        colour = _colour(name, number, places)
        axis.bar(left, heights, width * 0.92, label=label(name), color=colour, edgecolor=INK, linewidth=0.4)
    axis.set_xticks(
        range(len(groups)), [label(group) for group in groups], fontsize=8 if tight else 8.5 if narrow else 10
    )
    axis.tick_params(axis="x", length=0)
    axis.set_ylabel(y)
    axis.set_xlabel(x)
    _legend(axis, len(series), 3 if narrow else 4)
    return _svg(figure)


def popularity(
    bins: Sequence[Mapping[str, Any]],
    curves: Mapping[str, Sequence[float | None]],
    y: str,
    places: Mapping[str, int] | None = None,
    narrow: bool = False,
) -> str:
    """`draw_popularity` for the page."""
    return _svg(draw_popularity(bins, curves, y, INK, places, narrow))


def draw_popularity(
    bins: Sequence[Mapping[str, Any]],
    curves: Mapping[str, Sequence[float | None]],
    y: str,
    ink: str = PRINTED,
    places: Mapping[str, int] | None = None,
    narrow: bool = False,
) -> Any:
    """Items by training interactions as bars, and over them a figure of the test users whose item is in the bin.

    Args:
        bins: entries with `bin`, `low`, `items` and `test_users`.
        curves: a line each, by its name in the legend: a figure or None for every bin.
        y: what the lines are.
        places: as of `bars`; default: one colour, for a single line.
        narrow: on a phone: bins are named by where they start.
    """
    figure, axis = _axis(NARROW if narrow else (max(6.4, 0.74 * len(bins)), 3.4), ink)
    at = range(len(bins))
    items = axis.bar(at, [entry["items"] for entry in bins], 0.84, color="#B9CCDA", label="items")
    axis.bar_label(items, [f"{entry['items']:,}" for entry in bins], fontsize=7, padding=1, color=ink)
    axis.set_xticks(at, _bin_names(bins, bool(curves), narrow), fontsize=8 if len(bins) < 10 else 7)
    axis.tick_params(axis="x", length=0)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set_ylabel("items")
    users = " (n: test users whose item has as many)" if curves else ""
    axis.set_xlabel("training interactions, from" if narrow else f"training interactions{users}")
    if curves:
        right = axis.twinx()
        handles = [items]
        for number, (name, values) in enumerate(curves.items()):
            place = 5 if places is None else places.get(name, number)
            handles += right.plot(
                at,
                [np.nan if value is None else value for value in values],
                color=COLOURS[place % len(COLOURS)],
                marker=MARKERS[place % len(MARKERS)] if places else "o",
                markersize=4.5,
                markeredgecolor=ink,
                markeredgewidth=0.5,
                label=label(name),
            )
        right.set_ylabel(y)
        right.set_ylim(bottom=0)
        right.spines["right"].set_visible(True)
        axis.legend(
            handles=handles, frameon=False, fontsize=8.5, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles)
        )
    return figure


def _bin_names(bins: Sequence[Mapping[str, Any]], users: bool, narrow: bool) -> list[str]:
    """Bins follow each other: of wide ones the start is enough, and there is no room for more."""
    if narrow:
        return [f"{entry['low']:,}" for entry in bins]
    names = [entry["bin"] if entry["low"] < 640 else f"{entry['low']:,}+" for entry in bins]
    return [f"{name}\nn={entry['test_users']:,}" if users else name for name, entry in zip(names, bins, strict=True)]


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
    else:
        _widen(axis)
    axis.set_xlabel(label(x))
    axis.set_ylabel(label(y))
    if wide or len(curves) > NARROW_SERIES:
        _legend(axis, len(curves), 4 if wide else 3)
    elif len(curves) > 1:
        axis.legend(frameon=False, fontsize=9)
    if title:
        figure.suptitle(label(title), fontsize=10)
    return _svg(figure)


def _widen(axis: Any) -> None:
    """Show figures that hardly change as a flat line: ticks to tell them apart would have too many digits to read."""
    low, high = axis.get_ylim()
    middle, least = (low + high) / 2, LEAST_SPREAD * max(abs(low), abs(high))
    if high - low < least:
        axis.set_ylim(middle - least / 2, middle + least / 2)


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
