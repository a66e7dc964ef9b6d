"""Figures as inline SVG: colour-blind safe, readable on light and dark pages."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Okabe and Ito's palette: distinguishable with every common kind of colour blindness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
INK = "#8a8f98"  # readable on white and on near-black


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
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
            **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
        }
    )
    return plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)


def _svg(figure: Any) -> str:
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def bars(groups: Sequence[str], series: Mapping[str, Sequence[float | None]], label: str) -> str:
    """Grouped bars: one cluster a group, one colour a series."""
    figure, axes = _figure(7, 3)
    axis = axes[0][0]
    width = 0.8 / max(len(series), 1)
    for number, (name, values) in enumerate(series.items()):
        places = np.arange(len(groups)) + (number - (len(series) - 1) / 2) * width
        heights = [value or 0.0 for value in values]
        axis.bar(places, heights, width, label=name, color=COLOURS[number % len(COLOURS)])
    axis.set_xticks(range(len(groups)), groups)
    axis.set_ylabel(label)
    if len(series) > 1:
        axis.legend(frameon=False, fontsize=9)
    return _svg(figure)


def lines(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str) -> str:
    """One line a curve."""
    figure, axes = _figure(7, 3)
    axis = axes[0][0]
    for number, (name, (xs, ys)) in enumerate(curves.items()):
        marker = "o" if len(xs) < 15 else None
        axis.plot(xs, ys, label=name, color=COLOURS[number % len(COLOURS)], marker=marker, markersize=4)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if len(curves) > 1:
        axis.legend(frameon=False, fontsize=9)
    return _svg(figure)


def scatter(points: dict[str, np.ndarray], labels: Sequence[str], names: Sequence[str]) -> str:
    """One panel a run: (n, 2) points coloured by their group."""
    figure, axes = _figure(3.6 * len(points), 3.6, len(points))
    place = np.array([names.index(label) for label in labels])
    for axis, (title, xy) in zip(axes[0], points.items(), strict=True):
        for number, name in enumerate(names):
            chosen = place == number
            if chosen.any():
                axis.scatter(*xy[chosen].T, s=5, color=COLOURS[number % len(COLOURS)], label=name, linewidths=0)
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0][0].legend(frameon=False, fontsize=8, markerscale=2, title="training count", title_fontsize=8)
    return _svg(figure)
