"""A reproduction as Markdown: our figures, the paper's, their ratio, and what became of each claim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmemb_cli.reporting.variants import BACKBONES


def markdown(document: dict[str, Any]) -> str:
    """The whole result, to keep beside the work or to paste."""
    lines = [f"# {document['title']}", "", document["about"], ""]
    lines += [f"Ours: {document['protocol']}. The paper's: {document['paper_protocol']}.", ""]
    lines += [f"- {note}" for note in document["notes"]]
    lines += [f"- Source of the paper's figures: {text}." for text in document["sources"].values()]
    for title, rows in blocks(document).items():
        lines += ["", f"## {title}", "", *figure_table(rows)]
    if document["figures"]:
        lines += [
            "",
            "Each cell: ours ± deviation over seeds; the paper's and ours / the paper's in brackets, where there is",
        ]
        lines += ["a source for the paper's figure."]
    lines += ["", "## Claims", "", *claim_table(document)]
    failed = document["failed"]
    if failed:
        lines += ["", "## Failed", ""]
        lines += [f"- {one['run']} in {one['workspace']}: {(one['error'] or {}).get('message')}" for one in failed]
    return "\n".join(lines) + "\n"


def blocks(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Rows of one table each: a workspace and backbone, and how they were ranked where workspaces differ in it."""
    protocols = document["protocols"]
    found: dict[str, list[dict[str, Any]]] = {}
    for row in document["figures"]:
        title = f"{row['workspace']}, {BACKBONES[row['backbone']]}"
        title += f", {protocols[row['workspace']]}" if len(set(protocols.values())) > 1 else ""
        found.setdefault(title, []).append(row)
    return found


def variant_name(row: dict[str, Any]) -> str:
    """A row's method, with what is left out and the swept settings."""
    swept = [f"{key} {row[key]:g}" for key in ("alpha", "gamma") if key in row]
    left_out = [f"without {' and '.join(row['without'])}"] if row["without"] else []
    return ", ".join([row["method"], *left_out, *swept])


def figure_table(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table: a line a variant, a column for each part and metric."""
    columns = list(dict.fromkeys((row["part"], row["metric"]) for row in rows))
    sizes = {row["part"]: row["users"] for row in rows}
    cells: dict[str, dict[tuple[str, str], str]] = {}
    seeds: dict[str, int] = {}
    for row in rows:
        name = variant_name(row)
        cells.setdefault(name, {})[row["part"], row["metric"]] = cell_text(row)
        seeds[name] = len(row["seeds"])
    head = ["method", "seeds", *(f"{part} {metric}" for part, metric in columns)]
    lines = _table(
        head, [[name, str(seeds[name]), *(found.get(c, "") for c in columns)] for name, found in cells.items()]
    )
    users = ", ".join(f"{part} {n:,}" for part, n in sizes.items() if n is not None)
    return [*lines, "", f"Users: {users}."] if users else lines


def cell_text(row: dict[str, Any]) -> str:
    """0.5277 ± 0.0012 (0.5103, ×1.03)"""
    spread = f" ± {row['deviation']:.4f}" if row["deviation"] is not None else ""
    beside = f" ({row['paper']:.4f}, ×{row['ratio']:.2f})" if row["paper"] is not None else ""
    return f"{row['mean']:.4f}{spread}{beside}"


def claim_rows(document: dict[str, Any]) -> list[list[str]]:
    """Where, what is compared, ours, the paper's, verdict."""
    return [
        [
            f"{one['workspace']}, {BACKBONES[one['backbone']]}",
            f"{one['part']} {one['metric']}",
            one["compared"],
            _values(one["ours"], "g" if "setting" in one else ".4f"),
            _values(one["paper"], "g" if "setting" in one else ".4f") if any_known(one["paper"]) else "",
            one["verdict"],
        ]
        for one in document["claims"]
    ]


def claim_table(document: dict[str, Any]) -> list[str]:
    """Every claim and its verdict, and how many hold."""
    rows = claim_rows(document)
    if not rows:
        return ["None could be checked: the runs it needs are not there."]
    lines = [f"- {text}" for text in dict.fromkeys(one["says"] for one in document["claims"])]
    lines += ["", summary_line(document), ""]
    return lines + _table(["where", "figure", "compared", "ours", "paper", "verdict"], rows)


def summary_line(document: dict[str, Any]) -> str:
    """3 of 8 comparisons come out as the paper says, 2 of them significantly (p < 0.05, Holm-corrected)."""
    verdicts = [one["verdict"] for one in document["claims"]]
    held = [verdict for verdict in verdicts if verdict.startswith("holds")]
    tested = any(one["p"] is not None for one in document["claims"])
    sure = sum(verdict == "holds, significantly" for verdict in held)
    how = f"paired t-test over users, p < 0.05, Holm-corrected over {document['tests']} tests"
    more = f", {sure} of them significantly (*; {how})" if tested else ""
    return f"{len(held)} of {len(verdicts)} comparisons come out as the paper says{more}."


def any_known(values: Sequence[float | None]) -> bool:
    """Whether there is a source for at least one of the paper's figures."""
    return any(value is not None for value in values)


def _values(values: Sequence[float | None], how: str) -> str:
    return " / ".join("–" if value is None else format(value, how) for value in values)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *map(line, rows)]
