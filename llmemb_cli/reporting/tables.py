"""A comparison as Markdown, LaTeX or CSV, in the paper's notation: best bold, second underlined, star significant."""

from __future__ import annotations

from typing import Any

from llmemb_cli.reporting.spreadsheet import csv_table

SIGNIFICANT = "*"


def figure(cell: dict[str, Any]) -> str:
    """0.1856, with the deviation over seeds where there are several, and a star where the gain is no chance."""
    spread = f" ± {cell['deviation']:.4f}" if cell.get("deviation") is not None else ""
    star = SIGNIFICANT if cell.get("significant") and cell["difference"] > 0 else ""
    return f"{cell['mean']:.4f}{spread}{star}"


def caption(document: dict[str, Any]) -> str:
    """What the table shows, in one sentence a protocol and a test."""
    label = protocol_label(document["protocol"])
    text = f"{label[0].upper()}{label[1:]}."
    variants = document["variants"]
    if len(variants) > 1:
        text += " Best bold, second underlined" + (
            " within each backbone." if len({one["backbone"] for one in variants}) > 1 else "."
        )
    if any(len(one["seeds"]) > 1 for one in variants):
        own = "each one's own " if len({len(one["seeds"]) for one in variants}) > 1 else ""
        text += f" Mean and standard deviation over {own}seeds."
    if document["tests"]:
        names = {"t": "paired t-test", "wilcoxon": "Wilcoxon signed-rank test"}
        test = names.get(document["test"], f"paired {document['test']} test")
        how = {"holm": "Holm-corrected", "bh": "Benjamini-Hochberg-corrected", "none": "not corrected"}
        text += (
            f" * better than the baseline: two-sided {test} over users, p < {document['alpha']:g}, "
            f"{how[document['correction']]} over {document['tests']} tests."
        )
    return text


def runs_behind(document: dict[str, Any]) -> dict[str, list[str]]:
    """The runs of variants whose name does not tell them: where settings stand in the place of a digest."""
    return {
        entry["variant"]: entry["runs"]
        for entry in document["variants"]
        if any(entry["variant"].split("/")[-1] not in (run, run.rsplit("-", 1)[0]) for run in entry["runs"])
    }


def protocol_label(protocol: dict[str, Any]) -> str:
    """The protocol in words."""
    if protocol["kind"] != "sampled":
        seen = "without" if protocol["history"] == "exclude" else "with"
        what = "of validation items " if protocol["kind"] == "validation" else ""
        return f"full ranking {what}{seen} the user's own history"
    return f"ranked among {protocol['negatives']} sampled items ({protocol['candidates']}, seed {protocol['seed']})"


def _columns(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(part, metric) for part in document["variants"][0]["parts"] for metric in document["metrics"]]


def markdown(document: dict[str, Any]) -> str:
    """A Markdown table and its caption."""
    columns = _columns(document)
    sizes = {part: cells["n"] for part, cells in document["variants"][0]["parts"].items()}
    head = ["variant", "seeds", *(f"{part} {metric}" for part, metric in columns)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    marks = {1: ("**", "**"), 2: ("<u>", "</u>"), None: ("", "")}
    for entry in document["variants"]:
        cells = []
        for part, metric in columns:
            cell = entry["parts"][part][metric]
            before, after = marks[cell["place"]]
            cells.append(f"{before}{figure(cell)}{after}".replace("*" + after, after + "\\*"))
        lines.append("| " + " | ".join([_md(entry["variant"]), str(len(entry["seeds"])), *cells]) + " |")
    users = ", ".join(f"{part} {n:,}" for part, n in sizes.items())
    told = f"{caption(document)} {about(document)} Users: {users}."
    told += "".join(f" Runs of {name}: {', '.join(runs)}." for name, runs in runs_behind(document).items())
    return "\n".join([*lines, "", _md(told)]) + "\n"


def about(document: dict[str, Any]) -> str:
    """The baselines, and what the groups are."""
    baselines = list(dict.fromkeys(entry["baseline"] for entry in document["variants"] if entry["baseline"]))
    sentences = [f"Baseline: {', '.join(baselines)}"] if baselines else []
    sentences += [text[0].upper() + text[1:] for text in document["definitions"].values()]
    return " ".join(f"{sentence}." for sentence in sentences)


def _md(text: str) -> str:
    """A name in a Markdown table: no markup, no HTML, no new column."""
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    return "".join("\\" + char if char in "\\`*_[]|" else char for char in plain)


def latex(document: dict[str, Any]) -> str:
    """A LaTeX table (package booktabs); every name is escaped."""
    parts = list(document["variants"][0]["parts"])
    metrics = document["metrics"]
    width = len(metrics)
    spans = " & ".join(rf"\multicolumn{{{width}}}{{c}}{{{_tex(part)}}}" for part in parts)
    rules = " ".join(rf"\cmidrule(lr){{{3 + i * width}-{2 + (i + 1) * width}}}" for i in range(len(parts)))
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{lr{'c' * (len(parts) * width)}}}",
        r"\toprule",
        rf" & & {spans} \\ {rules}",
        "variant & seeds & " + " & ".join(_tex(metric) for _ in parts for metric in metrics) + r" \\",
        r"\midrule",
    ]
    marks = {1: r"\textbf{%s}", 2: r"\underline{%s}", None: "%s"}
    for entry in document["variants"]:
        cells = []
        for part, metric in _columns(document):
            cell = entry["parts"][part][metric]
            text = figure(cell).replace("± ", r"$\pm$ ").removesuffix(SIGNIFICANT)
            star = "$^*$" if figure(cell).endswith(SIGNIFICANT) else ""
            cells.append(marks[cell["place"]] % text + star)
        lines.append(" & ".join([_tex(entry["variant"]), str(len(entry["seeds"])), *cells]) + r" \\")
    lines += [
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{_tex(caption(document) + ' ' + about(document))}}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    special = {char: "\\" + char for char in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"<": "$<$", ">": "$>$", "|": r"\textbar{}", "\n": " "}
    return "".join(special.get(char, char) for char in text)


def csv_text(document: dict[str, Any]) -> str:
    """One line for each variant, part and metric."""
    fields = ["mean", "deviation", "gain", "difference", "low", "high", "p", "p_corrected", "effect"]
    fields += ["wins", "losses", "p_seeds"]
    rows = []
    for entry in document["variants"]:
        for part, metric in _columns(document):
            cell = entry["parts"][part][metric]
            low, high = cell.get("interval", (None, None))
            values = [(cell | {"low": low, "high": high}).get(name) for name in fields]
            seeds = " ".join(map(str, entry["seeds"]))
            about_it = [entry["variant"], seeds, entry["baseline"], part, entry["parts"][part]["n"], metric]
            rows.append([*about_it, *values, " ".join(entry["runs"])])
    return csv_table(["variant", "seeds", "baseline", "part", "n", "metric", *fields, "runs"], rows)
