"""The data card as Markdown: `data/card.md`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LEAVE_ONE_OUT = (
    "Leave-one-out cuts every user at their own end, so training holds interactions that are later than other users' "
    "test items; `--split time` does not."
)
LEAK = (
    "In prompts, {} tell how popular an item is or became, as in the authors' own prompts; "
    "`--no-leaking` leaves them out."
)


def card_text(summary: dict[str, Any]) -> str:
    """The card of a data stage's summary (card.py)."""
    source = summary["source"]
    parts = [
        f"# Data card: {_cell(summary['dataset'])}",
        f"{_cell(summary['title'])}. Edition: {_cell(source['edition'])}.",
        _sizes(summary),
        *_published_notes(summary),
        "## Source",
        f"Licence: {_cell(source['licence'])}.",
        "\n".join(f"- `{_cell(f['name'])}`, {f['bytes']:,} bytes, sha256 `{f['sha256']}`" for f in source["files"]),
        *_columns(source["columns"]),
        "## Rules",
        *([f"The preparation `--preset {summary['preset']}`:"] if summary["preset"] else []),
        "\n".join(f"{n}. {rule}" for n, rule in enumerate(summary["rules_in_words"], start=1)),
        *([LEAVE_ONE_OUT] if summary["split"] == "leave-one-out" else []),
        "## Where the rows went",
        *(
            markdown_table(["", "rows"], [(_cell(what), f"{count:,}") for what, count in account])
            for account in row_account(summary)
        ),
        *_unreadable(summary["unreadable_values"]),
        "## Popularity",
        _popularity(summary),
        "## Attributes",
        f"Prompts begin with: {_cell(summary['instruction'])}",
        markdown_table(
            ["attribute", "items that have it", "in prompts"],
            [
                (_cell(name), f"{share:.1%}", _in_prompts(name, summary))
                for name, share in attributes_in_order(summary)
            ],
        ),
        *leak_note(summary),
    ]
    return "\n\n".join(parts) + "\n"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column left, the others right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Text from outside on one line that ends no table cell and starts no markup."""
    text = " ".join(str(text).split())
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def size_rows(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """The sizes, beside published ones: name, here, one column for each entry of `published`."""
    others = summary["published"]
    rows: list[tuple[str, ...]] = [
        (name, f"{summary[name]:,}", *(f"{other[name]:,}" for other in others))
        for name in ("users", "items", "interactions")
    ]
    mean = (summary["mean_length"], *(other["mean_length"] for other in others))
    density = (
        summary["density"],
        *(other["interactions"] / (other["users"] * other["items"]) for other in others),
    )
    rows.append(("mean length", *(f"{value:.2f}" for value in mean)))
    rows.append(("density", *(percent(value) for value in density)))
    return rows


def percent(share: float) -> str:
    """7.18 %, 0.0132 %."""
    return f"{100 * share:.2f} %" if share >= 0.001 else f"{100 * share:.3g} %"


def published_names(summary: dict[str, Any]) -> list[str]:
    """A heading for each entry of `published`."""
    count = len(summary["published"])
    return ["published"] if count == 1 else [f"published ({n})" for n in range(1, count + 1)]


def published_lines(summary: dict[str, Any]) -> list[str]:
    """What each entry of `published` is, and what its tail would be here."""
    lines = []
    for name, entry in zip(published_names(summary), summary["published"], strict=True):
        line = f"{name}: {entry['source']}"
        if entry["tail_below"] is not None:
            here = entry["items_below_here"] / max(summary["items"], 1)
            line += (
                f"; its tail is items with fewer than {entry['tail_below']} interactions, which in training here are "
                f"{here:.1%} of the items and {entry['share_of_test_below_here']:.1%} of the test targets"
            )
        lines.append(line)
    return lines


def tail_line(summary: dict[str, Any]) -> str:
    """The tail's size, threshold and share of test targets."""
    tail = summary["tail"]
    return (
        f"{tail['items']:,} items ({tail['share_of_items']:.0%}, least popular first) with at most "
        f"{tail['largest_count']:,} training interactions; {tail['share_of_test']:.1%} of test targets"
    )


