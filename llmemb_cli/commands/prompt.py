"""`llmemb prompt`: make the prompts and look at one, with two augmented views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmemb_cli.commands.common import ForceOption, SetOption, WorkspaceOption, command, open_workspace, option
from llmemb_cli.console import Output
from llmemb_cli.errors import WrongUseError
from llmemb_cli.workspace.lock import write_lock

if TYPE_CHECKING:
    from rich.console import Console


def prompt(
    output: Output,
    item: Annotated[str | None, typer.Argument(help="Item id to show; default: one at random.")] = None,
    instruction: Annotated[str | None, option("prompt.instruction")] = None,
    drop_ratio: Annotated[float | None, option("scft.drop_ratio")] = None,
    workspace: WorkspaceOption = None,
    force: ForceOption = False,
    set: SetOption = None,
) -> None:
    """Make the prompt of every item, and show one with two views as SCFT would draw them.

    Example: `llmemb prompt 50`
    """
    given = {"prompt.instruction": instruction, "scft.drop_ratio": drop_ratio}
    located, settings = open_workspace(output, workspace, given, set)
    from llmemb_cli.prompts.stage import make_prompts, read_prompts
    from llmemb_cli.prompts.views import random_drop
    from llmemb_cli.seeds import numpy_rng

    with write_lock(located):
        result = make_prompts(located, settings, output.reporter(), force=force)
    frame, summary = read_prompts(located)
    rng = numpy_rng(settings.seed, "preview", item or "")
    if item is None:
        row = int(rng.integers(len(frame)))
    else:
        found = (frame["item_id"] == item).arg_true()
        if not len(found):
            raise WrongUseError(f"no item {item} in this workspace", hint="ids are those of data/items.parquet")
        row = int(found[0])
    parts = frame["parts"][row].to_list()
    views = [random_drop(parts, settings.scft.drop_ratio, rng) for _ in range(2)]
    document = {
        "path": str(located.prompts),
        "built": result.built,
        "item": frame["item_id"][row],
        "prompt": frame["prompt"][row],
        "views": views,
    } | summary
    output.result(document, lambda console: _show(console, document, parts))


def _show(console: Console, document: dict[str, Any], parts: list[str]) -> None:
    from rich.text import Text

    console.print(f"{document['items']:,} prompts, {document['mean_chars']:.0f} characters on average")
    console.print(Text(f"\nitem {document['item']}", style="bold"))
    console.print(Text(document["prompt"]))
    for number, view in enumerate(document["views"], start=1):
        console.print(Text(f"\nview {number}", style="bold"))
        line = Text(document["separator"].join(view))
        for part in parts:
            if part not in view:
                # A pipe shows no strike-through, so the words say it as well.
                line.append(f"  [left out: {part}]", style="strike dim")
        console.print(line)


app = command(prompt)
