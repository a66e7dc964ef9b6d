"""`llmemb models`: which LLMs there are, what they need, and getting one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmemb_cli.commands.common import command
from llmemb_cli.console import Output, table
from llmemb_cli.errors import WrongUseError

if TYPE_CHECKING:
    from rich.console import Console


def models(
    output: Output,
    name: Annotated[
        str | None,
        typer.Argument(help="One model: a preset, a hub id, a folder or a GGUF file; default: all presets."),
    ] = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch the model now and check its files.")] = False,
) -> None:
    """List the LLMs that have a short name, with licence, memory needed, and whether they are here.

    Any hub id, folder or GGUF file works as well: --model takes them all. --fetch gets one ahead, so that nothing
    touches the network later.

    Example: `llmemb models`, or `llmemb models smollm2-135m --fetch`
    """
    from llmemb_cli.assets.catalogue import describe_all, describe_model

    if fetch and name is None:
        raise WrongUseError("--fetch needs a model", hint="for example `llmemb models smollm2-135m --fetch`")
    if name is None:
        entries = describe_all()
        output.result({"models": entries}, lambda console: _show_all(console, entries))
        return
    if fetch:
        from llmemb_cli.assets.models import local_model

        folder = local_model(name, output.reporter())
        entry = describe_model(name) | {"path": str(folder)}
    else:
        entry = describe_model(name)
    output.result(entry, lambda console: _show_one(console, entry))


def _show_all(console: Console, entries: list[dict[str, Any]]) -> None:
    rows = [
        [
            entry["name"],
            _count(entry["parameters"]),
            f"{entry['hidden_size']}x{entry['layers']}",
            "yes" if entry["path"] else "",
            _gigabytes(entry, "embed"),
            _gigabytes(entry, "scft"),
            f"{entry['licence'] or 'see its card'}{' *' if entry['gated'] else ''}",
        ]
        for entry in entries
    ]
    columns = ["model", "parameters", "width x layers", "here", "embed, GB", "scft, GB", "licence"]
    console.print(table(columns, rows))
    console.print(
        "GB of memory in bf16/8 bits/4 bits. *: licence to be accepted on the hub. One: `llmemb models NAME`"
    )


def _show_one(console: Console, entry: dict[str, Any]) -> None:
    rows = [
        ["hub", entry["hub_id"] or "-"],
        [
            "licence",
            f"{entry['licence'] or 'see its card'}{' (gated: accept it on the hub)' if entry['gated'] else ''}",
        ],
        ["here", entry["path"] or "no: `--fetch` gets it"],
        ["by hand", entry["by_hand"]],
    ]
    if entry["memory"] is not None:
        rows += [
            ["parameters", f"{entry['parameters']:,} ({entry['family']})"],
            ["width, layers", f"{entry['hidden_size']}, {entry['layers']}"],
            ["reads", f"{entry['positions']:,} tokens"],
            ["embed needs", f"{_gigabytes(entry, 'embed')} GB in bf16/8 bits/4 bits, 4,096 tokens at once"],
            ["scft needs", f"{_gigabytes(entry, 'scft')} GB in bf16/8 bits/4 bits, 1,024 tokens at once"],
        ]
    if entry["note"]:
        rows.append(["note", entry["note"]])
    console.print(table([entry["name"], ""], rows, left=2))


def _count(parameters: int | None) -> str:
    if parameters is None:
        return "?"
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"


def _gigabytes(entry: dict[str, Any], what: str) -> str:
    if entry["memory"] is None:
        return "?"
    return "/".join(f"{need[what] / 1e9:.1f}" for need in entry["memory"].values())


app = command(models)
