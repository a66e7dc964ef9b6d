"""`llmemb config`: the settings in force and where each comes from."""

from __future__ import annotations

import tomllib
from typing import Annotated

import typer

from llmemb_cli.commands.common import SetOption, WorkspaceOption, command, open_workspace
from llmemb_cli.config.settings import SECTIONS, known_keys, parse_assignments
from llmemb_cli.console import Output, table


def config(
    output: Output,
    section: Annotated[str | None, typer.Argument(help="Only this table: data, prompt, scft, ...")] = None,
    workspace: WorkspaceOption = None,
    set: SetOption = None,
) -> None:
    """Show every setting in force and where it comes from: default, llmemb.toml or flag.

    Example: `llmemb config rat --set rat.alpha=0.05`
    """
    located, settings = open_workspace(output, workspace, sets=set)
    if section is not None and section not in SECTIONS:
        raise typer.BadParameter(f"no such table; one of {', '.join(SECTIONS)}")
    in_file = tomllib.loads(located.settings_file.read_text(encoding="utf-8"))
    flags = parse_assignments(set or [])
    entries = []
    for key in known_keys():
        if section and not key.startswith(section + "."):
            continue
        *table_name, name = key.split(".")
        value = getattr(getattr(settings, table_name[0]) if table_name else settings, name)
        filed = name in (in_file.get(table_name[0], {}) if table_name else in_file)
        origin = "flag" if key in flags else "llmemb.toml" if filed else "default"
        entries.append({"key": key, "value": value, "origin": origin})
    output.result(
        {"workspace": str(located.root), "settings": entries},
        lambda console: console.print(
            table(
                ["setting", "value", "from"],
                [
                    [str(e["key"]), "not set" if e["value"] is None else str(e["value"]), str(e["origin"])]
                    for e in entries
                ],
            )
        ),
    )


app = command(config)