def time_line(summary: dict[str, Any]) -> str:
    """First and last time of an interaction."""
    first, last = summary["first"], summary["last"]
    return f"{first} to {last}" + ("" if "-" in first[1:] else " (positions, no dates)")


def split_line(summary: dict[str, Any]) -> str:
    """How many interactions each part of the split has."""
    rows = {"later, not used" if name == "later" else name: n for name, n in summary["split_rows"].items()}
    return ", ".join(f"{n:,} {name}" for name, n in rows.items() if n or name != "later, not used")


def _sizes(summary: dict[str, Any]) -> str:
    head = ["", "here", *published_names(summary)]
    empty = ("",) * len(summary["published"])
    rows = [
        *size_rows(summary),
        ("time", time_line(summary), *empty),
        ("split", split_line(summary), *empty),
        ("tail", tail_line(summary), *empty),
    ]
    return markdown_table(head, rows)


def _published_notes(summary: dict[str, Any]) -> list[str]:
    lines = published_lines(summary)
    return ["\n".join(f"- {line}" for line in lines)] if lines else []


def _columns(columns: dict[str, str]) -> list[str]:
    if not columns:
        return []
    return ["Columns: " + ", ".join(f"{role} from `{_cell(column)}`" for role, column in columns.items()) + "."]


def row_account(summary: dict[str, Any]) -> list[list[tuple[str, int]]]:
    """What became of every row, for the interactions and for the items: the last number is the sum of the others."""
    log, catalogue = summary["source"]["log"], summary["source"]["catalogue"]
    left_out = [(f"left out: {rule}", -count) for rule, count in summary["left_out"].items()]
    accounts = [[_read(log, summary), *_rejected(log, summary), *left_out, ("interactions", summary["interactions"])]]
    if catalogue:
        unused = summary["items_without_interactions"]
        left_out = [("left out: without an interaction that is left", -unused)] if unused else []
        items = [_read(catalogue, summary), *_rejected(catalogue, summary), *left_out, ("items", summary["items"])]
        accounts.append(items)
    return accounts


def _read(file: str, summary: dict[str, Any]) -> tuple[str, int]:
    return f"read from {file}", summary["rows_read"].get(file, 0)


def _rejected(file: str, summary: dict[str, Any]) -> list[tuple[str, int]]:
    return [
        (f"rejected: {entry['reason']}", -entry["count"]) for entry in summary["rejects"] if entry["file"] == file
    ]


def _unreadable(unreadable: dict[str, int]) -> list[str]:
    if not unreadable:
        return []
    found = ", ".join(f"{count:,} of {_cell(name)}" for name, count in unreadable.items())
    return [f"Values that are none and count as missing: {found}."]


def _popularity(summary: dict[str, Any]) -> str:
    rows = [
        (entry["bin"], f"{entry['items']:,}", percent(entry["interactions"] / max(summary["split_rows"]["train"], 1)))
        for entry in summary["popularity"]
    ]
    fifth = (
        f"The most popular fifth of the items has {summary['share_of_top_fifth']:.0%} of the training interactions."
    )
    return f"{markdown_table(['training interactions', 'items', 'share of interactions'], rows)}\n\n{fifth}"


def attributes_in_order(summary: dict[str, Any]) -> list[tuple[str, float]]:
    """Attributes with their share of items, those in prompts first and in their order."""
    shares = summary["attribute_share"]
    names = [*summary["attributes"], *(name for name in shares if name not in summary["attributes"])]
    return [(name, shares[name]) for name in names]


def _in_prompts(name: str, summary: dict[str, Any]) -> str:
    if name in summary["attributes"]:
        return "yes, leaks" if name in summary["leaking"] else "yes"
    return "no, leaks" if name in summary["leaking"] else "no"


def leak_note(summary: dict[str, Any]) -> list[str]:
    """A line where attributes in prompts give popularity away."""
    leaking = [name for name in summary["attributes"] if name in summary["leaking"]]
    return [LEAK.format(_cell(", ".join(leaking)))] if leaking else []
