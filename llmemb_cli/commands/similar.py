"""`llmemb similar`: the items nearest to an item."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmemb_cli.commands.common import WorkspaceOption, command, open_workspace
from llmemb_cli.console import Output, table, titled

if TYPE_CHECKING:
    from rich.console import Console

OTHERS_SHOWN = 5


def similar(
    output: Output,
    item: Annotated[str | None, typer.Argument(help="Id of the item.")] = None,
    text: Annotated[str | None, typer.Option("--text", help="Words of its title, instead of an id.")] = None,
    space: Annotated[
        str | None,
        typer.Option("--in", help="Embeddings (scft, base) or run to look in [default: the tuned LLM's embeddings]."),
    ] = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many items.")] = 10,
    raw: Annotated[
        bool, typer.Option("--raw", help="Cosine of the vectors as they are, without taking their mean away first.")
    ] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """The nearest items by cosine, and how alike two items are that were drawn at random.

    A cosine says little by itself: compare it with the level that one random pair in twenty exceeds.

    Example: `llmemb similar --text "toy story" --in sasrec-llmemb-42`
    """
    located, settings = open_workspace(output, workspace)
    from llmemb_cli.evaluation.document import older_data
    from llmemb_cli.evaluation.spaces import find_item, item_titles, open_space, similar_items

    titles = item_titles(located)
    found, others = find_item(titles, item, text)
    if others:
        shown = "; ".join(f"{titles[one]} ({one})" for one in others[:OTHERS_SHOWN])
        more = f"; and {len(others) - OTHERS_SHOWN} more" if len(others) > OTHERS_SHOWN else ""
        output.reporter().note(f"took {titles[found]} ({found}); also: {shown}{more}")
    opened = open_space(located, space)
    if stale := older_data(located, opened.name):
        output.reporter().warn(stale)
    document = similar_items(located, opened, found, top, centred=not raw, seed=settings.seed)
    document["other_matches"] = others
    output.result(document, lambda console: show(console, document))


def show(console: Console, document: dict[str, Any]) -> None:
    """The neighbours, nearest first, and the background level."""
    level = document["background"]
    where = f"the item embeddings of {document['space']}" if document["kind"] == "run" else document["space"]
    rows = [
        [
            str(one["rank"]),
            one["item_id"],
            one["title"],
            ("" if one["cosine"] > level["high"] else "~") + f"{one['cosine']:.3f}",
        ]
        for one in document["neighbours"]
    ]
    title = f"Nearest to {document['title']} ({document['item_id']}) in {where}"
    titled(console, title, table(["", "item", "title", "cosine"], rows, left=3))
    how = "centred cosine" if document["centred"] else "cosine"
    console.print(
        f"{how}; random pairs: mean {level['mean']:.3f}, one in twenty above {level['high']:.3f}"
        " (~ marks items not above that)",
        style="dim",
        markup=False,
    )


app = command(similar)
