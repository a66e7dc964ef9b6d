"""`llmemb config`: the settings in force and where each comes from."""

from __future__ import annotations

import tomllib
from typing import Annotated, Any

import typer

from llmemb_cli.commands.common import RecipeOption, SetOption, WorkspaceOption, command, open_workspace
from llmemb_cli.config.recipes import RECIPES, RecipeName, recipe_changes
from llmemb_cli.config.settings import SECTIONS, Settings, known_keys, own_tables, parse_assignments, update_settings
from llmemb_cli.console import Output, table
from llmemb_cli.errors import WrongUseError, near_match
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.lock import write_lock


def config(
    output: Output,
    section: Annotated[
        str | None, typer.Argument(help="Only this table (data, prompt, scft, ...) or setting (rat.alpha).")
    ] = None,
    recipe: RecipeOption = None,
    workspace: WorkspaceOption = None,
    set: SetOption = None,
) -> None:
    """Show every setting in force and where it comes from: default, llmemb.toml or flag.

    Tables such as [rat.bert4rec] count for their backbone or method alone; add `--set rat.backbone=bert4rec` to see
    them in force.

    Example: `llmemb config rat --set rat.alpha=0.05`, or `llmemb config --recipe long-tail`
    """
    located, settings = open_workspace(output, workspace, sets=set)
    if recipe is not None:
        if section or set:
            raise WrongUseError(
                "--recipe changes llmemb.toml, and goes with no other word", hint="show it afterwards"
            )
        _follow(output, located, recipe)
        return
    if section is not None and section not in (*SECTIONS, *known_keys()):
        close = near_match(section, [*SECTIONS, *known_keys()])
        raise WrongUseError(
            f"no table or setting {section}; the tables are {', '.join(SECTIONS)}",
            hint=f"did you mean {close}?" if close else None,
        )
    in_file = tomllib.loads(located.settings_file.read_text(encoding="utf-8"))
    flags = parse_assignments(set or [])
    entries = []
    for key in known_keys():
        if section and section != key and not key.startswith(section + "."):
            continue
        *table_name, name = key.split(".")
        value = getattr(getattr(settings, table_name[0]) if table_name else settings, name)
        origin = _origin(in_file, flags, table_name, name, settings)
        entries.append({"key": key, "value": value, "origin": origin})
    output.result(
        {"workspace": str(located.root), "settings": entries},
        lambda console: console.print(
            table(
                ["setting", "value", "from"],
                [[str(e["key"]), _shown(e["value"]), str(e["origin"])] for e in entries],
                left=3,
            )
        ),
    )


def _follow(output: Output, workspace: Workspace, name: RecipeName) -> None:
    """Write a recipe into llmemb.toml and say what it changed."""
    with write_lock(workspace):
        filed = tomllib.loads(workspace.settings_file.read_text(encoding="utf-8"))
        changes = recipe_changes(name, filed)
        update_settings(workspace.settings_file, {key: after for key, (_, after) in changes.items()})
    rows = [
        [key, "default" if before is None else _shown(before), _shown(after)]
        for key, (before, after) in changes.items()
    ]

    def show(console: Any) -> None:
        console.print(f"{name}: {RECIPES[name].about}", markup=False, soft_wrap=True)
        console.print(
            table(["in llmemb.toml", "before", "now"], rows, left=3) if rows else "llmemb.toml has it already"
        )
        console.print("Next: llmemb run --dry-run, then llmemb run", style="dim")

    changed = {key: {"before": before, "after": after} for key, (before, after) in changes.items()}
    output.result({"workspace": str(workspace.root), "recipe": name, "changed": changed}, show)


def _shown(value: Any) -> str:
    """A value as llmemb.toml has it; a text without its quotes."""
    if value is None or isinstance(value, str):
        return "not set" if value is None else value
    import tomlkit

    return str(tomlkit.item(value).as_string()).strip() or "{}"


def _origin(in_file: dict[str, Any], flags: dict[str, Any], section: list[str], name: str, settings: Settings) -> str:
    """Which table of llmemb.toml or of the flags a setting comes from, or that it is a default."""
    own = own_tables(settings.rat.backbone, settings.rat.method)[::-1] if section == ["rat"] else []
    for table_name in own:
        if f"rat.{table_name}.{name}" in flags:
            return f"flag, [rat.{table_name}]"
    if ".".join([*section, name]) in flags:
        return "flag"
    filed = in_file.get(section[0], {}) if section else in_file
    for table_name in own:
        if name in filed.get(table_name, {}):
            return f"llmemb.toml, [rat.{table_name}]"
    return "llmemb.toml" if name in filed else "default"


app = command(config)
